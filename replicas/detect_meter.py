"""Which meter the hardware has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import msgspec

from replicas.energy import EnergyMeter, NullMeter
from replicas.modelled_meter import ModelledMeter
from replicas.power_model import ModelledDevice


class MeterChoice(msgspec.Struct, frozen=True):
    """How a replica's energy is measured.

    Attributes:
        meter: `auto`: by the hardware's counters, else by the power model; `model`: by the power
            model; `none`: not at all.
        device: The power model; None: there is none.
        idle_w: Watts of the replica's hardware without work; None: what a power model that meters
            says, else the lowest seen.
        reason: Why there is no power model, where one was asked for.
    """

    meter: Literal["auto", "model", "none"] = "auto"
    device: ModelledDevice | None = None
    idle_w: float | None = None
    reason: str = ""


def meter_of(
    choice: MeterChoice, *, simulated: bool, gpus: Sequence[str], cores: int
) -> EnergyMeter:
    """The energy meter of a replica; never another device's, and never fails.

    Args:
        choice: What is asked for.
        simulated: Whether the engine only behaves like one, so that counters would tell nothing.
        gpus: The replica's GPUs as Ray names them on their node; empty: it runs on CPUs.
        cores: CPU cores that it runs on.

    Returns:
        A meter, or a `NullMeter` whose `reason` says what is missing.
    """
    if choice.meter == "none":
        return NullMeter("energy.meter is none")
    meter = (
        _counters(simulated, gpus, cores) if choice.meter == "auto" else NullMeter(choice.reason)
    )
    if not isinstance(meter, NullMeter):
        return meter
    if choice.device is not None:
        return ModelledMeter(choice.device)
    return NullMeter(choice.reason or meter.reason)


def _counters(simulated: bool, gpus: Sequence[str], cores: int) -> EnergyMeter:
    if simulated:
        return NullMeter("a simulated engine has no hardware of its own: declare a power model")
    indices = [int(gpu) for gpu in gpus if gpu.isdigit()]
    if len(indices) < len(gpus):
        return NullMeter(f"GPUs {', '.join(gpus)} are not named by their index on the node")
    machine = os.cpu_count() or cores
    return detect_meter(indices, min(1.0, cores / machine))


def detect_meter(gpu_indices: Sequence[int], cpu_share: float = 1.0) -> EnergyMeter:
    """The meter of the hardware that a replica runs on; never fails.

    With GPUs only their energy is metered: the energy of the CPUs would not stand for theirs, so
    where the GPUs cannot be metered nothing is. Without GPUs the CPU packages are metered.

    Args:
        gpu_indices: The replica's GPUs as Ray numbers them on their node; empty: it runs on CPUs.
        cpu_share: Part of the machine's CPU energy that is counted as this replica's, above 0.

    Returns:
        A meter, or a `NullMeter` whose `reason` says what is missing.
    """
    try:
        from replicas.zeus_energy import ZeusCpuMeter, ZeusGpuMeter

        return ZeusGpuMeter(gpu_indices) if gpu_indices else ZeusCpuMeter(share=cpu_share)
    except ModuleNotFoundError as error:
        return NullMeter(f"the optional package {error.name} is not installed")
    except Exception as error:
        # Drivers and their bindings raise types of their own; none may keep a replica from serving.
        what = f"GPUs {sorted(gpu_indices)}" if gpu_indices else "CPU packages"
        return NullMeter(f"the {what} cannot be metered: {type(error).__name__}: {error}")
