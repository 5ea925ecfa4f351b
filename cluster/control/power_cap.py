"""A power cap for the cluster, kept by pacing offline work. No IO: readings and time come in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

SETTLE_S = 2.5
"""How long after a change readings still tell of the time before it: a replica's power is a mean
over a second, and it is reported once a second at least."""

MEASURE_S = 2.0
"""How long power is measured before more is let in."""

AIM = 0.97
"""Share of the cap that is aimed at."""

ENOUGH = 0.92
"""Share of the cap from which on nothing more is let in: between this and the cap is the band that
power stays in when there is work enough, unless a single request is wider than it."""

START = 1
"""Offline requests that may run before anything is known."""

RETRY_S = 60.0
"""How long it is believed of a single request that it takes too much."""


@dataclass(frozen=True, slots=True)
class PowerReading:
    """What the meters and the scheduling core say of one moment.

    Attributes:
        power_w: Power of all replicas, in watts.
        idle_w: The part of it that is taken without work.
        running: Requests that run.
        offline: Those of them that are offline.
    """

    power_w: float
    idle_w: float
    running: int
    offline: int

    @property
    def per_request_w(self) -> float | None:
        """Watts above idle of a request that runs; None: none runs, or none takes any.

        Power rises ever more slowly with the requests that run (`replicas.power_model`), so that
        one more takes less than this: what is let in by it comes to rest below what was aimed at.
        """
        above_idle_w = self.power_w - self.idle_w
        return above_idle_w / self.running if self.running and above_idle_w > 0 else None


class PowerCap:
    """How many offline requests may run so that power stays under a cap.

    Nobody is stopped: offline requests that end are not followed by others while power is above the
    cap, which it therefore keeps only from below. So it is approached slowly, by no more than twice
    what runs at a time, and left at once. Online requests are never held: when they alone take more
    than the cap, no offline request is started.

    Without readings the pace stays what it was, `START` at first.

    Attributes:
        cap_w: The cap, in watts of all replicas.
        most_running: Offline requests that may run at once.
    """

    def __init__(self, cap_w: float, *, running: int = 0) -> None:
        """Begin.

        Args:
            cap_w: Watts of all replicas.
            running: Offline requests that run already, under a pace that was found before.
        """
        self.cap_w = cap_w
        self.most_running = max(START, running)
        self._changed_s = -math.inf
        self._readings: deque[tuple[float, PowerReading]] = deque()
        self._per_request_w: float | None = None
        self._known_until_s = -math.inf

    def look(self, now: float, reading: PowerReading | None) -> int:
        """How many offline requests may run from now on.

        Args:
            now: Seconds, at most a second or so after the look before.
            reading: Of now; None: nothing is measured.
        """
        if reading is None:
            self._readings.clear()
            return self.most_running
        if now < self._changed_s + SETTLE_S:
            return self.most_running
        if reading.power_w > self.cap_w:
            self._leave(now, reading)
            return self.most_running
        self._readings.append((now, reading))
        if now >= self._readings[0][0] + MEASURE_S:
            self._approach(now)
            self._readings.clear()
        return self.most_running

    def _leave(self, now: float, reading: PowerReading) -> None:
        """Too much is drawn: let fewer run than do."""
        self._learn(now, reading)
        too_many = 1
        if (per_request_w := reading.per_request_w) is not None:
            too_many = math.ceil((reading.power_w - AIM * self.cap_w) / per_request_w)
        self._change(now, min(self.most_running, reading.offline - too_many))

    def _approach(self, now: float) -> None:
        """Let so many more run as there is power for."""
        readings = [reading for _, reading in self._readings]
        count = len(readings)
        mean = PowerReading(
            power_w=math.fsum(r.power_w for r in readings) / count,
            idle_w=math.fsum(r.idle_w for r in readings) / count,
            running=round(sum(r.running for r in readings) / count),
            offline=max(r.offline for r in readings),
        )
        self._learn(now, mean)
        base = min(self.most_running, mean.offline)
        if mean.power_w >= ENOUGH * self.cap_w and base == self.most_running:
            return
        most = max(START, 2 * base)
        if self._per_request_w is not None and now < self._known_until_s:
            most = min(most, base + self._room(mean.power_w, self._per_request_w))
        self._change(now, most)

    def _room(self, power_w: float, per_request_w: float) -> int:
        """Requests that there is power for, at no less than each of them takes."""
        more = int((AIM * self.cap_w - power_w) / per_request_w)
        # Where a request is wide, none may fit below the aim, and still one below the cap.
        return max(more, 1 if power_w + per_request_w <= self.cap_w else 0)

    def _learn(self, now: float, reading: PowerReading) -> None:
        """Remember what a request takes, for when none runs."""
        if (per_request_w := reading.per_request_w) is not None:
            self._per_request_w = per_request_w
            self._known_until_s = now + RETRY_S

    def _change(self, now: float, most_running: int) -> None:
        most_running = max(0, most_running)
        if most_running != self.most_running:
            self.most_running = most_running
            self._changed_s = now
        self._readings.clear()
