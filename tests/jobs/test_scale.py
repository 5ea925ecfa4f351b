"""`tiebreak scale` against a real cluster of simulated engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.lifecycle import running_cluster
from jobs.cli import main

pytestmark = pytest.mark.usefixtures("ray_here")

TOKENS = 1000
"""Of a request that still runs, some six seconds, when the command looks at it."""


@contextlib.contextmanager
def cluster(count: int, autoscale: dict[str, Any] | None = None, **replicas: Any) -> Iterator[Any]:
    config = parse_config(
        {
            "replicas": {"engine": "simulated", "count": count, **replicas},
            "autoscale": autoscale or {},
            "predictor": {"network": "none"},
        }
    )
    with running_cluster(config) as (controller, joined):
        assert not joined
        yield controller


def scale(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["scale", *words])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == status, said
    return said


def states(controller: Any) -> list[str]:
    return [replica.state for replica in ray.get(controller.status.remote()).replicas]


def test_it_returns_when_it_is_done_and_says_what_it_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cluster(1) as controller:
        assert "from 1 to 3 replicas" in scale(capsys, "3")
        assert states(controller) == ["ready"] * 3
        assert "3 replicas ready" in scale(capsys, "3")
        assert "from 3 to 1 replica" in scale(capsys, "1")
        assert states(controller) == ["ready"]
        assert "0 replicas ready" in scale(capsys, "0")
        assert states(controller) == []


def test_it_need_not_wait_and_says_whose_requests_it_waits_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run(controller: Any) -> None:
        async with ClusterClient(controller) as client:
            request = GenerationRequest(
                request_id="r",
                prompt_token_ids=[1, 2, 3],
                max_tokens=2000,
                sampling={"extra_args": {"simulated_output_tokens": TOKENS}},
            )
            call = asyncio.create_task(client.complete(request))
            while not (await client.status()).running:
                await asyncio.sleep(0.02)
            said = await asyncio.to_thread(scale, capsys, "0", "--no-wait")
            assert "from 1 to 0 replicas; 1 requests run on those that leave" in said
            assert len((await call).token_ids) == TOKENS

    with cluster(1) as controller:
        asyncio.run(run(controller))


def test_what_cannot_be_asked_for_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with cluster(1, autoscale={"max": 2}) as controller:
        assert "count is -1, must be at least 0" in scale(capsys, "-1", status=2)
        said = scale(capsys, "2", status=2)
        assert "autoscale.max 2" in said
        assert "Traceback" not in said
        assert states(controller) == ["ready"]


def test_a_replica_that_cannot_be_placed_is_no_reason_to_wait_for_ever(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The cluster's own node has a resource of its name, of which there is 1.
    names = [name for name in ray.cluster_resources() if name.startswith("node:")]
    (node,) = [name for name in names if "internal_head" not in name]
    # The first replica has to be placed in this time too, and its process to be started.
    with cluster(1, resources={node: 0.6}, placement_timeout_s=40.0) as controller:
        said = scale(capsys, "2", status=2)
        assert "1 of 2 replicas ready, they are tried on" in said
        assert "Ray found no node with room" in said
        assert states(controller) == ["ready", "placing"]
        scale(capsys, "1")
        assert states(controller) == ["ready"]


def test_without_a_cluster_it_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "start one with `tiebreak up`" in scale(capsys, "2", status=2)
