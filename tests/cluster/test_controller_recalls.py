"""What the controller tells replicas and clients when a request is recalled, without Ray."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cluster.config import parse_config
from cluster.membership.member import Member
from cluster.messages import Orphaned, Submission
from cluster.scheduler import Recall
from policies.request import RequestClass
from replicas.protocol import (
    EnergyTotals,
    EngineInfo,
    EngineLoad,
    Finished,
    Generation,
    ReplicaReport,
    Stalled,
)
from tests.cluster.controlled import Controlled
from tests.cluster.running import Running

CLIENT = "client"
INFO = EngineInfo("m", kv_blocks=16, block_size=16, max_num_seqs=8, max_model_len=256)


class Told:
    """Stands where the handle of a replica's actor does, and keeps what it is told."""

    def __init__(self) -> None:
        self.act = self
        self.recalls: dict[str, int] = {}
        self.starts: dict[str, Generation] = {}

    async def remote(
        self,
        number: int,
        order: int,
        aborts: list[str],
        recalls: dict[str, int],
        starts: list[Generation],
    ) -> None:
        self.recalls |= recalls
        self.starts |= {generation.request_id: generation for generation in starts}


class Cluster:
    """A controller with two replicas: `home` is full of requests, `away` joined later."""

    def __init__(self, **sampling: Any) -> None:
        config = parse_config({"model": "m", "policy": {"name": "a_min"}})
        self.control = Running(config.model_dump(mode="json"))
        self.members = {}
        self._sampling = sampling

    async def full(self) -> None:
        """Five requests run on one replica, which has had to evict the last; the other is empty."""
        self.join("home")
        await self.submit(*(self.submission(number) for number in range(5)))
        await self.decide()
        assert len(self.told("home").starts) == 5
        self.join("away")
        self.stalled_at = 50
        others = {f"r{number}": self.stalled_at for number in range(4)}
        stalled = {"r4": Stalled(tokens=self.stalled_at, evictions=1)}
        await self.control.report(self.report(progress=others, stalled=stalled))

    def join(self, name: str) -> None:
        member = Member(len(self.members), name)
        member.info, member.handle = INFO, Told()
        self.members[name] = member
        self.control._desk.replica_ready(member)

    def told(self, name: str) -> Told:
        told = self.members[name].handle
        assert isinstance(told, Told)
        return told

    def submission(self, number: int, attempt: int = 1, generated: int = 0) -> Submission:
        return Submission(
            generation=Generation(
                f"r{number}",
                CLIENT,
                b"",
                generated_tokens=generated,
                sampling=self._sampling,
                attempt=attempt,
            ),
            prompt_tokens=10,
            max_tokens=100,
            request_class=RequestClass.OFFLINE,
            text="What is asked.",
            evictions=attempt - 1,
        )

    async def submit(self, *submissions: Submission) -> None:
        await self.control.submit(CLIENT, list(submissions))

    async def decide(self) -> list[Recall]:
        """One round of decisions; the recalls among them."""
        actions = self.control._state.scheduler.decide(time.monotonic())
        self.control._carry_out(actions)
        await asyncio.gather(*self.control._tasks)
        return [action for action in actions if isinstance(action, Recall)]

    def report(
        self,
        progress: dict[str, int] | None = None,
        finished: list[Finished] | None = None,
        stalled: dict[str, Stalled] | None = None,
    ) -> ReplicaReport:
        return ReplicaReport(
            "home", progress or {}, finished or [], EngineLoad(), EnergyTotals(), 0.0, stalled or {}
        )

    async def end(self, number: int, reason: str, tokens: int, attempt: int = 1) -> None:
        """One of the home's requests ends there, evicted once."""
        ended = Finished(f"r{number}", CLIENT, attempt, tokens, reason, preemptions=1)
        await self.control.report(self.report(finished=[ended]))

    def rooms(self) -> dict[str, list[str]]:
        """Whose room each replica's ledger keeps."""
        fleet = self.control._state.scheduler.fleet
        return {ledger.replica.replica_id: sorted(ledger.request_ids) for ledger in fleet}


