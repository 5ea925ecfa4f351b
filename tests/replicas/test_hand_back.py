"""A replica hands requests back: every token reaches the client once, then the attempt's end."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from replicas.engines import EngineSpec
from replicas.process_heap import freeze_heap
from replicas.protocol import (
    Delta,
    Engine,
    EngineDeadError,
    EngineTerms,
    Finished,
    Generation,
    ReplicaReport,
    pack_tokens,
)
from replicas.replica import Place, ReplicaActor
from replicas.reports import REPORT_INTERVAL_S
from tests.replicas.virtual_loop import virtually

CLIENT = "client"
PROMPT = list(range(20))
STEP_S = 0.004
ENGINE = {
    "policy": {"name": "a_min"},
    "kv_blocks": 16,
    "block_size": 16,
    "step_time": {
        "base_s": STEP_S,
        "per_prefill_token_s": 0.0,
        "per_decode_token_s": 0.0,
        "per_kv_token_s": 0.0,
    },
}
"""Memory for one answer of 200 tokens and a short one."""


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but Ray knows where a replica's process runs."""
    monkeypatch.setattr(ReplicaActor, "_place", lambda _: Place("n", "h", [0], []))


class Controller:
    """Stands where the controller's handle does, and keeps what is reported."""

    def __init__(self) -> None:
        self.report = self
        self.reports: list[ReplicaReport] = []

    async def remote(self, report: ReplicaReport) -> None:
        self.reports.append(report)

    async def finished(self, count: int) -> list[Finished]:
        """What ended, once so many have."""
        async with asyncio.timeout(20):
            while True:
                found = [ended for report in self.reports for ended in report.finished]
                if len(found) >= count:
                    return found
                await asyncio.sleep(STEP_S)


NUMBER = 7


class Replica:
    """A replica in this process, with the controller and a client that read from it."""

    def __init__(self) -> None:
        self.controller = Controller()
        self.actor = ReplicaActor("a", EngineSpec("simulated", "m", ENGINE), self.controller, 60.0)
        self._orders = itertools.count(1)
        self._read = 0
        self._deltas: list[Delta] = []

    @property
    def engine(self) -> Engine:
        return self.actor._started

    async def begin(
        self,
        name: str,
        tokens: int,
        so_far: Sequence[int] = (),
        attempt: int = 1,
        interactive: bool = False,
    ) -> None:
        """Start a request; the names' alphabet is the engine's order."""
        generation = Generation(
            name,
            CLIENT,
            pack_tokens([*PROMPT, *so_far]),
            generated_tokens=len(so_far),
            sampling={"max_tokens": 200, "extra_args": {"simulated_output_tokens": tokens}},
            attempt=attempt,
            interactive=interactive,
            terms=EngineTerms(
                mu=5.0,
                sigma=1.0,
                lower=max(1, len(so_far)),
                upper=200,
                key=float(ord(name)),
                arrival_s=0.0,
                evictions=attempt - 1,
            ),
        )
        await self.actor.act(NUMBER, next(self._orders), [], {}, [generation])

    async def recall(self, name: str, attempt: int = 1) -> None:
        await self.actor.act(NUMBER, next(self._orders), [], {name: attempt}, [])

    async def report(self, wanted: Callable[[ReplicaReport], bool]) -> ReplicaReport:
        """The first report like this."""
        async with asyncio.timeout(20):
            while True:
                for report in self.controller.reports:
                    if wanted(report):
                        return report
                await asyncio.sleep(STEP_S)

    async def deltas(self, name: str, attempt: int = 1) -> list[Delta]:
        """Those of one attempt, once it has ended."""
        async with asyncio.timeout(20):
            while True:
                found = [d for d in self._deltas if (d.request_id, d.attempt) == (name, attempt)]
                if found and found[-1].finish_reason is not None:
                    return found
                self._read, batch = await self.actor.take(CLIENT, self._read)
                self._deltas += batch


@asynccontextmanager
async def replica() -> AsyncIterator[Replica]:
    started = Replica()
    await started.actor.start(NUMBER, [])
    try:
        yield started
    finally:
        await started.actor.stop()


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


@virtually
async def test_a_request_that_was_evicted_goes_on_from_all_of_its_tokens() -> None:
    async with replica() as alone:
        await alone.begin("z", tokens=190)
        whole = tokens(await alone.deltas("z"))
    assert len(whole) == 190
    async with replica() as home, replica() as away:
        await home.begin("a", tokens=200)
        await home.begin("z", tokens=190)
        report = await home.report(lambda report: bool(report.stalled))
        assert list(report.stalled) == ["z"]
        state = report.stalled["z"]
        await home.recall("z")
        *_, end = first = await home.deltas("z")
        assert [d.finish_reason for d in first] == [None] * (len(first) - 1) + ["abort"]
        assert tokens(first) == whole[: state.tokens]
        assert (end.preemptions, state.evictions) == (1, 1)
        await away.begin("z", tokens=190, so_far=tokens(first), attempt=2)
        assert tokens(first) + tokens(await away.deltas("z", attempt=2)) == whole
        assert len(tokens(await home.deltas("a"))) == 200
        ends = await home.controller.finished(2)
        assert [(f.request_id, f.finish_reason, f.preemptions) for f in ends] == [
            ("z", "abort", 1),
            ("a", "stop", 0),
        ]


