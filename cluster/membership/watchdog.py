"""Replicas that have work and make no progress, whatever they answer."""

from __future__ import annotations

import msgspec

GAPS = 8
"""Times the longest pause seen on a replica that its progress may pause before it counts as frozen:
a long prompt, or a model that is slow, has paused as long before."""

FORGET_S = 600.0
"""Seconds in which the longest pause seen counts half."""

BLINK_S = 2.0
"""Longest time between two looks that counts. Whoever was itself suspended or starved for longer
has not seen what the replicas did meanwhile, and must first read what they reported."""


class _Mark(msgspec.Struct):
    """One replica, in seconds of the watchdog's own time.

    Attributes:
        since_s: When it made progress last or got work; None while it has none.
        gap_s: The longest pause seen, as it counted at `gap_at_s`.
        gap_at_s: When that was.
    """

    since_s: float | None = None
    gap_s: float = 0.0
    gap_at_s: float = 0.0

    def gap(self, now: float) -> float:
        """The longest pause seen, as it counts now."""
        return float(self.gap_s * 0.5 ** ((now - self.gap_at_s) / FORGET_S))


class Watchdog:
    """Judges by progress alone: a process that answers every call may still be frozen.

    A replica is frozen when it has had work for `frozen_after_s`, and for `GAPS` times the longest
    pause seen on it, without a token or an end. While it has no work nothing is asked of it.

    Time comes in; all calls take times of one clock. An event costs O(1), a look at `frozen` one
    comparison per replica: look about once a second.

    Args:
        frozen_after_s: Least time with work and without progress.
    """

    def __init__(self, frozen_after_s: float) -> None:
        self._frozen_after_s = frozen_after_s
        self._marks: dict[str, _Mark] = {}
        self._now: float | None = None
        self._awake_s = 0.0

    def progressed(self, replica_id: str, progress: bool, has_work: bool, now: float) -> None:
        """Something is known of a replica: it reported, or it was sent work.

        Args:
            replica_id: Which.
            progress: Whether there are new tokens or ends of requests.
            has_work: Whether requests are to run there, as their sender knows.
            now: Seconds.
        """
        awake_s = self._awake(now)
        mark = self._marks.setdefault(replica_id, _Mark())
        if progress and mark.since_s is not None:
            pause_s = awake_s - mark.since_s
            if pause_s > mark.gap(awake_s):
                mark.gap_s, mark.gap_at_s = pause_s, awake_s
        if not has_work:
            mark.since_s = None
        elif progress or mark.since_s is None:
            mark.since_s = awake_s

    def forget(self, replica_id: str) -> None:
        """A replica is gone."""
        self._marks.pop(replica_id, None)

    def frozen(self, now: float) -> list[str]:
        """The replicas that are frozen now."""
        awake_s = self._awake(now)
        return [
            replica_id
            for replica_id, mark in self._marks.items()
            if mark.since_s is not None
            and awake_s - mark.since_s >= max(self._frozen_after_s, GAPS * mark.gap(awake_s))
        ]

    def _awake(self, now: float) -> float:
        """Seconds for which somebody has looked."""
        if self._now is not None:
            self._awake_s += min(max(0.0, now - self._now), BLINK_S)
        self._now = now if self._now is None else max(self._now, now)
        return self._awake_s
