"""More and fewer replicas while requests run: real Ray, real processes, simulated engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.lifecycle import running_cluster
from cluster.messages import ClusterStatus

pytestmark = pytest.mark.usefixtures("ray_here")

STEP_TIME = {
    "base_s": 0.01,
    "per_prefill_token_s": 0.0,
    "per_decode_token_s": 0.0,
    "per_kv_token_s": 0.0,
}
"""A hundred steps a second, whatever runs."""


@contextlib.contextmanager
def cluster(autoscale: dict[str, Any] | None = None, **replicas: Any) -> Iterator[Any]:
    config = parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "max_num_seqs": 4,
                "engine_args": {"step_time": STEP_TIME},
                **replicas,
            },
            "autoscale": autoscale or {},
            "predictor": {"network": "none"},
        }
    )
    with running_cluster(config) as (controller, joined):
        assert not joined
        yield controller


def request(number: int, tokens: int) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"r{number}",
        prompt_token_ids=[(number * 31 + k) % 4000 for k in range(20)],
        max_tokens=2 * tokens,
        sampling={"extra_args": {"simulated_output_tokens": tokens}},
    )


async def until(client: ClusterClient, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    """The status once it holds."""
    for _ in range(2400):
        if holds(status := await client.status()):
            return status
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not come to hold: {status}")


def states(status: ClusterStatus) -> dict[str, str]:
    return {replica.replica_id: replica.state for replica in status.replicas}


async def complete_all(controller: Any, requests: list[GenerationRequest]) -> list[Completion]:
    async with ClusterClient(controller) as client:
        return list(await asyncio.gather(*(client.complete(r) for r in requests)))


async def scaled(controller: Any, requests: list[GenerationRequest], *counts: int) -> Any:
    """Scale while the requests run; their completions and the status afterwards."""
    async with ClusterClient(controller) as client:
        tasks = [asyncio.create_task(client.complete(r)) for r in requests]
        for count in counts:
            # After a drain to none nothing runs, and nothing will until there are more.
            await until(client, lambda status: status.running > 0 or not status.replicas)
            await asyncio.sleep(0.5)
            await controller.scale.remote(count)
        async with asyncio.timeout(120):
            completions = list(await asyncio.gather(*tasks))
        wanted = ["ready"] * counts[-1]
        return completions, await until(client, lambda s: list(states(s).values()) == wanted)


def assert_whole(completions: list[Completion], undisturbed: list[Completion]) -> None:
    assert not [c.error for c in completions if c.error]
    assert [c.token_ids for c in completions] == [c.token_ids for c in undisturbed]
    assert [c.text for c in completions] == [c.text for c in undisturbed]


def test_replicas_that_leave_finish_what_they_have() -> None:
    requests = [request(number, 150) for number in range(12)]
    with cluster(count=3) as controller:
        undisturbed = asyncio.run(complete_all(controller, requests))
        completions, status = asyncio.run(scaled(controller, requests, 1))
    assert_whole(completions, undisturbed)
    assert all(c.attempts == 1 for c in completions), "it was handed on instead"
    assert len(states(status)) == 1
    assert not status.running


def test_what_takes_too_long_goes_on_elsewhere_from_where_it_was() -> None:
    requests = [request(number, 400) for number in range(8)]
    with cluster(count=2, drain_timeout_s=0.2) as controller:
        undisturbed = asyncio.run(complete_all(controller, requests))
        completions, _ = asyncio.run(scaled(controller, requests, 1))
    assert_whole(completions, undisturbed)
    moved = [c for c in completions if c.attempts > 1]
    assert moved, "the drain was not cut short"
    assert all(c.recomputed_tokens for c in moved)


def test_none_at_all_and_back_while_requests_wait() -> None:
    requests = [request(number, 200) for number in range(8)]
    with cluster(count=2, drain_timeout_s=0.2) as controller:
        undisturbed = asyncio.run(complete_all(controller, requests))
        completions, status = asyncio.run(scaled(controller, requests, 0, 3))
    assert_whole(completions, undisturbed)
    assert not {"replica-0", "replica-1"} & set(states(status)), "a name was used twice"


def test_the_number_follows_the_work_from_none_and_back_to_none() -> None:
    autoscale = {
        "min": 0,
        "max": 3,
        "target_wait_s": 0.5,
        "up_delay_s": 1.0,
        "down_delay_s": 2.0,
    }

    async def run(controller: Any) -> tuple[list[Completion], int]:
        async with ClusterClient(controller) as client:
            assert not (await client.status()).replicas
            tasks = [asyncio.create_task(client.complete(request(n, 300))) for n in range(60)]
            most = 0
            while not all(task.done() for task in tasks):
                most = max(most, len((await client.status()).replicas))
                await asyncio.sleep(0.1)
            await until(client, lambda status: not status.replicas)
            late = await client.complete(request(100, 5))
            return [*(task.result() for task in tasks), late], most

    with cluster(autoscale, count=0) as controller:
        completions, most = asyncio.run(run(controller))
    assert [len(c.token_ids) for c in completions] == [300] * 60 + [5]
    assert most == 3
