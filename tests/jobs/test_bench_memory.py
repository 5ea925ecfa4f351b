"""The bench of the controller's memory: it fills a queue, and plays requests to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.config import parse_config
from cluster.statistics.latency_groups import SINCE_START
from jobs.bench_memory import PlayedController, fill, requests_of
from jobs.errors import InputError
from tests.local_ray import cluster_of

PATIENCE_S = 30.0
"""Far longer than so few requests take to be queued or refused."""


@pytest.fixture(scope="module")
def controller() -> Iterator[Any]:
    """One without replicas, where twenty offline requests may wait."""
    config = parse_config(
        {
            "replicas": {"engine": "simulated", "count": 0},
            "predictor": {"network": "none"},
            "queue": {"online_requests": 5, "offline_requests": 20},
        }
    )
    with cluster_of(config, num_cpus=2) as controller:
        yield controller


def filled(controller: Any, queued: int) -> int:
    return asyncio.run(asyncio.wait_for(fill(controller, queued, 10), PATIENCE_S))


def test_more_prompts_than_online_requests_may_wait_are_queued(controller: Any) -> None:
    assert filled(controller, 20) > 1 << 20


def test_more_prompts_than_may_wait_are_an_error(controller: Any) -> None:
    with pytest.raises(InputError, match=r"--queued is 21, .* \(queue\.offline_requests is 20, "):
        filled(controller, 21)


async def test_played_requests_end_and_leave_their_rows_alone() -> None:
    config = parse_config({"statistics": {"kept": 50, "tenants": 5}})
    controller = PlayedController(config.model_dump(mode="json"))
    controller.join()
    lengths = []
    for first in (0, 200):
        submissions, tokens = requests_of(first, 200)
        lengths += tokens
        await controller.play(submissions, tokens)
    state = controller._state
    assert controller.rows == 400
    assert (state.scheduler.waiting, state.scheduler.running, len(state.open)) == (0, 0, 0)
    assert list(state.statistics.rows()) == [f"played/{i}" for i in range(399, 349, -1)]
    found = [v for v in state.statistics.latencies(1e9) if v.window_s == SINCE_START]
    assert [v.output_tokens for v in found if v.by == "all"] == [sum(lengths)]
    assert sum(v.requests for v in found if v.by == "tenant") == 400
    assert len([v for v in found if v.by == "tenant"]) == 6
