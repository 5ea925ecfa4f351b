"""Clusters to break, and scenarios to play on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig, parse_config
from cluster.lifecycle import running_cluster
from jobs.known_answers import request_of
from jobs.streams import Streams
from tests.faults.aftermath import (
    PATIENCE_S,
    assert_all_whole,
    assert_no_process_left,
    wait_for,
    wait_until_whole,
)
from tests.faults.processes import pid_of, replica
from tests.local_ray import local_ray

Scenario = Callable[[Streams], Awaitable[None]]

STEP_TIME = {
    "base_s": 0.01,
    "per_prefill_token_s": 1e-3,
    "per_decode_token_s": 0.0,
    "per_kv_token_s": 0.0,
}
"""Steps of 10 ms; a long prompt has no token for a while."""


def simulated(
    count: int, slots: int, replicas: Mapping[str, Any] | None = None, **sections: Any
) -> ClusterConfig:
    """A cluster of simulated engines that steps in real time and forecasts by the prior."""
    settings = {
        "engine": "simulated",
        "count": count,
        "max_num_seqs": slots,
        "max_model_len": 8192,
        "engine_args": {"step_time": STEP_TIME},
        **(replicas or {}),
    }
    return parse_config({"predictor": {"network": "none"}, "replicas": settings, **sections})


@contextlib.contextmanager
def local_cluster(config: ClusterConfig, **ray_options: Any) -> Iterator[Any]:
    """The controller of a cluster in a Ray of its own, of which nothing stays."""
    with local_ray(**ray_options):
        with running_cluster(config) as (controller, _):
            yield controller
        assert_no_process_left()


def play(controller: Any, scenario: Scenario) -> None:
    """Play a scenario; then all of its streams must end, each of them whole."""

    async def played() -> None:
        async with ClusterClient(controller) as client:
            streams = Streams(client)
            await scenario(streams)
            await streams.all_ended(PATIENCE_S)
            assert_all_whole(streams.streams)

    asyncio.run(played())


def load(name: str, count: int, tokens: int = 150, **options: Any) -> list[GenerationRequest]:
    """Requests of about `tokens` output tokens each; `options` as for `request_of`."""
    return [request_of(name, i, output_tokens=tokens + i, **options) for i in range(count)]


def ready(controller: Any, count: int) -> list[str]:
    """Names of the replicas, once all `count` of them serve."""
    return sorted(r.replica_id for r in wait_until_whole(controller, count).replicas)


def busiest(controller: Any) -> str:
    """The replica that runs most, once one runs something."""
    status = wait_for(controller, lambda s: any(r.running for r in s.replicas), "work")
    return max(status.replicas, key=lambda r: r.running).replica_id


def pids(names: list[str]) -> list[int]:
    """Process ids of replicas."""
    return [pid_of(replica(name)) for name in names]
