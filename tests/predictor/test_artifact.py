import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from predictor.artifact import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    HEADS_FILE,
    NORMALISATION_FILE,
    ArtifactError,
    load_artifact,
    save_artifact,
)
from predictor.encoder import TextEncoder
from predictor.features import Inputs
from predictor.network import LengthNetwork
from tests.predictor.networks import make_artifact, make_spec

TEXTS = ["write w1 words", "w2", "list 10 w3s"]


def saved(tmp_path: Path, **changes: Any) -> Path:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    save_artifact(tmp_path / "network", make_artifact(encoder, **changes))
    return tmp_path / "network"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_heads(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / HEADS_FILE)
    change(weights)
    save_file(weights, folder / HEADS_FILE)


def outputs(network: LengthNetwork) -> torch.Tensor:
    shape = network.config
    generator = torch.Generator().manual_seed(0)
    inputs = Inputs(
        torch.randn(8, shape.text_width, generator=generator),
        torch.randn(8, shape.scalar_width, generator=generator),
        torch.arange(8) % (shape.models + 1),
    )
    with torch.no_grad():
        return torch.stack(network(inputs))


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    artifact = make_artifact(encoder)
    save_artifact(tmp_path / "network", artifact)
    loaded = load_artifact(tmp_path / "network")
    assert torch.equal(outputs(loaded.network), outputs(artifact.network))
    assert not loaded.network.training
    assert loaded.scaler.state == artifact.scaler.state
    assert loaded.encoder == artifact.encoder
    assert loaded.calibration == artifact.calibration
    assert loaded.training == {"loss": "nll"}
    assert loaded.card == "# A card\n"
    assert loaded.tuned == {}


def test_half_precision_is_half_as_large_and_as_good(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    artifact = make_artifact(encoder)
    save_artifact(tmp_path / "whole", artifact)
    save_artifact(tmp_path / "half", artifact, half=True)
    sizes = [(tmp_path / name / HEADS_FILE).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.65 * sizes[1]
    network = load_artifact(tmp_path / "half").network
    assert next(network.parameters()).dtype == torch.float32
    torch.testing.assert_close(outputs(network), outputs(artifact.network), atol=5e-3, rtol=5e-3)


def test_tuned_layers_are_kept_and_a_later_network_without_them_drops_them(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    encoder.tunable(1)
    tuned = encoder.tuned_state()
    artifact = make_artifact(encoder, tuned=tuned)
    save_artifact(tmp_path / "network", artifact)
    loaded = load_artifact(tmp_path / "network").tuned
    assert loaded.keys() == tuned.keys()
    assert all(torch.equal(loaded[name], tuned[name]) for name in tuned)
    save_artifact(tmp_path / "network", replace(artifact, tuned={}))
    assert not (tmp_path / "network" / ENCODER_FILE).exists()
    assert load_artifact(tmp_path / "network").tuned == {}


def test_nothing_in_the_folder_is_executable_on_reading(tmp_path: Path) -> None:
    names = {file.name for file in saved(tmp_path).iterdir()}
    assert {Path(name).suffix for name in names} == {".json", ".safetensors", ".md"}


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the folder does not exist"):
        load_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG_FILE, HEADS_FILE, NORMALISATION_FILE, CALIBRATION_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path, name: str, damage: str) -> None:
    file = saved(tmp_path) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": content[:-20], "noise": b"\xff" * 64}[damage])
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load_artifact(file.parent)


def test_a_missing_encoder_of_tuned_layers_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, tuned={"weight": torch.ones(2, 2)})
    (folder / ENCODER_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"encoder\.safetensors is missing"):
        load_artifact(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["first.weight", "target_mean"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, bad: float) -> None:
    folder = saved(tmp_path)
    edit_heads(folder, lambda weights: weights[name].view(-1)[:1].fill_(bad))
    with pytest.raises(ArtifactError, match=f"{name} has values that are not finite"):
        load_artifact(folder)


def test_a_network_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    encoder = TextEncoder(make_spec(tmp_path / "encoder"))
    artifact = make_artifact(encoder)
    with torch.no_grad():
        artifact.network.last.bias[0] = torch.nan
    with pytest.raises(ArtifactError, match=r"last\.bias has values that are not finite"):
        save_artifact(tmp_path / "network", artifact)
    assert not (tmp_path / "network").exists()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit_heads(folder, lambda weights: weights.update({"first.bias": torch.zeros(3)}))
    with pytest.raises(ArtifactError, match=r"first\.bias has shape \(3,\), must have \(96,\)"):
        load_artifact(folder)
    edit_heads(folder, lambda weights: weights.pop("first.bias"))
    with pytest.raises(ArtifactError, match=r"first\.bias has shape none"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CONFIG_FILE, {"format": 99}, "format 99, this version reads 2"),
        (CONFIG_FILE, {"head_chars": 7}, "head_chars 7, this version has 1536"),
        (CONFIG_FILE, {"tail_chars": 7}, "tail_chars 7"),
        (CONFIG_FILE, {"nu": 30.0}, "nu 30.0"),
        (CONFIG_FILE, {"tuned": "perhaps"}, "tuned"),
        (CONFIG_FILE, {"surprise": 1}, "surprise"),
        (NORMALISATION_FILE, {"models": ["a", "b", "c"]}, "models 2, its normalisation 3"),
        (NORMALISATION_FILE, {"scalar_names": ["x"]}, "train the network again"),
        (
            CALIBRATION_FILE,
            {"models": {"a": {"scale": -1.0}}},
            r"models\[.*train the network",
        ),
        (CALIBRATION_FILE, {"pooled": None}, "pooled"),
    ],
)
def test_parts_of_another_version_or_network_are_refused(
    tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = saved(tmp_path)
    edit(folder / file, lambda values: values.update(change))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


def test_encoder_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder / CONFIG_FILE, lambda values: values["encoder"].update(tail_tokens=500))
    with pytest.raises(ArtifactError, match="tail_tokens is 500"):
        load_artifact(folder)
