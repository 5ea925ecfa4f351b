"""DDSketches of many groups, measures and moments at once, in arrays of a fixed size."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RELATIVE_ERROR = 0.01
"""Of a percentile, beside the value of that rank."""

SMALLEST = 1e-4
"""Values below count as 0, in seconds."""

LARGEST = 1e6
"""Larger values count as this one, in seconds."""

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_FIRST_KEY = math.floor(math.log(SMALLEST) / math.log(_GAMMA))
BINS = math.ceil(math.log(LARGEST) / math.log(_GAMMA)) - _FIRST_KEY + 1
"""Bins of a sketch; the first one is that of 0."""

_VALUES = np.concatenate(
    ([0.0], 2 * _GAMMA ** (np.arange(1, BINS) + float(_FIRST_KEY)) / (1 + _GAMMA))
)

SLOTS = 6
"""Slots of a window. One of them is filling, so a window covers itself and up to a fifth more."""


class SketchGrid:
    """Sums and sketches by group and measure, over the latest slots of time.

    The bins are those of DDSketch (arXiv:1908.10693, section 2.1): a value lies in bin
    `ceil(log_gamma x)`, `gamma = (1 + e) / (1 - e)`, so that every percentile is within a relative
    error `e`, and sketches are merged by adding their counts. The range of values is fixed, which
    makes a sketch an array, and a window of all groups one sum.

    Args:
        groups: How many there can be; memory that no group has used is not touched.
        measures: Values per row.
        sums: Further numbers per row, which are only added up; a row has one that is not 0.
        slot_s: Length of a slot in seconds; None: one slot for ever.
    """

    def __init__(self, groups: int, measures: int, sums: int, slot_s: float | None) -> None:
        slots = 1 if slot_s is None else SLOTS
        self._slot_s = slot_s
        self._at = 0
        self._counts = np.zeros((slots, groups, measures, BINS), np.int64 if slots == 1 else "i4")
        self._totals = np.zeros((slots, groups, measures))
        self._sums = np.zeros((slots, groups, sums))

    def roll(self, now: float) -> None:
        """Empty the slots that time has passed by; of them only what was used is touched."""
        if self._slot_s is None:
            return
        at = int(now // self._slot_s)
        for passed in range(max(self._at + 1, at - SLOTS + 1), at + 1):
            slot = passed % SLOTS
            used = np.flatnonzero(self._sums[slot].any(axis=-1))
            for array in (self._counts, self._totals, self._sums):
                array[slot, used] = 0
        self._at = max(at, self._at)

    def add(self, group: Ints, values: Floats, sums: Floats) -> None:
        """Take rows into the slot that is filling.

        Args:
            group: Group of each row, (rows,).
            values: In seconds, NaN: none, (rows, measures).
            sums: What is added up, (rows, sums).
        """
        slot = self._at % len(self._counts)
        row, measure = np.nonzero(~np.isnan(values))
        known = values[row, measure]
        sketch = group[row] * self._totals.shape[-1] + measure
        np.add.at(self._counts[slot].reshape(-1), sketch * BINS + bins(known), 1)
        np.add.at(self._totals[slot].reshape(-1), sketch, known)
        np.add.at(self._sums[slot], group, sums)

    def move(self, source: int, target: int) -> None:
        """Add one group's history to another's, and empty it."""
        for array in (self._counts, self._totals, self._sums):
            array[:, target] += array[:, source]
            array[:, source] = 0

    def sums(self) -> Floats:
        """What was added up, (groups, sums)."""
        sums: Floats = self._sums.sum(axis=0)
        return sums

    def sketches(self, groups: list[int]) -> tuple[Ints, Floats]:
        """Of some groups together: counts (measures, bins) and totals (measures,)."""
        counts: Ints = self._counts[:, groups].sum(axis=(0, 1), dtype=np.int64)
        totals: Floats = self._totals[:, groups].sum(axis=(0, 1))
        return counts, totals


def bins(values: Floats) -> Ints:
    """The bin of each value, (n,)."""
    keys = np.ceil(np.log(np.clip(values, SMALLEST, LARGEST)) / math.log(_GAMMA)).astype(np.int64)
    indices: Ints = np.where(values < SMALLEST, 0, np.clip(keys - _FIRST_KEY, 1, BINS - 1))
    return indices


def percentiles(counts: Ints, shares: tuple[float, ...]) -> Floats:
    """Percentiles of sketches; 0 where one is empty.

    Args:
        counts: Counts by bin, (..., bins).
        shares: Such as 0.5 for the median.

    Returns:
        Values in seconds, (..., shares).
    """
    below = counts.cumsum(axis=-1)
    most = np.maximum(below[..., -1] - 1, 0)
    columns = [_VALUES[np.argmax(below > (q * most)[..., None], axis=-1)] for q in shares]
    found: Floats = np.stack(columns, axis=-1)
    return found
