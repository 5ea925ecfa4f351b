"""A replica tells what each attempt cost, however it ended, and totals that hold all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from replicas.detect_meter import MeterChoice
from replicas.engines import EngineSpec
from replicas.power_model import modelled_device
from replicas.protocol import Delta, EnergyTotals, Finished, Generation, ReplicaReport, pack_tokens
from replicas.replica import Place, ReplicaActor
from tests.replicas.virtual_loop import virtually

STEP_S = 0.004
ENGINE = {
    "kv_blocks": 64,
    "block_size": 16,
    "step_time": {
        "base_s": STEP_S,
        "per_prefill_token_s": 1e-5,
        "per_decode_token_s": 1e-5,
        "per_kv_token_s": 0.0,
    },
}
MODELLED = MeterChoice(
    device=modelled_device(
        {"idle_w": 50.0, "max_w": 300.0, "peak_flops_per_s": 1e4, "flops_per_token": 1.0}
    )
)
CLIENT = "client"


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

    @property
    def finished(self) -> dict[tuple[str, int], Finished]:
        ends = [ended for report in self.reports for ended in report.finished]
        return {(ended.request_id, ended.attempt): ended for ended in ends}

    async def reported(self, wanted: Callable[[ReplicaReport], Any]) -> ReplicaReport:
        async with asyncio.timeout(20):
            while not (found := [r for r in self.reports if wanted(r)]):
                await asyncio.sleep(STEP_S)
        return found[0]


class Replica:
    def __init__(self, energy: MeterChoice) -> None:
        self.controller = Controller()
        spec = EngineSpec("simulated", "m", ENGINE, energy)
        self.actor = ReplicaActor("a", spec, self.controller, 60.0)
        self._order = 0

    async def act(
        self,
        *begin: Generation,
        abort: tuple[str, ...] = (),
        recall: dict[str, int] | None = None,
    ) -> None:
        self._order += 1
        await self.actor.act(1, self._order, list(abort), recall or {}, list(begin))

    async def end(self, name: str, attempt: int = 1) -> Finished:
        await self.controller.reported(lambda _: (name, attempt) in self.controller.finished)
        return self.controller.finished[name, attempt]


@asynccontextmanager
async def replica(energy: MeterChoice = MODELLED) -> AsyncIterator[Replica]:
    started = Replica(energy)
    await started.actor.start(1, [])
    try:
        yield started
    finally:
        await started.actor.stop()


def generation(name: str, tokens: int, attempt: int = 1, max_tokens: int = 200) -> Generation:
    extra = {"simulated_output_tokens": tokens}
    sampling = {"max_tokens": max_tokens, "extra_args": extra}
    return Generation(
        name, CLIENT, pack_tokens(range(20)), 0, sampling, attempt, 0, interactive=False
    )


@virtually
async def test_every_end_tells_what_the_attempt_cost_and_the_totals_hold_it() -> None:
    async with replica() as one:
        await one.act(*(generation(name, 150) for name in ("whole", "unwanted", "recalled")))
        await one.act(generation("refused", 5, max_tokens=10_000))
        running = {"whole", "unwanted", "recalled"}
        await one.controller.reported(
            lambda r: r.energy.request_joules > 0 and all(r.progress.get(i) for i in running)
        )
        await one.act(abort=("unwanted",), recall={"recalled": 1})
        reasons = {}
        for name in (*running, "refused"):
            ended = await one.end(name)
            reasons[name] = ended.finish_reason
            assert ended.energy_joules is not None
            assert (ended.energy_joules > 0) == (name in running)
            assert ended.wasted_joules == 0
            assert (ended.first_token_s is not None) == (name in running)
            assert ended.running_s >= (ended.first_token_s or 0.0)
        assert reasons == {
            "whole": "stop",
            "unwanted": "abort",
            "recalled": "abort",
            "refused": "error",
        }
        ends = one.controller.finished
        assert len(ends) == 4, "each end is told once"
        told = sum(ended.energy_joules or 0.0 for ended in ends.values())
        counted = one.controller.reports[-1].energy.metered_joules
        # What was estimated at an end is booked by the next reading.
        later = await one.controller.reported(lambda r: r.energy.metered_joules > counted)
        last = later.energy
        assert last.source == "model:declared"
        assert last.request_joules == pytest.approx(told, rel=0.01)
        shares = last.request_joules + last.idle_joules + last.unattributed_joules
        assert shares == pytest.approx(last.metered_joules, rel=1e-9)
        assert last.idle_w == 50.0


@virtually
async def test_the_last_delta_says_what_the_attempt_cost() -> None:
    async with replica() as one:
        await one.act(generation("a", 20))
        ended = await one.end("a")
        deltas: list[Delta] = []
        received = 0
        while not deltas or deltas[-1].finish_reason is None:
            received, batch = await one.actor.take(CLIENT, received)
            deltas += batch
        assert all(delta.energy_joules is None for delta in deltas[:-1])
        assert deltas[-1].energy_joules == ended.energy_joules
        assert deltas[-1].wasted_joules == ended.wasted_joules == 0.0


@virtually
async def test_an_attempt_that_is_replaced_keeps_what_it_cost() -> None:
    async with replica() as one:
        await one.act(generation("a", 150))
        await one.controller.reported(lambda r: r.progress.get("a"))
        await one.act(generation("a", 20, attempt=2))
        earlier, later = await one.end("a", 1), await one.end("a", 2)
        assert (earlier.finish_reason, later.finish_reason) == ("abort", "stop")
        assert (earlier.energy_joules or 0) > 0
        assert (later.energy_joules or 0) > 0


@virtually
async def test_a_replica_without_work_goes_on_reporting_its_energy() -> None:
    async with replica() as one:
        first = await one.controller.reported(lambda r: r.energy.metered_joules > 0)
        counted = first.energy.metered_joules
        later = await one.controller.reported(lambda r: r.energy.metered_joules > counted)
        assert later.energy.idle_joules == later.energy.metered_joules


@virtually
async def test_a_replica_that_is_not_metered_says_so_and_reports_no_more_than_before() -> None:
    async with replica(MeterChoice()) as one:
        await one.act(generation("a", 5))
        ended = await one.end("a")
        assert (ended.energy_joules, ended.wasted_joules) == (None, None)
        assert ended.first_token_s is not None
        assert all(report.energy == EnergyTotals() for report in one.controller.reports)