@virtually
async def test_all_that_the_engine_has_made_is_handed_back() -> None:
    async with replica() as home:
        # Nobody reads along, so that most tokens are held back for company.
        await home.begin("a", tokens=190)
        await asyncio.sleep(40 * STEP_S)
        await home.recall("a")
        made = len(home.engine.steps()) - 1  # but for the step in progress
        assert 190 > len(tokens(await home.deltas("a"))) >= made > 1


@virtually
async def test_who_waits_is_reported_at_once_with_what_the_others_hold() -> None:
    async with replica() as home:
        await home.begin("a", tokens=200)
        await home.report(lambda report: report.progress.get("a", 0) > 110)
        # Too large to start beside the other.
        await home.begin("z", tokens=190, so_far=range(110))
        report = await home.report(lambda report: "z" in report.stalled)
        assert (report.stalled["z"].tokens, report.stalled["z"].evictions) == (110, 0)
        assert report.progress.keys() == {"a", "z"}
        assert report.progress["a"] > 110


@virtually
async def test_what_the_engine_makes_after_the_recall_reaches_nobody() -> None:
    async with replica() as home:
        abort = home.engine.abort

        async def abort_late(request_ids: Sequence[str]) -> None:
            await asyncio.sleep(20 * STEP_S)
            await abort(request_ids)

        home.engine.abort = abort_late  # type: ignore[method-assign]
        await home.begin("a", tokens=190, interactive=True)
        await asyncio.sleep(20 * STEP_S)
        await home.recall("a")
        first = await home.deltas("a")
        delivered = len(tokens(first))
        assert 0 < delivered < 190
        assert home.engine.load().running == 0
        await home.begin("a", tokens=190, so_far=tokens(first), attempt=2)
        again = await home.deltas("a", attempt=2)
        assert delivered + len(tokens(again)) == 190
        assert await home.deltas("a") == first


@virtually
async def test_a_request_that_has_ended_keeps_its_end() -> None:
    async with replica() as home:
        await home.begin("a", tokens=5)
        await home.deltas("a")
        await home.recall("a")
        await home.begin("b", tokens=5)
        await home.deltas("b")
        assert [d.finish_reason for d in await home.deltas("a")][-1] == "stop"
        ends = await home.controller.finished(2)
        assert [(f.request_id, f.finish_reason) for f in ends] == [("a", "stop"), ("b", "stop")]


@virtually
async def test_a_recall_of_another_attempt_changes_nothing() -> None:
    async with replica() as home:
        await home.begin("a", tokens=50, attempt=2)
        await home.recall("a", attempt=1)
        assert (await home.deltas("a", attempt=2))[-1].finish_reason == "stop"


@virtually
async def test_orders_count_once_and_those_of_an_older_controller_not_at_all() -> None:
    async with replica() as one:
        await one.begin("a", tokens=150)
        await one.begin("b", tokens=150)
        await one.report(lambda report: "b" in report.progress)
        await one.actor.act(NUMBER - 1, 99, ["a"], {}, [])
        await one.actor.act(NUMBER, 2, ["b"], {}, [])  # the order that started it, come again
        adoption = await one.actor.adopt(NUMBER + 1)
        assert len(adoption.held) == 2
        assert adoption.info.max_num_seqs == 256
        await one.actor.act(NUMBER, 98, ["a", "b"], {}, [])
        assert len(tokens(await one.deltas("a"))) == 150
        await one.actor.act(NUMBER + 1, 1, ["b"], {}, [])
        assert not (await one.actor.adopt(NUMBER + 1)).held


@virtually
async def test_a_replica_tells_a_new_controller_everything_again() -> None:
    async with replica() as one:
        await one.begin("a", tokens=190)
        await one.report(lambda report: "a" in report.progress)
        one.controller.reports.clear()
        await one.actor.adopt(NUMBER + 1)
        await one.report(lambda report: "a" in report.progress)


@virtually
async def test_an_idle_replica_tells_a_new_controller_what_has_not_changed() -> None:
    async with replica() as one:
        await one.begin("a", tokens=5)
        await one.controller.finished(1)
        await asyncio.sleep(10 * REPORT_INTERVAL_S)
        one.controller.reports.clear()
        await asyncio.sleep(10 * REPORT_INTERVAL_S)
        assert not one.controller.reports
        adoption = await one.actor.adopt(NUMBER + 1)
        report = await one.report(lambda report: not report.progress)
        assert adoption.energy == report.energy


@virtually
async def test_what_a_replica_has_loaded_is_left_out_of_garbage_collections() -> None:
    gc.unfreeze()
    freeze_heap.cache_clear()
    async with replica():
        assert gc.get_freeze_count() > 10_000
    gc.unfreeze()


@virtually
async def test_a_replica_that_is_not_ready_is_not_adopted() -> None:
    with pytest.raises(EngineDeadError, match="has not been started"):
        await Replica().actor.adopt(NUMBER)
