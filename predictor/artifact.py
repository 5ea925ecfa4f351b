"""A trained network as a folder: weights as safetensors, everything else as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from policies.forecast import DEGREES_OF_FREEDOM
from predictor.atomic_file import replace_file
from predictor.calibrations import Calibrations
from predictor.device import open_device
from predictor.encoder import EncoderSpec
from predictor.errors import PredictorError
from predictor.excerpt import HEAD_CHARS, TAIL_CHARS
from predictor.features import InputScaler, InputScalerState
from predictor.network import LengthNetwork, NetworkConfig

FORMAT = 2
"""Of the folder; raised when an older version would misread a newer one's."""

CONFIG_FILE = "config.json"
HEADS_FILE = "heads.safetensors"
ENCODER_FILE = "encoder.safetensors"
NORMALISATION_FILE = "normalisation.json"
CALIBRATION_FILE = "calibration.json"
CARD_FILE = "README.md"

Value = TypeVar("Value")


class ArtifactError(PredictorError):
    """A folder is not a network that can be used; the message says what is wrong with it."""


class ArtifactConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`config.json`.

    Attributes:
        format: `FORMAT` of the writer.
        encoder: The encoder and what it reads.
        network: Shape of the heads.
        head_chars: `excerpt.HEAD_CHARS` of the writer.
        tail_chars: `excerpt.TAIL_CHARS` of the writer.
        nu: Degrees of freedom of the log-t.
        tuned: Whether layers of the encoder were trained too.
        training: How it was trained, for the reader.
    """

    format: int
    encoder: EncoderSpec
    network: NetworkConfig
    head_chars: int
    tail_chars: int
    nu: float
    tuned: bool
    training: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A trained network with all that it needs to forecast.

    Attributes:
        network: The heads.
        scaler: What turns prompts into their inputs.
        encoder: Which encoder makes the text features.
        calibration: What corrects the heads' mu and sigma and makes intervals of them.
        tuned: Weights of the encoder that were trained too (`TextEncoder.tuned_state`).
        training: Plain values that say how it was trained.
        card: The model card, Markdown.
    """

    network: LengthNetwork
    scaler: InputScaler
    encoder: EncoderSpec
    calibration: Calibrations
    tuned: Mapping[str, torch.Tensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""


def save_artifact(folder: Path | str, artifact: Artifact, *, half: bool = False) -> None:
    """Write a network to a folder, in the place of one that is there.

    The configuration goes first and comes last, so that a folder which has one is whole.

    Args:
        folder: Created if it is missing; other files in it stay.
        artifact: The network.
        half: Store matrices in half precision: half the size, and weights moved by 0.05 % at most.

    Raises:
        ArtifactError: The network's parts do not fit each other or a weight is not finite.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    config = ArtifactConfig(
        format=FORMAT,
        encoder=artifact.encoder,
        network=artifact.network.config,
        head_chars=HEAD_CHARS,
        tail_chars=TAIL_CHARS,
        nu=DEGREES_OF_FREEDOM,
        tuned=bool(artifact.tuned),
        training=dict(artifact.training),
    )
    heads = {name: _stored(weight, half) for name, weight in artifact.network.state_dict().items()}
    _check_finite(heads, folder / HEADS_FILE)
    _check_fit(config, artifact.scaler, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    (folder / ENCODER_FILE).unlink(missing_ok=True)
    files = {
        HEADS_FILE: save(heads),
        NORMALISATION_FILE: _json(artifact.scaler.state),
        CALIBRATION_FILE: _json(artifact.calibration),
        CARD_FILE: artifact.card.encode(),
        **({ENCODER_FILE: save(dict(artifact.tuned))} if artifact.tuned else {}),
        CONFIG_FILE: _json(config),
    }
    for name, content in files.items():
        replace_file(folder / name, _writer(content))


def load_artifact(folder: Path | str, *, device: str | torch.device = "cpu") -> Artifact:
    """Read a network from its folder.

    Args:
        folder: What `save_artifact` wrote.
        device: Where the heads go.

    Raises:
        ArtifactError: A part is missing, damaged, not finite, of another version or of another
            architecture.
        DeviceError: The device cannot be used.
    """
    folder, device = Path(folder), open_device(device)
    if not folder.is_dir():
        raise ArtifactError(
            f"no network at {folder}: the folder does not exist; give the one that training wrote"
        )
    config = _config(folder)
    scaler = _read(folder / NORMALISATION_FILE, _scaler)
    _check_fit(config, scaler, folder)
    calibration = _read(folder / CALIBRATION_FILE, _decoder(Calibrations))
    network = LengthNetwork(config.network)
    _fill(network, _tensors(folder / HEADS_FILE), folder / HEADS_FILE)
    tuned = _tensors(folder / ENCODER_FILE) if config.tuned else {}
    card = folder / CARD_FILE
    return Artifact(
        network=network.eval().requires_grad_(False).to(device),
        scaler=scaler,
        encoder=config.encoder,
        calibration=calibration,
        tuned=tuned,
        training=config.training,
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
    )


def _writer(content: bytes) -> Callable[[IO[bytes]], int]:
    return lambda stream: stream.write(content)


def _config(folder: Path) -> ArtifactConfig:
    path = folder / CONFIG_FILE
    stamp = _read(path, _decoder(dict[str, Any]))
    if stamp.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} has format {stamp.get('format')!r}, this version reads {FORMAT}; train the "
            "network again"
        )
    config = _read(path, _decoder(ArtifactConfig))
    for name, value, own in (
        ("head_chars", config.head_chars, HEAD_CHARS),
        ("tail_chars", config.tail_chars, TAIL_CHARS),
        ("nu", config.nu, DEGREES_OF_FREEDOM),
    ):
        if value != own:
            raise ArtifactError(
                f"{path} has {name} {value}, this version has {own}, so it would be served "
                "otherwise than it was trained; train the network again"
            )
    return config


def _read(path: Path, decode: Callable[[bytes], Value]) -> Value:
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} is missing, so {path.parent} is not a whole network; give the folder that "
            "training wrote, or train again"
        ) from None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} cannot be used: {error}; train the network again") from error


def _decoder(kind: type[Value]) -> Callable[[bytes], Value]:
    return lambda content: msgspec.json.decode(content, type=kind)


def _scaler(content: bytes) -> InputScaler:
    return InputScaler(msgspec.json.decode(content, type=InputScalerState))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing, so {path.parent} is not a whole network; give the folder that "
            "training wrote, or train again"
        )
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; train the network again") from error
    _check_finite(tensors, path)
    return tensors


def _fill(network: LengthNetwork, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    expected = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        wrong = sorted(name for name, _ in found.items() ^ expected.items())[0]
        raise ArtifactError(
            f"{path} is of another architecture than {CONFIG_FILE} says: {wrong} has shape "
            f"{found.get(wrong, 'none')}, must have {expected.get(wrong, 'none')}; give the folder "
            "that training wrote, or train again"
        )
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})


def _check_fit(config: ArtifactConfig, scaler: InputScaler, folder: Path) -> None:
    network, state = config.network, scaler.state
    for name, value, scaled in (
        ("text_width", network.text_width, scaler.text_width),
        ("scalar_width", network.scalar_width, len(state.scalar_names)),
        ("models", network.models, len(state.models)),
    ):
        if value != scaled:
            raise ArtifactError(
                f"{folder}: the network has {name} {value}, its normalisation {scaled}; both must "
                "come from one training"
            )


def _check_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise ArtifactError(
                f"{path}: {name} has values that are not finite; train again, with a smaller "
                "learning rate if it repeats"
            )


def _stored(weight: torch.Tensor, half: bool) -> torch.Tensor:
    kept = weight.detach().to("cpu", copy=True).contiguous()
    return kept.half() if half and kept.dim() > 1 else kept


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
