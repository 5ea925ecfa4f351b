"""Which meter the hardware has."""

from __future__ import annotations

from collections.abc import Sequence

from replicas.energy import EnergyMeter, NullMeter


def detect_meter(gpu_indices: Sequence[int]) -> EnergyMeter:
    """The meter of the hardware that a replica runs on; never fails.

    With GPUs only their energy is metered: the energy of the CPUs would not stand for theirs, so
    where the GPUs cannot be metered nothing is. Without GPUs the CPU packages are metered.

    Args:
        gpu_indices: The replica's GPUs as Ray numbers them on their node; empty: it runs on CPUs.

    Returns:
        A meter, or a `NullMeter` whose `reason` says what is missing.
    """
    try:
        from replicas.zeus_energy import ZeusCpuMeter, ZeusGpuMeter

        return ZeusGpuMeter(gpu_indices) if gpu_indices else ZeusCpuMeter()
    except ModuleNotFoundError as error:
        return NullMeter(f"the optional package {error.name} is not installed")
    except Exception as error:
        # Drivers and their bindings raise types of their own; none may keep a replica from serving.
        what = f"GPUs {sorted(gpu_indices)}" if gpu_indices else "CPU packages"
        return NullMeter(f"the {what} cannot be metered: {type(error).__name__}: {error}")
