"""Energy meters: what a replica's hardware has consumed since the meter was made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from replicas.request_work import EngineStep


class EnergyMeterError(RuntimeError):
    """The hardware cannot be metered; the message says why."""


class EnergyMeter(ABC):
    """A running total of consumed energy.

    A meter counts everything that its devices consume, whoever uses them and idle time included.

    Attributes:
        source: What measures, printed beside every figure: `zeus:nvml`, `zeus:amdsmi`,
            `zeus:rapl`, `zeus:rapl-share`, `model:<name>`, `replay`, or `none`.
        reason: Why nothing is measured; empty when something is.
        idle_w: Watts of the devices without work; None: the meter does not know.
    """

    source: str
    reason: str = ""
    idle_w: float | None = None

    @abstractmethod
    def total_joules(self) -> float | None:
        """Joules since the meter was made, never less than before; None: not measured.

        A meter of hardware answers None when the hardware does not answer, and with the whole
        total when it answers again.
        """

    def worked(  # noqa: B027, hardware knows
        self, steps: Sequence[EngineStep], at_s: float
    ) -> None:
        """Hear what an engine has done by `at_s`, in seconds of its clock; before every reading."""

    def close(self) -> None:  # noqa: B027, most meters hold nothing
        """Release what the meter holds. It is not read afterwards."""


class NullMeter(EnergyMeter):
    """Stands where no hardware can be metered.

    Args:
        reason: Why.
    """

    source = "none"

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def total_joules(self) -> None:
        """See `EnergyMeter.total_joules`: always None."""
        return


class ReplayMeter(EnergyMeter):
    """Replays recorded readings, one per call, then repeats the last; to test against.

    Args:
        readings: Joules since the recording began, never falling; None where there was no reading.
        source: What the meter calls itself.

    Raises:
        ValueError: There is no reading, or one is negative, not finite, or less than one before.
    """

    def __init__(self, readings: Sequence[float | None], source: str = "replay") -> None:
        if not readings:
            raise ValueError("readings is empty, must hold at least one reading")
        highest = 0.0
        for position, reading in enumerate(readings):
            if reading is None:
                continue
            if not (math.isfinite(reading) and reading >= highest):
                raise ValueError(
                    f"reading {position} is {reading} J, must be finite and >= {highest} J, the "
                    "highest before it"
                )
            highest = reading
        self.source = source
        self._readings = list(readings)
        self._next = 0

    def total_joules(self) -> float | None:
        """See `EnergyMeter.total_joules`."""
        reading = self._readings[self._next]
        self._next = min(self._next + 1, len(self._readings) - 1)
        return reading
