"""What requests are told they cost, and idle power, make up what the meter counts (I9)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.energy import EnergyMeter, NullMeter
from replicas.energy_account import RequestEnergy
from replicas.metering import READ_INTERVAL_S, Metering
from replicas.modelled_meter import ModelledMeter
from replicas.power_model import modelled_device
from replicas.protocol import EnergyTotals, Generation, pack_tokens
from replicas.request_work import EngineStep
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_time import LinearStepTime
from tests.replicas.virtual_loop import VirtualLoop, run_virtually

IDLE_W = 100.0
DEVICE = modelled_device(
    {"idle_w": IDLE_W, "max_w": 400.0, "peak_flops_per_s": 1e3, "flops_per_token": 1.0}
)
STEP_TIME = LinearStepTime(0.01, 1e-3, 5e-4, 1e-5)
PROMPT_TOKENS = 12


class Interrupted(EnergyMeter):
    """A modelled meter that does not answer while `gap` is set, and then with the whole total."""

    def __init__(self) -> None:
        self._whole = ModelledMeter(DEVICE)
        self.source, self.idle_w = self._whole.source, self._whole.idle_w
        self.gap = False

    def worked(self, steps: tuple[EngineStep, ...], at_s: float) -> None:  # type: ignore[override]
        self._whole.worked(steps, at_s)

    def total_joules(self) -> float | None:
        return None if self.gap else self.whole_joules

    @property
    def whole_joules(self) -> float | None:
        return self._whole.total_joules()


@dataclass
class Replica:
    """A metered engine with memory for three or four answers, so that it evicts."""

    engine: SimulatedEngine = field(
        default_factory=lambda: SimulatedEngine(
            SimulatedEngineOptions(
                kv_blocks=28,
                block_size=4,
                max_num_seqs=8,
                max_num_batched_tokens=32,
                max_model_len=100,
                step_time=STEP_TIME,
            )
        )
    )
    meter: Interrupted = field(default_factory=Interrupted)
    told: dict[str, RequestEnergy | None] = field(default_factory=dict)
    waste: list[RequestEnergy] = field(default_factory=list)
    evicted: int = 0

    async def start(self) -> None:
        await self.engine.start()
        self.metering = Metering(self.meter, self.engine)
        self.open: set[str] = set()

    async def submit(self, name: str, tokens: int, generated: int = 0) -> None:
        generation = Generation(
            name,
            "c",
            pack_tokens(range(PROMPT_TOKENS + generated)),
            generated_tokens=generated,
            sampling={"max_tokens": 60, "extra_args": {"simulated_output_tokens": tokens}},
        )
        self.metering.begin(generation)
        self.open.add(name)
        await self.engine.submit([generation])

    async def abort(self, name: str) -> None:
        if name in self.open:
            self._end(name)
            await self.engine.abort([name])

    def _end(self, name: str) -> None:
        self.open.discard(name)
        self.told[name] = self.metering.end(name)

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds / READ_INTERVAL_S)):
            await asyncio.sleep(READ_INTERVAL_S)
            for delta in self.engine.drain():
                if delta.finish_reason is not None:
                    self.evicted += delta.preemptions
                    self._end(delta.request_id)
            self.metering.read()

    async def stop(self) -> None:
        """Let everything end, then a second of idle time."""
        self.meter.gap = False
        for _ in range(100):
            if not self.open:
                break
            await self.run(1.0)
        await self.run(1.0)
        await self.engine.stop()


def shares(totals: EnergyTotals) -> float:
    return totals.request_joules + totals.idle_joules + totals.unattributed_joules


moves = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 60), st.integers(0, 8)),
    st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("run"), st.integers(1, 30), st.just(0)),
    st.tuples(st.just("freeze"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("gap"), st.integers(1, 10), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, min_size=1, max_size=30), st.booleans())
def test_requests_and_idle_make_up_the_meter(
    schedule: list[tuple[str, int, int]], dies: bool
) -> None:
    async def main(loop: VirtualLoop) -> None:
        replica = Replica()
        await replica.start()
        for number, (move, amount, more) in enumerate(schedule):
            match move:
                case "submit":
                    generated = min(more, amount - 1)
                    await replica.submit(f"r{number}", amount, generated)
                case "abort":
                    await replica.abort(f"r{amount}")
                case "run":
                    await replica.run(amount / 10)
                case "freeze":
                    replica.engine.freeze()
                    await replica.run(amount / 10)
                    replica.engine.thaw()
                case "gap":
                    replica.meter.gap = True
                    await replica.run(amount / 10)
                    replica.meter.gap = False
            totals = replica.metering.totals
            assert shares(totals) == pytest.approx(totals.metered_joules, rel=1e-9)
        if dies:  # what it had is told at its end
            replica.engine.die()
            for name in list(replica.open):
                await replica.abort(name)
            replica.metering.read()
            totals = replica.metering.totals
            assert totals.metered_joules == replica.meter.whole_joules
            return
        await replica.stop()
        totals = replica.metering.totals
        assert totals.metered_joules == replica.meter.whole_joules
        assert totals.unattributed_joules < 0.01 * totals.metered_joules
        if any(move == "gap" for move, *_ in schedule):
            return  # what ended meanwhile was estimated
        rows = [energy for energy in replica.told.values() if energy is not None]
        told = sum(energy.joules for energy in rows) + totals.idle_joules
        assert told == pytest.approx(totals.metered_joules, rel=0.01)
        wasted = sum(energy.wasted_joules for energy in rows)
        assert wasted == pytest.approx(totals.wasted_joules, abs=0.01 * totals.metered_joules)

    run_virtually(main)


def test_evictions_cost_and_their_cost_is_waste() -> None:
    async def main(loop: VirtualLoop) -> tuple[Replica, EnergyTotals]:
        replica = Replica()
        await replica.start()
        for number in range(6):
            await replica.submit(f"r{number}", 50)
        await replica.stop()
        return replica, replica.metering.totals

    replica, totals = run_virtually(main)
    assert replica.evicted > 0
    assert 0 < totals.wasted_joules < 0.5 * totals.request_joules


def test_a_request_alone_costs_what_the_power_model_says_above_idle() -> None:
    async def main(loop: VirtualLoop) -> tuple[Replica, EnergyTotals]:
        replica = Replica()
        await replica.start()
        await replica.run(2.0)
        await replica.submit("r", 40)
        await replica.stop()
        return replica, replica.metering.totals

    replica, totals = run_virtually(main)
    contexts = range(PROMPT_TOKENS + 1, PROMPT_TOKENS + 40)
    seconds = [0.01 + 5e-4 + 1e-5 * context for context in contexts]
    prefill_s = 0.01 + 1e-3 * PROMPT_TOKENS
    above_idle = DEVICE.joules(PROMPT_TOKENS, prefill_s) - IDLE_W * prefill_s
    above_idle += sum(DEVICE.joules(1, s) - IDLE_W * s for s in seconds)
    energy = replica.told["r"]
    assert energy is not None
    assert energy.joules == pytest.approx(above_idle, rel=1e-6)
    assert totals.idle_w == IDLE_W


def test_nothing_is_counted_without_a_meter() -> None:
    async def main(loop: VirtualLoop) -> Metering:
        replica = Replica()
        await replica.engine.start()
        metering = Metering(NullMeter("none here"), replica.engine)
        metering.begin(Generation("r", "c", b""))
        metering.read()
        assert metering.end("r") is None
        await metering.forever()
        await replica.engine.stop()
        return metering

    assert run_virtually(main).totals == EnergyTotals()