async def test_a_recalled_request_goes_on_with_what_is_known_of_it() -> None:
    cluster = Cluster()
    await cluster.full()
    first = cluster.told("home").starts["r4"].terms
    cluster.control._state.forecasting._questions.take(5)
    assert await cluster.decide() == [Recall("r4", "home", "away")]
    assert cluster.told("home").recalls == {"r4": 1}
    await cluster.end(4, "abort", tokens=50)
    assert (await cluster.control.status()).running == 5, "it has not ended"
    await cluster.submit(cluster.submission(4, attempt=2, generated=52))
    await cluster.decide()
    second = cluster.told("away").starts["r4"]
    assert (second.attempt, second.generated_tokens) == (2, 52)
    assert first is not None
    assert second.terms is not None
    assert (first.evictions, second.terms.evictions) == (0, 1)
    assert (second.terms.key, second.terms.arrival_s) == (first.key, first.arrival_s)
    assert second.terms.precedence == RequestClass.OFFLINE
    assert second.terms.lower == 52 > first.lower
    assert not cluster.control._state.forecasting.remembered, "its forecast was asked for again"
    status = await cluster.control.status()
    assert (status.recalls, status.preemptions, status.recomputed_tokens) == (1, 1, 62)


async def test_a_recall_that_comes_too_late_ends_the_request_once() -> None:
    cluster = Cluster()
    await cluster.full()
    assert await cluster.decide()
    await cluster.end(4, "stop", tokens=60)
    await cluster.end(4, "stop", tokens=60)
    status = await cluster.control.status()
    assert (status.finished, status.running, status.waiting) == (1, 4, 0)
    assert cluster.rooms() == {"home": ["r0", "r1", "r2", "r3"], "away": []}
    assert "r4" not in cluster.control._state.open


async def test_a_request_that_is_cancelled_on_its_way_leaves_nothing() -> None:
    cluster = Cluster()
    await cluster.full()
    assert await cluster.decide()
    await cluster.control.cancel(CLIENT, ["r4"])
    await cluster.end(4, "abort", tokens=50)
    assert (await cluster.control.status()).running == 4
    assert cluster.rooms() == {"home": ["r0", "r1", "r2", "r3"], "away": []}


async def test_the_client_hears_of_a_lost_source_and_names_the_attempt() -> None:
    cluster = Cluster()
    await cluster.full()
    assert await cluster.decide()
    await cluster.control.take(CLIENT, 0, cluster.control._state.number)
    cluster.control._desk.replica_lost(cluster.members["home"])
    _, events, _ = await cluster.control.take(CLIENT, 1, cluster.control._state.number)
    assert events == [Orphaned("home", {f"r{number}": 1 for number in range(5)})]
    assert cluster.rooms() == {"away": []}
    assert not cluster.control._state.open


async def test_the_room_at_a_lost_destination_is_looked_for_again() -> None:
    cluster = Cluster()
    await cluster.full()
    assert await cluster.decide()
    cluster.control._desk.replica_lost(cluster.members["away"])
    assert (await cluster.control.status()).running == 5
    cluster.join("third")
    await cluster.submit(cluster.submission(4, attempt=2, generated=50))
    await cluster.decide()
    assert "r4" in cluster.told("third").starts


async def test_what_cannot_be_continued_is_not_recalled() -> None:
    cluster = Cluster(seed=0)
    await cluster.full()
    assert not await cluster.decide()


async def test_a_client_learns_at_once_of_a_controller_that_it_does_not_know() -> None:
    control = Cluster().control
    number = control._state.number
    async with asyncio.timeout(5):
        for known in (0, number - 1):
            assert await control.take(CLIENT, 7, known) == (0, [], number)


async def test_a_task_that_fails_is_told_of_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ZeroDivisionError("within a task")

    cluster = Controlled()
    cluster.control._spawn(fails())
    (task,) = cluster.control._tasks  # what nobody holds, asyncio itself tells of
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "within a task" in caplog.text
