"""When simulated requests arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cluster.workload import WorkloadError
from jobs.simulating.lengths import ReadTrace
from jobs.simulating.traces import Trace, TraceFile
from policies.batch import Floats


class ArrivalProcess(Protocol):
    """Arrivals that are ready to be drawn."""

    def times_s(
        self, start: int, count: int, after_s: float, random: np.random.Generator
    ) -> Floats:
        """When requests `start` to `start + count - 1` arrive, ascending, in seconds, (count,).

        Args:
            start: Index of the first, from 0.
            count: How many.
            after_s: When the one before arrived, 0 before the first.
            random: Draws of these requests alone.
        """


class Arrivals(Protocol):
    """Names an arrival process by plain values."""

    def at_rate(self, rate_per_s: float) -> Arrivals:
        """The same arrivals at another rate: every gap is scaled, nothing else changes.

        Raises:
            WorkloadError: The rate is not above 0, or such arrivals have none.
        """

    def open(self, read: ReadTrace) -> ArrivalProcess:
        """The process itself.

        Raises:
            InputError: Its data is absent or unreadable.
        """


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Independent gaps between arrivals; with a burst factor of 1 a Poisson process.

    Attributes:
        rate_per_s: Mean arrivals per second, above 0.
        burst: Burst factor: the squared coefficient of variation of the gaps, at least 0. 0 is
            evenly spaced, 1 Poisson, above 1 gamma-distributed gaps that come in bursts.

    Raises:
        WorkloadError: A figure is out of range.
    """

    rate_per_s: float
    burst: float = 1.0

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        if not 0 <= self.burst < math.inf:
            raise WorkloadError(
                f"the burst factor is {self.burst}, must be finite and >= 0; 1 is Poisson"
            )

    def at_rate(self, rate_per_s: float) -> GammaArrivals:
        """The same draws, every gap scaled."""
        return replace(self, rate_per_s=rate_per_s)

    def open(self, read: ReadTrace) -> ArrivalProcess:
        """Itself."""
        return self

    def times_s(
        self, start: int, count: int, after_s: float, random: np.random.Generator
    ) -> Floats:
        """Arrivals after `after_s`, the first one gap later."""
        if self.burst == 0:
            gaps = np.ones(count)
        elif self.burst == 1:
            gaps = random.standard_exponential(count)
        else:
            gaps = random.standard_gamma(1 / self.burst, count) * self.burst
        times: Floats = after_s + np.cumsum(gaps) / self.rate_per_s
        return times


@dataclass(frozen=True, slots=True)
class AtOnceArrivals:
    """All requests at one instant.

    Attributes:
        at_s: When, in seconds, at least 0.

    Raises:
        WorkloadError: It is out of range.
    """

    at_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < math.inf:
            raise WorkloadError(f"at_s is {self.at_s}, must be finite and >= 0 seconds")

    def at_rate(self, rate_per_s: float) -> AtOnceArrivals:
        """Never.

        Raises:
            WorkloadError: Always: all at once has no rate.
        """
        raise WorkloadError(
            f"requests that arrive all at once cannot arrive at {rate_per_s:g} per second; choose "
            "Poisson, gamma or trace arrivals"
        )

    def open(self, read: ReadTrace) -> ArrivalProcess:
        """Itself."""
        return self

    def times_s(
        self, start: int, count: int, after_s: float, random: np.random.Generator
    ) -> Floats:
        """`at_s` for each."""
        return np.full(count, self.at_s)


@dataclass(frozen=True, slots=True)
class TraceArrivals:
    """The arrival times of a trace; where it ends it begins again, one mean gap later.

    Attributes:
        trace: The file.
        rate_per_s: Mean rate to which its times are stretched; None leaves them as they are.

    Raises:
        WorkloadError: The rate is not above 0.
    """

    trace: TraceFile
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.rate_per_s is not None:
            _check_rate(self.rate_per_s)

    def at_rate(self, rate_per_s: float) -> TraceArrivals:
        """The same times, stretched."""
        return replace(self, rate_per_s=rate_per_s)

    def open(self, read: ReadTrace) -> ArrivalProcess:
        """The trace's times."""
        trace = read(self.trace)
        own = trace.rate_per_s
        return _OpenTraceArrivals(trace, 1 / own, own / (self.rate_per_s or own))


@dataclass(frozen=True, slots=True)
class _OpenTraceArrivals:
    trace: Trace
    mean_gap_s: float
    stretch: float

    def times_s(
        self, start: int, count: int, after_s: float, random: np.random.Generator
    ) -> Floats:
        lap, row = np.divmod(np.arange(start, start + count), len(self.trace))
        lap_s = self.trace.arrival_s[-1] + self.mean_gap_s
        times: Floats = (lap * lap_s + self.trace.arrival_s[row]) * self.stretch
        return times


def _check_rate(rate_per_s: float) -> None:
    if not 0 < rate_per_s < math.inf:
        raise WorkloadError(
            f"the arrival rate is {rate_per_s} per second, must be finite and above 0"
        )
