"""Clients that are killed: what they asked for is freed, and others do not notice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from jobs.streams import Streams
from tests.faults.aftermath import wait_for
from tests.faults.clusters import load, play
from tests.faults.counts import counted
from tests.faults.one_cluster import REPLICAS, SLOTS
from tests.faults.processes import kill, pid_of

pytestmark = pytest.mark.faults


class Customer:
    """A client in a process of its own."""

    def __init__(self, controller: Any) -> None:
        self._client = ClusterClient(controller)

    async def ask(self, requests: list[GenerationRequest], tokens: int) -> None:
        """Start requests and wait until as many as can run have so many tokens."""
        await self._client.__aenter__()
        self._streams = Streams(self._client)
        begun = self._streams.start(requests)
        slots = REPLICAS * SLOTS
        await self._streams.until(lambda: sum(len(s.token_ids) >= tokens for s in begun) >= slots)


def customer(controller: Any, requests: list[GenerationRequest]) -> Any:
    """A customer whose requests run and wait."""
    actor: Any = ray.remote(Customer)
    made = actor.options(num_cpus=0, max_concurrency=16).remote(controller)
    ray.get(made.ask.remote(requests, 5))
    return made


def test_what_a_killed_client_ran_and_waited_for_is_freed(whole: Any) -> None:
    killed = customer(whole, load("killed", 3 * REPLICAS * SLOTS, tokens=3000))

    async def scenario(streams: Streams) -> None:
        streams.start(load("others", 6, tokens=20))
        kill(pid_of(killed))

    with counted(whole, client_lost=1):
        play(whole, scenario)


def test_its_successor_goes_on_with_the_same_requests(whole: Any) -> None:
    requests = load("resumed", 2 * REPLICAS * SLOTS, tokens=200)
    kill(pid_of(customer(whole, requests)))

    async def scenario(streams: Streams) -> None:
        streams.start(requests)

    play(whole, scenario)


def test_clients_that_come_and_go_leave_nothing(whole: Any) -> None:
    async def visit(number: int) -> None:
        async with ClusterClient(whole) as client:
            streams = Streams(client)
            first, *_ = streams.start(load(f"visit-{number}", 3, tokens=400))
            await streams.until(lambda: bool(first.token_ids))
            for stream in list(streams.streams):
                await streams.close(stream)

    async def visits() -> None:
        await asyncio.gather(*(visit(number) for number in range(12)))

    asyncio.run(visits())
    wait_for(whole, lambda s: not s.clients, "no client")
