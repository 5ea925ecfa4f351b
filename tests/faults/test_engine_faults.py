"""Faults of real vLLM engines: one that is frozen while its replica answers, and real poison."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.messages import Cause
from jobs.streams import Stream, follow
from tests.faults.aftermath import assert_nothing_left, wait_until_whole
from tests.faults.clusters import local_cluster
from tests.faults.processes import pid_of, replica, stopped

# On a busy machine two engines take minutes to start, and they are started and replaced here.
pytestmark = [pytest.mark.faults, pytest.mark.engine, pytest.mark.timeout(900)]

REPLICAS = 2
CHUNK_TOKENS = 128
"""Prompts above it are prefilled in chunks, of which vLLM's CPU build dies if they are seeded."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    config = parse_config(
        {
            "replicas": {
                "count": REPLICAS,
                "device": "cpu",
                "max_model_len": 512,
                "kv_cache_gib": 0.25,
                "frozen_after_s": 10.0,
                "engine_args": {
                    "enable_chunked_prefill": True,
                    "max_num_batched_tokens": CHUNK_TOKENS,
                },
            },
            "predictor": {"network": "none"},
        }
    )
    with local_cluster(config) as controller:
        yield controller


def request(name: str, number: int, prompt_tokens: int = 40, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"{name}/{number}",
        prompt_token_ids=[(number * 31 + 7 * k) % 4000 + 100 for k in range(prompt_tokens)],
        max_tokens=100,
        sampling={"temperature": 0.0, "ignore_eos": True, **sampling},
    )


async def complete(client: ClusterClient, requests: list[GenerationRequest]) -> list[Completion]:
    return list(await asyncio.gather(*(client.complete(request) for request in requests)))


def engine_core(replica_id: str) -> int:
    """Process id of a replica's engine core."""
    actor = psutil.Process(pid_of(replica(replica_id)))
    core = max(actor.children(), key=lambda process: process.memory_info().rss)
    return int(core.pid)


def test_a_frozen_engine_core_is_found_though_its_replica_answers(cluster: Any) -> None:
    requests = [request("frozen", number) for number in range(8)]

    async def played() -> None:
        async with ClusterClient(cluster) as client:
            undisturbed = await complete(client, requests)
            streams = [Stream(request, 0.0) for request in requests]
            following = [asyncio.create_task(follow(client, stream)) for stream in streams]
            while not all(stream.token_ids for stream in streams):
                await asyncio.sleep(0.02)
            names = [r.replica_id for r in (await client.status()).replicas]
            with stopped(engine_core(names[0])):
                await asyncio.gather(*following)
            # Another batch adds up its numbers in another order, and a near tie may turn: what had
            # come before must be there, and each answer must be whole.
            for stream, before in zip(streams, undisturbed, strict=True):
                assert stream.error is None
                assert len(stream.token_ids) == len(before.token_ids)

    asyncio.run(played())
    assert_nothing_left(cluster, REPLICAS)


def test_real_poison_is_found_and_fails_alone(cluster: Any) -> None:
    wait_until_whole(cluster, REPLICAS)

    async def played() -> None:
        async with ClusterClient(cluster) as client:
            poison = request("poison", 0, 2 * CHUNK_TOKENS, seed=1, temperature=1.0)
            stream = Stream(poison, 0.0)
            poisoned = asyncio.create_task(follow(client, stream))
            others = await complete(client, [request("others", number) for number in range(8)])
            await poisoned
            assert stream.error is not None
            assert stream.error.cause is Cause.POISON
            assert [len(c.token_ids) for c in others] == [100] * len(others)

    asyncio.run(played())
    assert_nothing_left(cluster, REPLICAS)
