"""A bounded number of names, each with a place; the rest share one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

OTHER = "other"
"""The name of all that have no place of their own."""


class GroupNames:
    """Places for the names that are in use.

    A name keeps its place until it has been idle for a while and another one needs it, so that the
    places do not change hands among more names than there are.

    Args:
        first: Number of the first place, which is that of `OTHER`.
        most: Names with a place of their own.
        idle_s: Seconds after which a name that nobody uses can lose its place.
    """

    def __init__(self, first: int, most: int, idle_s: float) -> None:
        self._first = first
        self._most = most
        self._idle_s = idle_s
        self._places: dict[str, int] = {OTHER: first}
        self._used: OrderedDict[str, float] = OrderedDict()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._places.items())

    @property
    def rest(self) -> int:
        """The place of `OTHER`."""
        return self._first

    def place(self, name: str, now: float) -> tuple[int, bool]:
        """The place of a name, and whether it has just been taken from another one.

        Whoever is told so must clear it first: it holds what is the other's.
        """
        if name == OTHER:
            return self._first, False
        known = self._places.get(name)
        if known is not None:
            self._use(name, now)
            return known, False
        place = self._first + 1 + len(self._used)
        is_taken = len(self._used) >= self._most
        if is_taken:
            oldest, used_s = next(iter(self._used.items()), ("", now))
            if now - used_s <= self._idle_s:
                return self._first, False
            del self._used[oldest]
            place = self._places.pop(oldest)
        self._places[name] = place
        self._use(name, now)
        return place, is_taken

    def _use(self, name: str, now: float) -> None:
        self._used[name] = now
        self._used.move_to_end(name)
