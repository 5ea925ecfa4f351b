"""A controller that is killed or frozen: running streams do not notice, others wait for it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from cluster.client import ClusterClient
from jobs.streams import Streams
from policies.request import RequestClass
from tests.faults.aftermath import status_of, wait_for
from tests.faults.clusters import load, pids, play, ready
from tests.faults.counts import counted
from tests.faults.one_cluster import REPLICAS, SLOTS
from tests.faults.processes import kill, ours, pid_of, stopped

pytestmark = pytest.mark.faults


def kill_controller(controller: Any) -> int:
    """SIGKILL to the controller's present process; its id."""
    pid = pid_of(controller)
    kill(pid)
    return pid


def test_tokens_come_while_there_is_no_controller(whole: Any) -> None:
    before = ready(whole, REPLICAS)

    async def scenario(streams: Streams) -> None:
        running = streams.start(load("running", REPLICAS * SLOTS, tokens=600))
        await streams.all_have(10)
        had = [len(s.token_ids) for s in running]
        pid = pid_of(whole)
        with stopped(pid):
            await streams.until(
                lambda: all(len(s.token_ids) > n + 50 for s, n in zip(running, had, strict=True))
            )
            newcomers = streams.start(load("newcomers", 8, tokens=20))
            await asyncio.sleep(0.2)
            kill(pid)
        await streams.until(lambda: all(s.ended for s in newcomers))

    play(whole, scenario)
    assert ready(whole, REPLICAS) == before, "replicas outlive their controller"


def test_killed_at_random_instants_under_load(whole: Any) -> None:
    before = ready(whole, REPLICAS)
    instants = random.Random(5)

    async def scenario(streams: Streams) -> None:
        for number in range(3):
            streams.start(load(f"online-{number}", 20, tokens=100))
            streams.start(
                load(f"offline-{number}", 20, tokens=60, request_class=RequestClass.OFFLINE)
            )
            await asyncio.sleep(instants.uniform(0.0, 1.0))
            await asyncio.to_thread(kill_controller, whole)

    play(whole, scenario)
    assert ready(whole, REPLICAS) == before


def test_killed_together_with_every_replica(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("everything", REPLICAS * SLOTS, tokens=150, seed=3))
        await streams.all_have(10)
        kill(pid_of(whole), *pids(ready(whole, REPLICAS)))

    play(whole, scenario)


def test_killed_together_with_a_replica_and_again_while_it_is_replaced(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("loading", REPLICAS * SLOTS, tokens=300))
        await streams.all_have(10)
        kill(pid_of(whole), *pids(ready(whole, REPLICAS)[:1]))
        await asyncio.to_thread(
            wait_for, whole, lambda s: any(r.state in ("placing", "loading") for r in s.replicas)
        )
        kill_controller(whole)

    with counted(whole, controller_restarted=2):
        play(whole, scenario)


def test_frozen_for_a_while(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("paused", REPLICAS * SLOTS, tokens=200))
        await streams.all_have(10)
        with stopped(pid_of(whole)):
            streams.start(load("meanwhile", 8, tokens=20))
            await asyncio.sleep(1.0)

    play(whole, scenario)


def test_streams_that_are_closed_meanwhile_are_aborted_afterwards(whole: Any) -> None:
    async def scenario(streams: Streams) -> None:
        leaving = streams.start(load("leaving", REPLICAS * SLOTS, tokens=3000))
        await streams.all_have(5)
        pid = pid_of(whole)
        with stopped(pid):
            for stream in leaving:
                await streams.close(stream)
            kill(pid)
        await asyncio.to_thread(wait_for, whole, lambda s: not s.running)

    play(whole, scenario)


def test_a_client_that_leaves_meanwhile_is_forgotten(whole: Any) -> None:
    """It cannot say goodbye, so that what it ran ends by its silence."""

    async def leave() -> None:
        async with ClusterClient(whole) as client:
            streams = Streams(client)
            started = streams.start(load("silent", SLOTS, tokens=3000))
            await streams.all_have(5)
            kill_controller(whole)
            for stream in started:
                await streams.close(stream)

    asyncio.run(leave())


def test_predictors_are_not_started_twice(whole: Any) -> None:
    def predictors() -> set[str]:
        return {title.rpartition(" ")[2] for title in ours() if "PredictorActor" in title}  # pids

    before = predictors()
    kill_controller(whole)
    status_of(whole)
    for _ in range(600):
        now = predictors()
        if len(now) == 1 and now.isdisjoint(before):
            return
        time.sleep(0.1)
    raise AssertionError(f"{now} are there, {before} were")
