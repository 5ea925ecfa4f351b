"""Invariant I9 in virtual time: what the replicas draw is idle power and what requests cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from cluster.virtual_replica import FleetSpec
from replicas.power_model import ModelledDevice, PowerModel
from replicas.step_time import StepTimeModel, UnitStepTime
from tests.cluster.simulated import LINEAR, chunk, fleet, rows_of

DEVICE = ModelledDevice("made-up", PowerModel(90.0, 400.0), 300e12, 16e9)


def metered(
    replicas: int = 2,
    kv_blocks: int = 120,
    look_ahead: int = 0,
    on_eviction: Literal["recompute", "restart"] = "recompute",
    step_time: StepTimeModel = LINEAR,
) -> FleetSpec:
    spec = fleet(replicas, kv_blocks)
    return replace(
        spec, look_ahead=look_ahead, on_eviction=on_eviction, step_time=step_time, power=DEVICE
    )


@pytest.mark.parametrize("name", ["fcfs", "a_min", "tiebreak"])
@pytest.mark.parametrize("rate", [0.0, 30.0])
@pytest.mark.parametrize("spec", [metered(), metered(look_ahead=2), metered(on_eviction="restart")])
def test_requests_and_idle_sum_to_the_meter(name: str, rate: float, spec: FleetSpec) -> None:
    result, rows = rows_of([chunk(120, rate, offline_share=0.3)], spec, name)
    energy = result.energy
    assert energy is not None
    assert energy.source == "model:made-up"
    assert energy.request_joules + energy.idle_joules == pytest.approx(energy.metered_joules, 1e-9)
    assert rows.energy_joules.sum() == pytest.approx(energy.request_joules, 1e-9)
    assert rows.wasted_joules.sum() == pytest.approx(energy.wasted_joules, 1e-9)
    assert energy.idle_joules == pytest.approx(2 * 90.0 * result.makespan_s)
    assert (rows.energy_joules > 0).all()
    assert (rows.wasted_joules < rows.energy_joules).all()
    assert set(rows.energy_source) == {"model:made-up"}
    if spec.on_eviction == "recompute":
        assert ((rows.wasted_joules > 0) == (rows.recomputed_tokens > 0)).all()
    if name == "fcfs":
        assert result.evictions > 0
        assert energy.wasted_joules > 0


def test_other_step_times_are_shared_in_full_too() -> None:
    result, rows = rows_of([chunk(60)], metered(step_time=UnitStepTime()), "fcfs")
    assert result.energy is not None
    assert rows.energy_joules.sum() == pytest.approx(result.energy.request_joules, 1e-9)
    assert result.energy.request_joules + result.energy.idle_joules == pytest.approx(
        result.energy.metered_joules, 1e-9
    )


def test_a_request_alone_pays_for_its_own_steps() -> None:
    result, rows = rows_of([chunk(1)], metered(replicas=1), "fcfs")
    (row,) = rows.itertuples()
    steps_s = [LINEAR.base_s + LINEAR.per_prefill_token_s * row.prompt_tokens]
    steps_s.append(LINEAR.decode_seconds(1, row.prompt_tokens + 1, row.output_tokens - 1))
    tokens = [row.prompt_tokens, row.output_tokens - 1]
    above_idle = sum((DEVICE.watts(n, s) - 90.0) * s for n, s in zip(tokens, steps_s, strict=True))
    assert row.energy_joules == pytest.approx(above_idle, 1e-9)
    assert row.wasted_joules == 0
    assert result.energy is not None
    assert result.energy.idle_joules == pytest.approx(90.0 * sum(steps_s))


def test_policies_that_evict_less_waste_less_on_the_same_requests() -> None:
    workload = chunk(300)
    greedy, _ = rows_of([workload], metered(), "fcfs")
    known, _ = rows_of([workload], metered(), "h_sf")
    assert greedy.energy is not None
    assert known.energy is not None
    assert known.energy.wasted_joules == 0 < greedy.energy.wasted_joules
    useful = [e.request_joules - e.wasted_joules for e in (known.energy, greedy.energy)]
    assert useful[0] == pytest.approx(useful[1], rel=0.05)
    assert known.energy.request_joules < greedy.energy.request_joules


def test_a_simulation_decides_alike_with_and_without_a_power_model() -> None:
    workload = chunk(100, rate=30.0)
    without, plain = rows_of([workload], replace(metered(), power=None))
    with_it, rows = rows_of([workload], metered())
    energy = ["energy_joules", "wasted_joules", "energy_source"]
    assert plain.drop(columns=energy).equals(rows.drop(columns=energy))
    assert plain[energy].isna().all(axis=None)
    assert without.energy is None
    assert with_it.makespan_s == without.makespan_s
