"""A replica's metering while its engine runs in real time."""

from __future__ import annotations

import asyncio

import pytest

from replicas.energy import EnergyMeter
from replicas.metering import Metering
from replicas.modelled_meter import ModelledMeter
from replicas.power_model import modelled_device
from replicas.protocol import Generation, pack_tokens
from replicas.request_work import DEFAULT_WEIGHTS
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_time import LinearStepTime

STEP_TIME = LinearStepTime(0.004, 2e-4, 3e-4, 2e-6)


def generation(number: int) -> Generation:
    return Generation(
        f"r{number}",
        "c",
        pack_tokens(range(10 + 7 * number)),
        sampling={
            "max_tokens": 200,
            "extra_args": {"simulated_output_tokens": 60 + 5 * number},
        },
    )


async def test_work_is_weighed_by_the_engine_s_own_steps_once_there_are_enough() -> None:
    options = SimulatedEngineOptions(step_time=STEP_TIME, time_scale=20.0, max_num_seqs=4)
    engine = SimulatedEngine(options)
    await engine.start()
    device = modelled_device("a100_sxm", flops_per_token=1e10)
    metering = Metering(ModelledMeter(device), engine)
    assert metering.weights == DEFAULT_WEIGHTS
    reading = asyncio.create_task(metering.forever())
    generations = [generation(number) for number in range(24)]
    for one in generations:
        metering.begin(one)
    await engine.submit(generations)
    async with asyncio.timeout(60):
        while metering.weights == DEFAULT_WEIGHTS:
            await asyncio.sleep(0.01)
    reading.cancel()
    await engine.stop()
    for name in ("base_s", "per_prefill_token_s", "per_decode_token_s", "per_kv_token_s"):
        fitted, true = getattr(metering.weights, name), getattr(STEP_TIME, name)
        assert fitted == pytest.approx(true, rel=0.01), name


class StumblingMeter(EnergyMeter):
    """A hundred joules more at each reading, of which some raise what nobody expects."""

    source = "stumbling"

    def __init__(self, *fails_at: int) -> None:
        self._fails_at = fails_at
        self.readings = 0

    def total_joules(self) -> float:
        self.readings += 1
        if self.readings in self._fails_at:
            raise KeyError("driver")
        return 100.0 * self.readings


async def test_a_meter_that_fails_is_read_again_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = SimulatedEngine(SimulatedEngineOptions())
    metering = Metering(StumblingMeter(1, 3, 4, 6), engine)
    joules = []
    for _ in range(6):
        metering.read()
        joules.append(metering.totals.metered_joules)
    assert joules == [200.0, 200.0, 200.0, 500.0, 500.0, 700.0]
    assert sum("stumbling fails" in record.message for record in caplog.records) == 3
