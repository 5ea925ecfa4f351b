"""The latest steps of an engine: what each computed and how long it took."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from replicas.step_time import StepWork

STEPS_KEPT = 20_000
"""A few minutes of an accelerator's steps."""

COLUMNS = ("seconds", *StepWork._fields)
"""Of the array that `StepLog.read` returns."""


class StepLog:
    """A bounded record of steps; the oldest make room for new ones."""

    def __init__(self, kept: int = STEPS_KEPT) -> None:
        self._steps: deque[tuple[float, StepWork]] = deque(maxlen=kept)

    def append(self, seconds: float, work: StepWork) -> None:
        """Record a step."""
        self._steps.append((seconds, work))

    def read(self) -> NDArray[np.float64]:
        """The steps in their order, shape `(steps, 5)` with the columns of `COLUMNS`."""
        rows = [(seconds, *work) for seconds, work in self._steps]
        return np.array(rows, np.float64).reshape(-1, len(COLUMNS))
