"""How fast each replica decodes, and which are slow beside the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median_high

SMOOTHING_S = 5.0
"""Time constant of what is remembered of a replica's speed."""

MEASURED_S = 1.0
"""Least remembered time at work with which a replica is judged, or others by it."""

SLOW_SHARE = 1 / 4
"""A replica is slow below this share of the middle replica's speed."""

RECOVERED_SHARE = 1 / 2
"""It is no longer slow above this share."""

JUDGED_EVERY_S = 1.0
"""How often replicas are compared."""

TRIED_AFTER_S = 10.0
"""A slow replica without work for so long gets a request, so that it can be measured."""


@dataclass(slots=True)
class _Speed:
    """What is remembered of one replica: sums that fade."""

    tokens: float = 0.0
    request_s: float = 0.0  # requests times seconds
    work_s: float = 0.0
    running: int = 0  # that gained tokens by its last report
    told_s: float = -math.inf  # its last report
    works: bool = False  # has told of progress since it was without work

    def add(self, tokens: int, running: int, now: float) -> None:
        if self.works:  # else nobody knows since when
            passed_s = now - self.told_s
            self.tokens += tokens
            self.request_s += running * passed_s
            self.work_s += passed_s
        self.told_s, self.running, self.works = now, running, True

    def fade(self, share: float) -> None:
        self.tokens *= share
        self.request_s *= share
        self.work_s *= share

    def rates(self, now: float) -> tuple[float, float] | None:
        """Tokens per second of one request, and of all; None when too little is known.

        As if it told now that nothing was gained since it told last.
        """
        passed_s = now - self.told_s if self.works else 0.0
        work_s = self.work_s + passed_s
        if work_s < MEASURED_S:
            return None
        return self.tokens / (self.request_s + self.running * passed_s), self.tokens / work_s


class ReplicaSpeeds:
    """Each replica's decode speed, and which of them new work should go around.

    A replica is slow when its requests decode at less than `SLOW_SHARE` of the middle replica's
    speed, and it makes less of them all together, too: one that only has more requests at once
    than others is not slow. A replica without a report for long counts as one that makes no tokens.
    Slow replicas are measured on: by the work that they have, and when they have had none for
    `TRIED_AFTER_S`, by a single request.

    Attributes:
        tried: Slow replicas that may get this one request now.
    """

    def __init__(self) -> None:
        self.tried: dict[str, None] = {}
        self._speeds: dict[str, _Speed] = {}
        self._slow: dict[str, None] = {}
        self._judged_s = -math.inf

    def join(self, replica_id: str) -> None:
        """A replica is there."""
        self._speeds[replica_id] = _Speed()

    def leave(self, replica_id: str) -> None:
        """A replica is gone."""
        del self._speeds[replica_id]
        self._slow.pop(replica_id, None)
        self.tried.pop(replica_id, None)

    def progressed(self, replica_id: str, tokens: int, running: int, now: float) -> None:
        """A replica told of progress.

        Args:
            replica_id: Which.
            tokens: Output tokens gained since it told last.
            running: How many requests gained them.
            now: Seconds.
        """
        self._speeds[replica_id].add(tokens, running, now)

    def idle(self, replica_id: str) -> None:
        """A replica has no work."""
        self._speeds[replica_id].works = False

    def dispatched(self, replica_id: str, now: float) -> bool:
        """A replica gets a request; whether it gets no other for that, being slow."""
        if replica_id not in self.tried:
            return False
        del self.tried[replica_id]
        self._speeds[replica_id].told_s = now
        return True

    def judge(self, now: float) -> dict[str, bool]:
        """Compare the replicas, when that is due.

        Returns:
            By replica, whether work goes around it; only where that has changed.
        """
        if now - self._judged_s < JUDGED_EVERY_S:
            return {}
        fading = math.exp((self._judged_s - now) / SMOOTHING_S)
        self._judged_s = now
        before = self._avoided()
        rates = {i: rates for i, s in self._speeds.items() if (rates := s.rates(now)) is not None}
        for speed in self._speeds.values():
            speed.fade(fading)
        if len(rates) > 1:
            self._find_slow(rates)
        for replica_id in self._slow:
            speed = self._speeds[replica_id]
            if not speed.works and now - speed.told_s >= TRIED_AFTER_S:
                self.tried[replica_id] = None
        after = self._avoided()
        changed = dict.fromkeys((i for i in before if i not in after), False)
        return changed | dict.fromkeys((i for i in after if i not in before), True)

    def _find_slow(self, rates: dict[str, tuple[float, float]]) -> None:
        middle = median_high(one for one, _ in rates.values())
        middle_together = median_high(together for _, together in rates.values())
        for replica_id, (one, together) in rates.items():
            if replica_id in self._slow:
                if one >= RECOVERED_SHARE * middle:
                    del self._slow[replica_id]
                    self.tried.pop(replica_id, None)
            elif one < SLOW_SHARE * middle and together < middle_together:
                self._slow[replica_id] = None

    def _avoided(self) -> list[str]:
        return [replica_id for replica_id in self._slow if replica_id not in self.tried]
