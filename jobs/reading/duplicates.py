"""Finds a row id that occurs twice among millions without holding the ids."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

PlacedIds = Callable[[], Iterator[tuple[str, str]]]
"""Starts a pass over (row id, place in the input)."""

_CONFIRM_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class DuplicateId:
    """An id that two rows have.

    Attributes:
        row_id: The id.
        first: Place of the first row that has it.
        second: Place of the next one.
        suspects: Ids that seem to occur more than once, this one included.
    """

    row_id: str
    first: str
    second: str
    suspects: int


def find_duplicate(ids: PlacedIds, hash_id: Callable[[str], int] = hash) -> DuplicateId | None:
    """An id that occurs more than once, or None.

    One pass keeps a 64-bit hash of each id, 8 bytes a row (9 while they are compared). Only when
    two hashes are equal, further passes compare the ids themselves, so that a collision of hashes
    is never taken for a duplicate.

    Args:
        ids: Starts a pass over the ids.
        hash_id: A hash into the signed 64-bit integers.
    """
    hashes = array("q", (hash_id(row_id) for row_id, _ in ids()))
    if len(hashes) < 2:
        return None
    ordered = np.frombuffer(hashes, np.int64)
    ordered.sort()
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist()
    for start in range(0, len(suspects), _CONFIRM_AT_ONCE):
        wanted = frozenset(suspects[start : start + _CONFIRM_AT_ONCE])
        first: dict[str, str] = {}
        for row_id, place in ids():
            if hash_id(row_id) not in wanted:
                continue
            if row_id in first:
                return DuplicateId(row_id, first[row_id], place, len(suspects))
            first[row_id] = place
    return None
