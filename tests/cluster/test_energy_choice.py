"""How a configuration says that energy is measured, and what replicas are told."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ConfigError, load_config, parse_config
from cluster.membership.engine_choice import engine_spec
from replicas.detect_meter import MeterChoice

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
}
DECLARED = {"idle_w": 20.0, "max_w": 90.0, "peak_flops_per_s": 1e12}


def choice(model: str = "owner/name", **sections: Any) -> MeterChoice:
    return engine_spec(parse_config({"model": model, **sections}), on_gpu=False).energy


def test_hardware_is_asked_unless_somebody_says_otherwise() -> None:
    assert choice() == MeterChoice("auto")
    assert choice(energy={"meter": "none", "idle_w": 3.0}) == MeterChoice("none", None, 3.0)


def test_a_replica_is_told_the_power_model_of_its_devices(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    energy = {"meter": "model", "power_model": DECLARED}
    told = choice(str(tmp_path), energy=energy, replicas={"tensor_parallel_size": 2})
    assert told.device is not None
    assert (told.device.power.idle_w, told.device.power.max_w) == (40.0, 180.0)
    assert told.device.flops_per_token == 2 * (2 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 1000)
    spec = engine_spec(parse_config({"model": str(tmp_path), "energy": energy}), on_gpu=False)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_model_whose_arithmetic_is_unknown_is_not_guessed_at() -> None:
    told = choice(energy={"meter": "model", "power_model": "h100_sxm"})
    assert told.device is None
    assert "lacks flops_per_token" in told.reason


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        ({"meter": "model"}, "meter is model, which needs energy.power_model"),
        ({"power_model": "a100"}, "did you mean 'a100_sxm'"),
        ({"power_model": {"idle_w": 3.0}}, "lacks max_w, peak_flops_per_s"),
        ({"power_model": DECLARED | {"max_w": 10.0}}, "max_w is 10.0 W"),
        ({"power_model": DECLARED | {"watts": 1.0}}, "unknown field `watts`"),
        ({"idle_w": -1.0}, "energy.idle_w is -1.0"),
        ({"power_cap_w": 0.0}, "energy.power_cap_w is 0.0"),
        ({"power_model": DECLARED}, "lacks flops_per_token"),
    ],
)
def test_what_cannot_be_metered_is_refused_in_a_line(energy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_config({"replicas": {"engine": "simulated"}, "energy": energy})
    assert "\n" not in str(refused.value)


def test_a_power_model_can_be_written_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "replicas: {engine: simulated}\n"
        "energy:\n"
        "  power_model: {gpu: h100_sxm, flops_per_token: 1.6e10}\n"
    )
    config = load_config(file)
    device = engine_spec(config, on_gpu=False).energy.device
    assert device is not None
    assert (device.source, device.flops_per_token) == ("model:h100_sxm", 1.6e10)
    assert parse_config(config.model_dump(mode="json")) == config
