"""Replicas that are killed, frozen or slow: streams go on, whole, on others."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from jobs.streams import Streams
from policies.request import RequestClass
from tests.faults.aftermath import wait_until_whole
from tests.faults.clusters import busiest, load, pids, play, ready
from tests.faults.counts import counted
from tests.faults.one_cluster import REPLICAS, SLOTS
from tests.faults.processes import inside, kill, replica, stopped

pytestmark = pytest.mark.faults


def test_killed_before_the_first_token(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("before", 6, tokens=30, prompt_tokens=5000))  # some seconds without one
        victim = await asyncio.to_thread(busiest, whole)
        kill(*pids([victim]))
        assert not any(s.token_ids for s in streams.streams), "the kill came too late to matter"

    play(whole, scenario)


def test_killed_after_the_first_tokens(whole: Any) -> None:
    """Some can be continued, some must start again unnoticed, and offline work waits behind."""

    async def scenario(streams: Streams) -> None:
        online = streams.start(load("greedy", 8))
        online += streams.start(load("seeded", 8, seed=7))
        online += streams.start(load("stopping", 8, stop=["never said"]))
        streams.start(load("offline", 16, tokens=60, request_class=RequestClass.OFFLINE))
        await streams.until(lambda: all(len(s.token_ids) > 10 for s in online))
        kill(*pids(ready(whole, REPLICAS)[:2]))

    with counted(whole, replica_process_died=2, replica_replaced=2):
        play(whole, scenario)


def test_all_killed_at_once_requests_wait_for_the_replacements(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("all", 2 * SLOTS))
        await streams.all_have(10)
        kill(*pids(ready(whole, REPLICAS)))
        streams.start(load("newcomers", 4, tokens=20))

    play(whole, scenario)


def test_killed_again_and_again(whole: Any) -> None:
    instants = random.Random(11)

    async def scenario(streams: Streams) -> None:
        for number in range(3):
            streams.start(load(f"again-{number}", SLOTS, tokens=300))
            names = await asyncio.to_thread(ready, whole, REPLICAS)
            await asyncio.sleep(instants.uniform(0.0, 0.5))
            kill(*pids([instants.choice(names)]))

    play(whole, scenario)


def test_frozen_process_is_found_by_its_silence(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("frozen", 3 * SLOTS))
        await streams.all_have(10)
        name = busiest(whole)
        with stopped(*pids([name])):
            await streams.all_ended()
            await asyncio.to_thread(wait_until_whole, whole, REPLICAS)
        assert name not in ready(whole, REPLICAS)

    with counted(whole, replica_frozen=1, replica_process_died=0, replica_replaced=1):
        play(whole, scenario)


def test_frozen_engine_is_found_though_its_replica_answers(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("stuck", 3 * SLOTS))
        await streams.all_have(10)
        name = busiest(whole)
        await asyncio.to_thread(inside, replica(name), lambda actor: actor._engine.freeze())
        await streams.all_ended()
        assert name not in ready(whole, REPLICAS)

    play(whole, scenario)


def test_a_pause_is_no_death(whole: Any) -> None:
    before = ready(whole, REPLICAS)

    async def scenario(streams: Streams) -> None:
        streams.start(load("pause", 2 * SLOTS))
        await streams.all_have(10)
        with stopped(*pids(before)):
            await asyncio.sleep(0.5)

    play(whole, scenario)
    assert ready(whole, REPLICAS) == before


def test_a_dead_engine_takes_its_process_along(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("died", 3 * SLOTS))
        await streams.all_have(10)
        name = busiest(whole)
        replica(name).__ray_call__.remote(lambda actor: actor._engine.die("on purpose"))
        await streams.all_ended()
        assert name not in ready(whole, REPLICAS)

    with counted(whole, replica_engine_died=1, replica_process_died=0, replica_replaced=1):
        play(whole, scenario)


def ten_times_slower(actor: Any) -> None:
    object.__setattr__(actor._engine._options, "time_scale", 0.1)


def test_a_slow_replica_is_routed_around(whole: Any) -> None:
    slow = ready(whole, REPLICAS)[0]
    inside(replica(slow), ten_times_slower)

    async def replicas_of(requests: list[GenerationRequest]) -> set[str]:
        async with ClusterClient(whole) as client:
            done = await asyncio.gather(*(client.complete(request) for request in requests))
        assert not any(completion.error for completion in done)
        return {completion.replica_id for completion in done}

    async def scenario(streams: Streams) -> None:
        measured = streams.start(load("measured", REPLICAS * SLOTS, tokens=300))
        fast = (REPLICAS - 1) * SLOTS
        await streams.until(lambda: sum(s.ended for s in measured) >= fast)
        around = await replicas_of(load("around", fast, tokens=20))
        assert slow not in around
        kill(*pids([slow]))

    play(whole, scenario)
