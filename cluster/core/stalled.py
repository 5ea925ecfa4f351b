"""Requests that wait inside engines, in the order in which room is looked for elsewhere."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

_NOBODY: Mapping[str, StalledRequest] = MappingProxyType({})

LEFT_OVER = 64
"""Entries that are over, and may stay in the heap however few of the others there are."""


@dataclass(slots=True, eq=False)
class StalledRequest:
    """A request that waits inside an engine, evicted there or not started.

    Attributes:
        request_id: Which.
        replica_id: Where.
        rank: Its place in the order: service class, key, place in the order of submission.
        tokens: Output tokens that exist, counted from the original prompt.
        since_s: When it was first said to wait with so many.
        movable: Whether it may be recalled.
    """

    request_id: str
    replica_id: str
    rank: tuple[int, float, int]
    tokens: int
    since_s: float
    movable: bool


class StalledRequests:
    """What the replicas said last of who waits in their engines.

    Those that may be recalled stand in a heap, where entries that are over are dropped lazily, all
    of them once they are more than the others: adding and taking cost O(log n), amortised.
    """

    def __init__(self) -> None:
        self._by_replica: dict[str, dict[str, StalledRequest]] = {}
        self._heap: list[tuple[tuple[int, float, int], int, StalledRequest]] = []
        self._pushes = itertools.count()
        self._count = 0  # of those in `_by_replica`

    def __bool__(self) -> bool:
        return bool(self._by_replica)

    def there(self, replica_id: str) -> Mapping[str, StalledRequest]:
        """Those on one replica, by id."""
        return self._by_replica.get(replica_id, _NOBODY)

    def add(self, stalled: StalledRequest) -> None:
        """Add a request, in the place of what was known of it there."""
        there = self._by_replica.setdefault(stalled.replica_id, {})
        self._count += stalled.request_id not in there
        there[stalled.request_id] = stalled
        if stalled.movable:
            self._push(stalled)

    def discard(self, replica_id: str, request_id: str) -> None:
        """Forget a request; nothing when it is not known there."""
        there = self._by_replica.get(replica_id)
        if there is None or there.pop(request_id, None) is None:
            return
        self._count -= 1
        if not there:
            self.discard_all(replica_id)

    def discard_all(self, replica_id: str) -> None:
        """Forget all of a replica."""
        self._count -= len(self._by_replica.pop(replica_id, _NOBODY))
        if not self._by_replica:
            self._heap.clear()

    def pop(self, last_class: int) -> StalledRequest | None:
        """Take the first out of the order; None when none is left up to this service class."""
        heap = self._heap
        while heap:
            rank, _, stalled = heap[0]
            if not self._waits(stalled):
                heapq.heappop(heap)
            elif rank[0] > last_class:
                return None
            else:
                heapq.heappop(heap)
                return stalled
        return None

    def restore(self, popped: Iterable[StalledRequest]) -> None:
        """Put requests back into the order."""
        for stalled in popped:
            self._push(stalled)

    def _push(self, stalled: StalledRequest) -> None:
        heapq.heappush(self._heap, (stalled.rank, next(self._pushes), stalled))
        if len(self._heap) > 2 * self._count + LEFT_OVER:
            # Behind those that wait on, they would never come to the top.
            self._heap = [entry for entry in self._heap if self._waits(entry[-1])]
            heapq.heapify(self._heap)

    def _waits(self, stalled: StalledRequest) -> bool:
        """Whether this is what is known of the request now."""
        return self.there(stalled.replica_id).get(stalled.request_id) is stalled
