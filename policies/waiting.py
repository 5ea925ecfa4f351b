"""Waiting requests in the order of their static keys."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from policies.admission import Admission
from policies.batch import RequestBatch
from policies.forecast import Forecast
from policies.ordering import Ordering, QueueState
from policies.request import Request

Entry = TypeVar("Entry", bound=tuple[Any, ...])


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
        given_key: The key, where somebody else has computed it.
        precedence: What goes before the key, smaller first; None: the request's class.
        predicted_tokens: Output tokens that are predicted for it, where somebody counts them.
    """

    request: Request
    forecast: Forecast
    attempt: int
    submitted_s: float
    key: float = 0.0
    estimate: int = 0
    overtaken: int = 0
    sequence: int = 0
    given_key: float | None = None
    precedence: int | None = None
    predicted_tokens: int = 0
    version: int = field(default=0, repr=False)


class Place(NamedTuple):
    """A waiting request with what the next `key_pending` makes of it.

    Attributes:
        waiting: The request.
        key: Its static key.
        estimate: Output tokens the admission projects for it.
    """

    waiting: Waiting
    key: float
    estimate: int

    @property
    def rank(self) -> tuple[int, float, int]:
        """What requests are ordered by: precedence, key, order of submission."""
        return _precedence(self.waiting), self.key, self.waiting.sequence


PREVIEWED = 10_000
"""Most requests without a key that `WaitingQueue.peek` looks at, the first by submission."""

KEPT_ENTRIES = 64
"""Entries of a heap that are over and may stay whatever its size."""

SAMPLED = 10_000
"""Most requests that `WaitingQueue.estimated_place` counts by; of more it takes a sample."""


def predicted_tokens(request: Request, forecast: Forecast) -> int:
    """Output tokens that a request is to add: its median within what is known; at least 1."""
    cap = request.max_tokens
    median = cap if forecast.mu >= math.log(cap) else int(math.exp(forecast.mu))
    return max(min(max(median, forecast.lower), cap) - request.generated_tokens, 1)


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
        self._heap: list[tuple[int, float, int, int, int, Waiting]] = []
        self._pushes = itertools.count()
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
        self._heap = compacted(self._heap, len(self._entries))
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
        for waiting, key, estimate in self._keyed(pending, slots):
            waiting.key = key
            waiting.estimate = estimate
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

    def peek(self, count: int, slots: int) -> list[Place]:
        """The first requests in their order, those without a key included; changes nothing.

        Costs O(count log count), and a pass over at most `PREVIEWED` requests without a key.

        Args:
            count: How many at most.
            slots: As for `key_pending`.
        """
        fresh = sorted(self._preview(slots), key=by_rank)
        keyed = in_order(self._heap)
        return list(itertools.islice(heapq.merge(keyed, fresh, key=by_rank), count))

    def place(self, request_id: str, slots: int) -> Place:
        """One request, as `peek` tells it.

        Args:
            request_id: One that waits.
            slots: As for `key_pending`.
        """
        return next(iter(self._as_keyed([self._entries[request_id]], slots)))

    def estimated_place(self, request_id: str, slots: int) -> int:
        """About the how-manieth a request is, from 1; counted among at most `SAMPLED` others.

        Args:
            request_id: One that waits.
            slots: As for `key_pending`.
        """
        own = self.place(request_id, slots).rank
        sample, each = self._sample(slots)
        return 1 + each * sum(place.rank < own for place in sample)

    @property
    def is_previewed(self) -> bool:
        """Whether `peek` looks at all requests that have no key."""
        return len(self._unkeyed) <= PREVIEWED

    def _sample(self, slots: int) -> tuple[list[Place], int]:
        """Evenly chosen requests, and for how many each of them stands."""
        each = -(-len(self._entries) // SAMPLED) or 1
        chosen = list(itertools.islice(self._entries.values(), 0, None, each))
        return list(self._as_keyed(chosen, slots)), each

    def _preview(self, slots: int) -> Iterable[Place]:
        unkeyed = list(itertools.islice(self._unkeyed.values(), PREVIEWED))
        return self._keyed(unkeyed, slots) if unkeyed else ()

    def _as_keyed(self, chosen: Sequence[Waiting], slots: int) -> Iterator[Place]:
        unkeyed = [w for w in chosen if w.request.request_id in self._unkeyed]
        if unkeyed:
            yield from self._keyed(unkeyed, slots)
        for waiting in chosen:
            if waiting.request.request_id not in self._unkeyed:
                yield Place(waiting, waiting.key, waiting.estimate)

    def _keyed(self, pending: Sequence[Waiting], slots: int) -> Iterator[Place]:
        """Requests with the keys and estimates that they have from now on."""
        batch = RequestBatch.of([w.request for w in pending], [w.forecast for w in pending])
        estimates = self._admission.estimates(batch).tolist()
        keys = [w.given_key for w in pending]
        if None in keys:
            state = QueueState(waiting=len(self), slots=slots)
            computed = self._ordering.keys(batch, state).tolist()
            keys = [c if k is None else k for k, c in zip(keys, computed, strict=True)]
        return itertools.starmap(Place, zip(pending, keys, estimates, strict=True))

    def _push(self, waiting: Waiting) -> None:
        # Of entries with one place all but one are stale: the number of the push decides.
        rank = (_precedence(waiting), waiting.key, waiting.sequence, next(self._pushes))
        heapq.heappush(self._heap, (*rank, waiting.version, waiting))
        self._heap = compacted(self._heap, len(self._entries))


def in_order(heap: Sequence[tuple[Any, ...]]) -> Iterator[Place]:
    """The requests of a heap whose entries end with version and request; the heap stays as it is.

    Entries that are over are passed over.
    """
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        (*_, version, waiting), index = heapq.heappop(frontier)
        if version == waiting.version:
            yield Place(waiting, waiting.key, waiting.estimate)
        for child in range(2 * index + 1, min(2 * index + 3, len(heap))):
            heapq.heappush(frontier, (heap[child], child))


def compacted(heap: list[Entry], waiting: int) -> list[Entry]:
    """A heap whose entries end with version and request, without those that are over.

    What was cancelled far behind the head never comes up by itself. The heap as it is while at
    least half of it stands for requests that wait, so that this costs O(1) per entry.

    Args:
        heap: The heap.
        waiting: Requests that wait in it, or will.
    """
    if len(heap) <= 2 * waiting + KEPT_ENTRIES:
        return heap
    heap = [entry for entry in heap if entry[-2] == entry[-1].version]
    heapq.heapify(heap)
    return heap


def _precedence(waiting: Waiting) -> int:
    return waiting.request.request_class if waiting.precedence is None else waiting.precedence


def by_rank(place: Place) -> tuple[int, float, int]:
    """The rank, to sort by."""
    return place.rank
