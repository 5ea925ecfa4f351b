"""Requests that wait inside an engine go on where there is room: real Ray, simulated engines."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import ray

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.lifecycle import running_cluster
from cluster.messages import NAMESPACE, ClusterStatus
from policies.request import RequestClass

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_here")]

REQUESTS = 16
LONG_TOKENS, SHORT_TOKENS = 250, 20
KV_BLOCKS, BLOCK_SIZE = 64, 16
"""What a replica holds is half of the long answers, and all of the short ones."""

UNDISTURBED = 2
"""Requests at a time with which memory never runs out."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two engines that start what the lower bounds of forecasts admit, so that they must evict."""
    folder = tmp_path_factory.mktemp("cluster")
    config = parse_config(
        {
            "journal": str(folder / "journal"),
            "policy": {"name": "tie+a_min"},
            "predictor": {"network": "none", "state": str(folder / "prior.json")},
            "replicas": {
                "engine": "simulated",
                "count": 2,
                "max_num_seqs": REQUESTS,
                "engine_args": {"kv_blocks": KV_BLOCKS, "block_size": BLOCK_SIZE},
            },
        }
    )
    with running_cluster(config) as (controller, _):
        yield controller


def generation(number: int, name: str = "r", **sampling: Any) -> GenerationRequest:
    """Every other answer is long: placed in turn, they fill one replica and not the other."""
    tokens = SHORT_TOKENS if number % 2 else LONG_TOKENS
    return GenerationRequest(
        request_id=f"{name}{number}",
        prompt_token_ids=[(number * 31 + k) % 4000 for k in range(20)],
        max_tokens=400,
        sampling={"extra_args": {"simulated_output_tokens": tokens}, **sampling},
        request_class=RequestClass.OFFLINE,
    )


Amid = Callable[[ClusterStatus], Coroutine[Any, Any, None]]


class Run:
    """What a cluster made of `REQUESTS` requests, and what it counted meanwhile."""

    def __init__(
        self, controller: Any, at_once: int = REQUESTS, amid: Amid | None = None, **sampling: Any
    ) -> None:
        self._before = quiet(controller)
        self.completions = asyncio.run(self._complete(controller, at_once, amid, sampling))
        self._after = quiet(controller)

    def counted(self, name: str) -> int:
        """How much a counter rose."""
        rise: int = getattr(self._after, name) - getattr(self._before, name)
        return rise

    @property
    def answers(self) -> list[tuple[list[int], str, str]]:
        return [(c.token_ids, c.text, c.finish_reason) for c in self.completions]

    async def _complete(
        self, controller: Any, at_once: int, amid: Amid | None, sampling: dict[str, Any]
    ) -> list[Completion]:
        turns = asyncio.Semaphore(at_once)

        async def run(client: ClusterClient, number: int) -> Completion:
            async with turns:
                return await client.complete(generation(number, **sampling))

        async with ClusterClient(controller) as client, asyncio.timeout(120):
            tasks = [asyncio.create_task(run(client, number)) for number in range(REQUESTS)]
            if amid is not None:
                while (status := await client.status()).recalls == self._before.recalls:
                    assert not all(task.done() for task in tasks), "nothing was recalled"
                    await asyncio.sleep(0.005)
                await amid(status)
            return list(await asyncio.gather(*tasks))


def quiet(controller: Any) -> ClusterStatus:
    """The status once both replicas are there and nothing waits or runs, by our ledgers and by the
    engines' own account (I3)."""
    for _ in range(2400):
        status: ClusterStatus = ray.get(controller.status.remote())
        loads = [r.engine_load for r in status.replicas]
        work = [load.running + load.waiting + load.kv_usage for load in loads]
        ledgers = [r.running + r.used_blocks for r in status.replicas]
        ready = [r for r in status.replicas if r.state == "ready"]
        left = status.waiting or status.running or any(work) or any(ledgers)
        if len(ready) == 2 and not left:
            return status
        time.sleep(0.05)
    raise AssertionError(f"work is left, or a replica is missing: {status}")


async def kill_the_emptier(status: ClusterStatus) -> None:
    """SIGKILL the replica that recalled requests go to."""
    emptier = min(status.replicas, key=lambda r: r.engine_load.kv_usage)
    replica = ray.get_actor(emptier.replica_id, namespace=NAMESPACE)
    os.kill(await replica.__ray_call__.remote(lambda self: os.getpid()), signal.SIGKILL)


def test_what_one_replica_evicts_goes_on_at_the_other_and_no_token_is_lost(cluster: Any) -> None:
    undisturbed = Run(cluster, at_once=UNDISTURBED)
    run = Run(cluster)
    assert not undisturbed.counted("recalls")
    assert run.counted("recalls") > 0
    assert run.answers == undisturbed.answers
    assert run.counted("finished") == REQUESTS
    moved = [c for c in run.completions if c.attempts > 1]
    assert sum(c.attempts - 1 for c in moved) == run.counted("recalls")
    assert any(c.preemptions for c in moved), "none of them had been evicted"
    # The account of the requests is that of the cluster.
    assert run.counted("preemptions") == sum(c.preemptions for c in run.completions)
    assert run.counted("recomputed_tokens") == sum(c.recomputed_tokens for c in run.completions)


def test_what_cannot_be_continued_stays_where_it_is(cluster: Any) -> None:
    undisturbed = Run(cluster, at_once=UNDISTURBED, seed=0)
    run = Run(cluster, seed=0)
    assert run.counted("preemptions") > 0
    assert not run.counted("recalls")
    assert {c.attempts for c in run.completions} == {1}
    assert run.answers == undisturbed.answers


def test_the_destination_is_killed_amid_recalls_and_every_token_comes_once(cluster: Any) -> None:
    undisturbed = Run(cluster, at_once=UNDISTURBED)
    run = Run(cluster, amid=kill_the_emptier)
    assert run.answers == undisturbed.answers
    assert run.counted("finished") == REQUESTS
