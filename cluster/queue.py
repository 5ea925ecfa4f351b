"""Waiting requests in the order of their static keys."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.admission import Admission
from policies.batch import RequestBatch
from policies.forecast import Forecast
from policies.ordering import Ordering, QueueState
from policies.request import Request


@dataclass(slots=True, eq=False)
class Waiting:
    """A waiting request.

    Attributes:
        request: The request.
        forecast: Its current forecast.
        attempt: The dispatch it waits for, from 1.
        key: Static key of the ordering; smaller goes first.
        estimate: Output tokens the admission projects for it.
        overtaken: Requests behind it that were dispatched while it was the head and fitted nowhere.
        submitted_s: When it entered the queue, in seconds of the caller's clock.
        sequence: Place in the order of submission, given by the queue where it is 0; breaks ties of
            the key.
    """

    request: Request
    forecast: Forecast
    attempt: int
    submitted_s: float
    key: float = 0.0
    estimate: int = 0
    overtaken: int = 0
    sequence: int = 0
    version: int = field(default=0, repr=False)


class WaitingQueue:
    """A heap per service class, stale entries dropped lazily.

    A key is computed once per forecast, for all requests that arrived since the last look in one
    vectorised call; ageing is part of the key, so time passing costs nothing. Adding, removing and
    taking are O(log n).
    """

    def __init__(self, ordering: Ordering, admission: Admission) -> None:
        self._ordering = ordering
        self._admission = admission
        self._entries: dict[str, Waiting] = {}
        self._heap: list[tuple[int, float, int, int, Waiting]] = []
        self._unkeyed: dict[str, Waiting] = {}
        self._sequence = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def __getitem__(self, request_id: str) -> Waiting:
        return self._entries[request_id]

    def add(self, waiting: Waiting) -> None:
        """Add a request; its key is computed at the next `key_pending`."""
        waiting.sequence = waiting.sequence or next(self._sequence)
        self._entries[waiting.request.request_id] = waiting
        self._unkeyed[waiting.request.request_id] = waiting

    def forecast(self, request_id: str, forecast: Forecast) -> None:
        """Give a waiting request another forecast, and so another key."""
        waiting = self._entries[request_id]
        waiting.forecast = forecast
        waiting.version += 1
        self._unkeyed[request_id] = waiting

    def remove(self, request_id: str) -> Waiting:
        """Take a request out, wherever it stands."""
        waiting = self._entries.pop(request_id)
        waiting.version += 1
        self._unkeyed.pop(request_id, None)
        return waiting

    def key_pending(self, slots: int) -> None:
        """Compute the keys of everything that has none yet.

        Args:
            slots: Decode slots of all replicas (B of the TIE score).
        """
        if not self._unkeyed:
            return
        pending = list(self._unkeyed.values())
        self._unkeyed.clear()
        batch = RequestBatch.of([w.request for w in pending], [w.forecast for w in pending])
        keys = self._ordering.keys(batch, QueueState(waiting=len(self), slots=slots))
        estimates = self._admission.estimates(batch)
        for waiting, key, estimate in zip(pending, keys.tolist(), estimates.tolist(), strict=True):
            waiting.key, waiting.estimate = key, estimate
            self._push(waiting)

    def first(self) -> Waiting | None:
        """The first request; None when nothing with a key waits."""
        heap = self._heap
        while heap:
            *_, version, waiting = heap[0]
            if version == waiting.version:
                return waiting
            heapq.heappop(heap)
        return None

    def pop(self) -> None:
        """Remove the request that `first` returned."""
        waiting = heapq.heappop(self._heap)[-1]
        del self._entries[waiting.request.request_id]

    def restore(self, popped: Sequence[Waiting]) -> None:
        """Put back requests that were popped, at the places they had."""
        for waiting in popped:
            self._entries[waiting.request.request_id] = waiting
            self._push(waiting)

    def _push(self, waiting: Waiting) -> None:
        rank = (waiting.request.request_class, waiting.key, waiting.sequence, waiting.version)
        heapq.heappush(self._heap, (*rank, waiting))
