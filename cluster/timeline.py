"""A simulated cluster over time, sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.batch import Floats

_MOST_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class Timeline:
    """The cluster over time, sampled, arrays of shape (n,).

    Attributes:
        t_s: Virtual seconds.
        waiting: Requests in the queue.
        running: Requests dispatched.
        used_blocks: KV blocks in use on all replicas.
        projected_peak_blocks: Sum over the replicas of the peak the projection sees ahead.
    """

    t_s: Floats
    waiting: Floats
    running: Floats
    used_blocks: Floats
    projected_peak_blocks: Floats


class TimelineSampler:
    """Samples at even intervals and thins itself out: memory is bounded however long a run is.

    Attributes:
        due_s: When the next sample is due.
    """

    def __init__(self, interval_s: float | None) -> None:
        """Start at time 0.

        Args:
            interval_s: Seconds between samples; None: begin with a fine interval. Either doubles
                whenever the samples grow too many.
        """
        self._interval_s = 0.1 if interval_s is None else interval_s
        self._samples: list[tuple[float, int, int, int, int]] = []
        self.due_s = 0.0

    def add(self, t_s: float, waiting: int, running: int, used: int, peak: int) -> None:
        """Take a sample (see `Timeline`)."""
        self._samples.append((t_s, waiting, running, used, peak))
        if len(self._samples) >= _MOST_SAMPLES:
            del self._samples[1::2]
            self._interval_s *= 2
        self.due_s = t_s + self._interval_s

    def timeline(self) -> Timeline:
        """All samples."""
        columns = np.array(self._samples, np.float64).reshape(-1, 5).T
        return Timeline(*columns)
