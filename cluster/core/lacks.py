"""What the queue has lacked, and for how long: why requests that have started had waited."""

from __future__ import annotations

import bisect
import math
from collections import deque
from enum import StrEnum
from typing import NamedTuple

FINE_S, FINE_COUNT = 1.0, 3_600
COARSE_S, COARSE_COUNT = 60.0, 10_080
"""How far apart totals are kept at least, and how many: to a second for an hour of scheduling, to a
minute for a week of it."""


class Lack(StrEnum):
    """What keeps the first request of the queue from starting.

    `GUARDED` is memory less the share of it that is kept for online requests, `KEPT` the last
    places that are.
    """

    MEMORY = "memory"
    GUARDED = "guarded"
    PLACES = "places"
    KEPT = "kept"
    POWER = "power"
    REPLICAS = "replicas"


class Lacked(NamedTuple):
    """What the first request of the queue lacked between two times.

    Attributes:
        seconds: For how long it could not start, by what it lacked, the longest first.
        unknown_s: Seconds of which nothing is known: from before this scheduler, or long ago.
    """

    seconds: dict[Lack, float]
    unknown_s: float = 0.0


class QueueLacks:
    """Adds up for how long the first request of the queue could not start, by what it lacked.

    Everybody behind it waits for the same. So what a request waited for is the difference of the
    totals between two times, and nothing need be kept for each request.
    """

    def __init__(self) -> None:
        self._totals = dict.fromkeys(Lack, 0.0)
        self._lack: Lack | None = None
        self._noted_s: float | None = None
        self._fine = _Totals(FINE_S, FINE_COUNT)
        self._coarse = _Totals(COARSE_S, COARSE_COUNT)

    def note(self, lack: Lack | None, now: float) -> None:
        """From now on the first request lacks this; None: nobody waits, or the first can start."""
        if self._noted_s is None:
            self._noted_s = now
        elif self._lack is not None:
            self._totals[self._lack] += max(now - self._noted_s, 0.0)
        self._noted_s = max(now, self._noted_s)
        self._lack = lack
        self._fine.keep(now, self._totals)
        self._coarse.keep(now, self._totals)

    def between(self, since_s: float, until_s: float) -> Lacked:
        """What the first request lacked; between the totals kept they are interpolated.

        Args:
            since_s: Seconds, of the clock of `note`.
            until_s: Seconds, not before `since_s`.
        """
        first, last = self._at(since_s), self._at(until_s)
        spent = ((lack, last[lack] - first[lack]) for lack in Lack)
        longest_first = sorted((pair for pair in spent if pair[1] > 0), key=lambda pair: -pair[1])
        known_from_s = min(self._fine.begin_s, self._coarse.begin_s)
        return Lacked(dict(longest_first), max(min(known_from_s, until_s) - since_s, 0.0))

    def _at(self, time_s: float) -> dict[Lack, float]:
        kept = self._fine if self._fine.reaches(time_s) else self._coarse
        before, after = kept.around(time_s)
        if after is None:
            now_s = self._noted_s if self._noted_s is not None else time_s
            after = (max(now_s, time_s), self._totals_at(max(now_s, time_s)))
        if before is None:
            return after[1]
        (from_s, low), (to_s, high) = before, after
        share = (time_s - from_s) / (to_s - from_s) if to_s > from_s else 1.0
        return {lack: low[lack] + share * (high[lack] - low[lack]) for lack in Lack}

    def _totals_at(self, now: float) -> dict[Lack, float]:
        """The totals with what has been lacking since they were noted last."""
        totals = dict(self._totals)
        if self._lack is not None and self._noted_s is not None:
            totals[self._lack] += max(now - self._noted_s, 0.0)
        return totals


Moment = tuple[float, dict[Lack, float]]


class _Totals:
    """Totals at times that ascend, at least so far apart, the latest so many."""

    def __init__(self, apart_s: float, count: int) -> None:
        self._apart_s = apart_s
        self._kept: deque[Moment] = deque(maxlen=count)

    def keep(self, now: float, totals: dict[Lack, float]) -> None:
        """Keep these, unless others have been kept just before."""
        if not self._kept or now - self._kept[-1][0] >= self._apart_s:
            self._kept.append((now, dict(totals)))

    @property
    def begin_s(self) -> float:
        """The first time of which something is kept; infinite: nothing is."""
        return self._kept[0][0] if self._kept else math.inf

    def reaches(self, time_s: float) -> bool:
        """Whether what held at a time is known."""
        return self.begin_s <= time_s

    def around(self, time_s: float) -> tuple[Moment | None, Moment | None]:
        """The last totals at or before a time and the first after it, where there are such."""
        index = bisect.bisect_right(self._kept, time_s, key=lambda moment: moment[0])
        before = self._kept[index - 1] if index else None
        return before, self._kept[index] if index < len(self._kept) else None
