"""Which rows of the input have ended."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_FIRST_BYTES = 1024


class FinishedRows:
    """A set of row indices, exact, at one bit per row of the input: 10 million rows take 1.25 MB.

    A row's index identifies it because an output folder only ever belongs to one input
    (`jobs.writing.manifest`); ids, which belong to the user, need not be held.
    """

    __slots__ = ("_bits", "_count")

    def __init__(self, row_indices: Iterable[int] = ()) -> None:
        self._bits = np.zeros(_FIRST_BYTES, np.uint8)
        self._count = 0
        for row_index in row_indices:
            self.add(row_index)

    def __contains__(self, row_index: object) -> bool:
        if not isinstance(row_index, int) or not 0 <= row_index < 8 * len(self._bits):
            return False
        return bool(self._bits[row_index >> 3] >> (row_index & 7) & 1)

    def __len__(self) -> int:
        return self._count

    def add(self, row_index: int) -> bool:
        """Add a row; False if it was there.

        Raises:
            ValueError: `row_index` is negative.
        """
        if row_index in self:
            return False
        if row_index < 0:
            raise ValueError(f"row_index is {row_index}, must be >= 0")
        self._reserve(row_index)
        self._bits[row_index >> 3] |= 1 << (row_index & 7)
        self._count += 1
        return True

    def add_all(self, row_indices: NDArray[np.int64]) -> None:
        """Add rows, an array of shape (n,) with values >= 0; repeated ones count once."""
        if not len(row_indices):
            return
        self._reserve(int(row_indices.max()))
        masks = np.left_shift(1, row_indices & 7).astype(np.uint8)
        np.bitwise_or.at(self._bits, row_indices >> 3, masks)
        self._count = int(np.bitwise_count(self._bits).sum())

    def _reserve(self, row_index: int) -> None:
        needed = (row_index >> 3) + 1
        if needed > len(self._bits):
            grown = np.zeros(max(needed, 2 * len(self._bits)), np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
