import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas.model_arithmetic import flops_per_token, flops_per_token_in
from replicas.modelled_meter import ModelledMeter
from replicas.power_model import (
    NAMED_GPUS,
    ModelledDevice,
    PowerModel,
    PowerModelError,
    modelled_device,
)
from replicas.request_work import EngineStep

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}
"""Llama 3 8B; 8.03e9 parameters, 0.53e9 of them the embeddings that are only looked up."""


def device(**changes: Any) -> ModelledDevice:
    """Idle at 100 W, 300 W more at full arithmetic rate of a token per second, in proportion."""
    fields: dict[str, Any] = {"idle_w": 100.0, "max_w": 400.0, "saturation": 1.0, "gamma": 1.0}
    rates = {"peak_flops_per_s": 10.0, "flops_per_token": 10.0}
    return modelled_device(fields | rates | changes)


def test_power_rises_from_idle_to_the_most_at_saturation() -> None:
    model = PowerModel(100.0, 400.0, saturation=0.5, gamma=0.7)
    assert model.watts(0.0) == 100.0
    assert model.watts(0.25) == pytest.approx(100 + 300 * 0.5**0.7)
    assert model.watts(0.5) == model.watts(0.9) == 400.0


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0.1, 1), st.floats(0.1, 3))
def test_more_work_never_draws_less(a: float, b: float, saturation: float, gamma: float) -> None:
    model = PowerModel(30.0, 300.0, saturation, gamma)
    low, high = sorted((a, b))
    assert 30.0 <= model.watts(low) <= model.watts(high) <= 300.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"idle_w": -1.0}, "idle_w is -1.0 W"),
        ({"max_w": 50.0}, "max_w is 50.0 W"),
        ({"max_w": math.inf}, "max_w is inf W"),
        ({"saturation": 0.0}, "saturation is 0.0"),
        ({"saturation": 1.5}, "saturation is 1.5"),
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"peak_flops_per_s": 0.0}, "peak_flops_per_s is 0.0"),
        ({"flops_per_token": -1.0}, "flops_per_token is -1.0"),
        ({"watts": 3.0}, "watts"),
        ({"gpu": "a100"}, "did you mean 'a100_sxm'"),
        ({"gpu": "abacus"}, "known: a100_sxm"),
        ({"max_w": None}, "lacks max_w"),
        ({"flops_per_token": None}, "lacks flops_per_token"),
    ],
)
def test_figures_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PowerModelError, match=named):
        device(**fields)


def test_a_named_gpu_stands_for_its_figures() -> None:
    named = modelled_device("a100_sxm", flops_per_token=16e9)
    figures = NAMED_GPUS["a100_sxm"]
    assert (named.power.idle_w, named.power.max_w) == (figures.idle_w, figures.max_w)
    assert (named.source, named.flops_per_token) == ("model:a100_sxm", 16e9)
    capped = modelled_device({"gpu": "a100_sxm", "max_w": 250.0, "flops_per_token": 1e9})
    assert (capped.power.max_w, capped.power.idle_w) == (250.0, figures.idle_w)
    assert capped.source == "model:declared", "a figure was changed"
    assert capped.flops_per_token == 1e9
    as_text = {"gpu": "a100_sxm", "flops_per_token": "1e9"}
    assert modelled_device(as_text).flops_per_token == 1e9


def test_devices_of_one_replica_add_up() -> None:
    one = modelled_device("h100_sxm", flops_per_token=1e11)
    four = modelled_device("h100_sxm", flops_per_token=1e11, devices=4)
    assert four.power.idle_w == 4 * one.power.idle_w
    assert four.watts(4000, 1.0) == pytest.approx(4 * one.watts(1000, 1.0))


def test_energy_of_a_step_is_power_at_its_own_rate() -> None:
    assert device().watts(1, 2.0) == pytest.approx(250.0)
    assert device().joules(1, 2.0) == pytest.approx(500.0)
    assert device().watts(0, 2.0) == 100.0
    assert (device().watts(1, 0.0), device().joules(1, 0.0)) == (400.0, 0.0)


def test_arithmetic_of_a_token_is_twice_the_weights_it_meets() -> None:
    assert flops_per_token(LLAMA_8B) == pytest.approx(2 * 7.50e9, rel=0.002)
    two_of_eight = LLAMA_8B | {"model_type": "mixtral", "num_experts_per_tok": 2}
    per_expert = 2 * 3 * 4096 * 14336 * 32
    more = (flops_per_token(two_of_eight) or 0) - (flops_per_token(LLAMA_8B) or 0)
    assert more == pytest.approx(per_expert)
    assert flops_per_token(LLAMA_8B | {"model_type": "mamba"}) is None
    assert flops_per_token({"model_type": "llama"}) is None


def test_arithmetic_is_read_from_a_models_folder(tmp_path: Path) -> None:
    assert flops_per_token_in(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert flops_per_token_in(tmp_path) == flops_per_token(LLAMA_8B)
    (tmp_path / "config.json").write_text("[")
    assert flops_per_token_in(tmp_path) is None


def test_the_modelled_meter_counts_steps_and_idle_time() -> None:
    meter = ModelledMeter(device())
    assert (meter.source, meter.idle_w) == ("model:declared", 100.0)
    assert meter.total_joules() is None
    meter.worked([], 50.0)
    assert meter.total_joules() == 0.0
    meter.worked([], 52.0)
    assert meter.total_joules() == pytest.approx(200.0)
    meter.worked([EngineStep(2.0, 1), EngineStep(1.0, 1)], 56.0)
    assert meter.total_joules() == pytest.approx(200.0 + 500.0 + 400.0 + 100.0)


def test_a_long_step_is_counted_once_it_is_told() -> None:
    meter = ModelledMeter(device())
    meter.worked([], 0.0)
    meter.worked([], 3.0)  # in the middle of a step of four seconds
    meter.worked([EngineStep(4.0, 4)], 4.0)
    total = meter.total_joules()
    assert total == pytest.approx(300.0 + 4 * 400.0)
    meter.worked([], 7.0)  # three seconds of idle time had been counted already
    assert meter.total_joules() == total
    meter.worked([], 8.0)
    assert meter.total_joules() == pytest.approx(4 * 400.0 + 4 * 100.0)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5), st.floats(0, 3)), min_size=1),
)
def test_the_modelled_meter_never_runs_back(rounds: list[tuple[float, int, float]]) -> None:
    meter = ModelledMeter(device())
    now_s, last = 0.0, 0.0
    for step_s, tokens, pause_s in rounds:
        now_s += pause_s
        meter.worked([EngineStep(step_s, tokens)], now_s)
        total = meter.total_joules()
        assert total is not None
        assert total >= last
        last = total
