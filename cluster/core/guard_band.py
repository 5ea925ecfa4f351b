"""Room that offline work leaves while online requests come."""

from __future__ import annotations

import math
from typing import NamedTuple

from cluster.core.fleet import Fleet
from cluster.core.running import RunningRequests
from policies.forecast import Forecast
from policies.request import Request, RequestClass

ONLINE_MEMORY_S = 60.0
"""How long after the latest online arrival offline work keeps clear of the guard band."""

RATE_S = 30.0
"""Time constant over which arrivals and ends are counted."""

MISSED = 0.01
"""Share of the online arrivals that may find no place free, where their rate is steady: offline
requests give way to these, at the price of a second prefill."""

LEAST_LOAD, MOST_LOAD = 0.01, 0.95
"""Bounds on the share of all places that online work is taken to need."""

UNKNOWN_LOAD = 0.1
"""The same before anything has ended."""

SHARE_STEP = 0.05
"""The share of memory that is kept changes by no less, so that what was found holds for a while."""

MOST_KEPT = 0.5
"""Share of places and of memory that is kept at most."""


class Kept(NamedTuple):
    """What a request must leave.

    Attributes:
        share: Share of each replica's memory that must stay free, unless the replica is empty.
        places: Whether all places that are free now must stay so, but for those of empty replicas.
    """

    share: float = 0.0
    places: bool = False


NOTHING_KEPT = Kept()


class GuardBand:
    """Keeps as many places in batches free as online arrivals need, and the memory that goes along.

    Online requests come at a rate of `a`, and full batches end requests at a rate of `e`. When
    offline work starts only while more than k places are free, the places that bursts take out of
    these k are a birth-death process, so that an arrival finds none with a probability of about
    (a / e)^k. That bounds k.

    Args:
        share: Least share of each replica's memory that offline work leaves free; 0: nothing is
            kept, of places neither.
        fleet: The ledgers.
        running: Who runs.
    """

    def __init__(self, share: float, fleet: Fleet, running: RunningRequests) -> None:
        self._share = share
        self._fleet = fleet
        self._running = running
        self._last_online_s = -math.inf
        self._online = _Decayed()
        self._online_tokens = _Decayed()
        self._ended = _Decayed()

    def submitted(self, request: Request, forecast: Forecast, now: float) -> None:
        """A request came."""
        if request.request_class is RequestClass.ONLINE:
            self._last_online_s = now
            self._online.add(1.0, now)
            median = min(math.exp(min(forecast.mu, 40.0)), request.max_tokens)
            self._online_tokens.add(request.prompt_tokens + median, now)

    def ended(self, now: float) -> None:
        """A request ended, so that a place became free."""
        self._ended.add(1.0, now)

    def binds(self, request: Request, now: float) -> bool:
        """Whether a request gives way to online ones that may come."""
        if request.request_class is RequestClass.ONLINE:
            return False
        return now - self._last_online_s < ONLINE_MEMORY_S

    def kept(self, request: Request, now: float, free_places: int | None = None) -> Kept:
        """What a request must leave.

        Args:
            request: The request.
            now: Seconds.
            free_places: Places that are free, from whoever has counted them without making the
                fleet's estimates again; None: as the fleet says.
        """
        if not self._share or not self.binds(request, now):
            return NOTHING_KEPT
        places = self.places(now)
        tokens = self._online_tokens.at(now) / max(self._online.at(now), 1e-9)
        needed = places * tokens / max(self._fleet.capacity_tokens, 1)
        needed = min(SHARE_STEP * math.ceil(needed / SHARE_STEP), MOST_KEPT)
        if free_places is None:
            free_places = self._fleet.free_places
        return Kept(max(self._share, needed), free_places <= places)

    def places(self, now: float) -> int:
        """How many places in batches offline work leaves free."""
        batches = self._fleet.places
        load = UNKNOWN_LOAD
        if (ended := self._ended.at(now)) >= 1.0:
            # What runs now ends at the rate of what ended lately; full batches, at more than that.
            full = ended * batches / max(len(self._running), 1)
            load = self._online.at(now) / full
        load = min(max(load, LEAST_LOAD), MOST_LOAD)
        needed = math.ceil(math.log(MISSED) / math.log(load))
        return max(min(needed, int(MOST_KEPT * batches)), 1)


class _Decayed:
    """A sum in which what came `RATE_S` seconds ago counts 1/e."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._at_s = 0.0

    def add(self, value: float, now: float) -> None:
        self._sum = self.at(now) + value
        self._at_s = now

    def at(self, now: float) -> float:
        return self._sum * math.exp(-max(now - self._at_s, 0.0) / RATE_S)
