"""Energy counters of GPUs and CPU packages, found and read through Zeus."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from replicas.energy import EnergyMeter, EnergyMeterError

_GPU_SOURCES = {"NVIDIAGPUs": "zeus:nvml", "AMDGPUs": "zeus:amdsmi"}


class _Counter:
    """The increases of one hardware counter, in joules.

    Args:
        read_mj: Reads the counter in millijoules.
        range_mj: Value at which the counter starts again from 0; None: only a restarted driver
            sets it back, and what it counted unseen before that is lost.
    """

    def __init__(self, read_mj: Callable[[], float], range_mj: float | None = None) -> None:
        self._read_mj = read_mj
        self._range_mj = range_mj
        self._latest_mj = read_mj()
        self._total_mj = 0.0

    def joules(self) -> float:
        """Joules since the counter was first read."""
        reading_mj = self._read_mj()
        increase_mj = reading_mj - self._latest_mj
        if increase_mj < 0:
            increase_mj = reading_mj
            if self._range_mj is not None:
                increase_mj += self._range_mj - self._latest_mj
        self._latest_mj = reading_mj
        self._total_mj += increase_mj
        return self._total_mj / 1e3


class _ZeusMeter(EnergyMeter):
    """The sum of some counters, or a share of it."""

    def __init__(self, source: str, counters: Sequence[_Counter], share: float = 1.0) -> None:
        self.source = source
        self._counters = counters
        self._share = share
        self._failures = _read_failures()

    def total_joules(self) -> float | None:
        """See `EnergyMeter.total_joules`."""
        try:
            return self._share * sum(counter.joules() for counter in self._counters)
        except self._failures:
            return None


class ZeusGpuMeter(_ZeusMeter):
    """The total-energy counters of GPUs: NVML's on NVIDIA (Volta or newer), AMD SMI's on AMD.

    Args:
        indices: GPUs as the node numbers them, before `CUDA_VISIBLE_DEVICES` renumbers them.
        gpus: A `zeus.device.gpu.GPUs`; None: those that this process sees.

    Raises:
        ModuleNotFoundError: Zeus is not installed.
        EnergyMeterError: A GPU is not visible, or has no counter.
        Exception: Whatever Zeus raises where there is no GPU or no driver.
    """

    def __init__(self, indices: Sequence[int], gpus: Any = None) -> None:
        if gpus is None:
            with _quiet():
                gpus = importlib.import_module("zeus.device.gpu").get_gpus()
        visible = {gpu.gpu_index: gpu for gpu in gpus.gpus}
        wanted = sorted(set(indices))
        if not wanted or not visible.keys() >= set(wanted):
            raise EnergyMeterError(
                f"asked for GPUs {wanted}, this process sees {sorted(visible)}: check "
                "CUDA_VISIBLE_DEVICES"
            )
        without = [i for i in wanted if not visible[i].supports_get_total_energy_consumption()]
        if without:
            raise EnergyMeterError(f"GPUs {without} have no counter of total energy")
        name = type(gpus).__name__
        super().__init__(
            _GPU_SOURCES.get(name, f"zeus:{name}"),
            [_Counter(visible[index].get_total_energy_consumption) for index in wanted],
        )


class ZeusCpuMeter(_ZeusMeter):
    """RAPL counters of all CPU packages and their DRAM.

    They count the whole machine, whoever uses it. A replica on some of its cores takes the share of
    the cores: replicas pinned to different cores then never count a joule twice. RAPL counters
    wrap, in minutes under full load, so the meter must be read about once a minute at least. The
    files are read here rather than by Zeus, which starts a process per counter to watch for wraps;
    those would outlive a killed replica.

    Args:
        cpus: `zeus.device.cpu.CPU` objects; None: all of this machine.
        share: Part of their energy that is counted, above 0 to 1.

    Raises:
        ValueError: The share is out of range.
        ModuleNotFoundError: Zeus is not installed.
        EnergyMeterError: There is no package to meter.
        Exception: Whatever Zeus raises where RAPL is missing or not readable.
    """

    def __init__(self, cpus: Sequence[Any] | None = None, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, must be above 0 and at most 1")
        if cpus is None:
            with _quiet():
                cpus = importlib.import_module("zeus.device.cpu").get_cpus().cpus
        counters = [counter for cpu in cpus for counter in _cpu_counters(cpu)]
        if not counters:
            raise EnergyMeterError("RAPL lists no CPU package")
        super().__init__("zeus:rapl" if share == 1 else "zeus:rapl-share", counters, share)


def _cpu_counters(cpu: Any) -> list[_Counter]:
    package = getattr(cpu, "rapl_file", None)
    if package is None:  # read through Zeus's daemon, which takes care of wraps
        return [_Counter(lambda: _daemon_mj(cpu))]
    if package.name == "psys":  # the platform's domain contains the packages
        return []
    return [_rapl_counter(file) for file in (package, cpu.dram) if file is not None]


def _daemon_mj(cpu: Any) -> float:
    measured = cpu.get_total_energy_consumption()
    return float(measured.cpu_mj + (measured.dram_mj or 0.0))


def _rapl_counter(file: Any) -> _Counter:
    path = Path(file.energy_uj_path)
    return _Counter(lambda: int(path.read_bytes()) / 1e3, file.max_energy_range_uj / 1e3)


def _read_failures() -> tuple[type[Exception], ...]:
    """What reading a counter raises when the hardware does not answer."""
    return (OSError, ValueError, importlib.import_module("zeus.exception").ZeusBaseError)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Zeus's log lines and warnings about missing hardware from the replica's log."""
    logger = logging.getLogger("zeus")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
