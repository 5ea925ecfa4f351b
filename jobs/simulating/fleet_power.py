"""What the simulated replicas draw, by a power model that somebody declared."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.config import ConfigError
from replicas.model_arithmetic import flops_per_token
from replicas.power_model import NAMED_GPUS, ModelledDevice, PowerModelError, modelled_device
from replicas.silicon_tables import Deployment, silicon_model_config

NONE = "none"


def power_of(text: str | None, deployment: Deployment | None) -> ModelledDevice | None:
    """The power of a replica; None where energy is not accounted for.

    Args:
        text: A GPU's name, `DeclaredPower` as JSON or YAML, `none`, or None: that of the
            deployment's GPU where its figures are known.
        deployment: The model and its GPUs, where the step times are theirs.

    Raises:
        ConfigError: There is no such power model, or it lacks a figure.
    """
    if text == NONE:
        return None
    declared: str | dict[str, Any]
    if text is None:
        if deployment is None or _gpu(deployment) not in NAMED_GPUS:
            return None
        declared = _gpu(deployment)
    else:
        declared = _parsed(text)
    known_flops = None
    if deployment is not None:
        known_flops = flops_per_token(silicon_model_config(deployment.model))
    if text is None and known_flops is None:
        return None
    devices = 1 if deployment is None else deployment.tensor_parallel_size
    try:
        return modelled_device(declared, flops_per_token=known_flops, devices=devices)
    except PowerModelError as error:
        raise ConfigError(f"--power: {error}") from None


def told(device: ModelledDevice) -> str:
    """A power model in words, for reports."""
    power = device.power
    return (
        f"{device.source}: modelled, not measured: {power.idle_w:g} W idle and up to "
        f"{power.max_w:g} W from a utilisation of {power.saturation:g} (gamma {power.gamma:g}) of "
        f"{device.peak_flops_per_s:.3g} FLOP/s, {device.flops_per_token:.3g} FLOP per token; what "
        "is above idle is shared by the requests of each step, idle power is booked apart"
    )


def _gpu(deployment: Deployment) -> str:
    name = deployment.gpu.strip().lower().replace(" ", "_")
    return name if name in NAMED_GPUS else f"{name}_sxm"


def _parsed(text: str) -> str | dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return text
    try:
        fields: dict[str, Any] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--power {text!r} is neither a GPU's name nor JSON: {' '.join(str(error).split())}"
        ) from None
    return fields
