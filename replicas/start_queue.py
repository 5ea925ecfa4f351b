"""Requests that wait in an engine for their start."""

from __future__ import annotations

import heapq

from replicas.decoding_set import Sequence


class StartQueue:
    """Waiting requests, smallest priority first, then by arrival.

    A request that is taken out stays in the heap until it comes up, so that everything is O(log n).
    """

    __slots__ = ("_heap", "_waiting")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._waiting: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: Sequence) -> None:
        """A request waits."""
        self._waiting[sequence.request_id] = sequence
        heapq.heappush(self._heap, (sequence.priority, sequence.arrival, sequence))

    def first(self) -> Sequence | None:
        """The request that starts next; None when none waits."""
        while self._heap:
            sequence = self._heap[0][2]
            if self._waiting.get(sequence.request_id) is sequence:
                return sequence
            heapq.heappop(self._heap)
        return None

    def pop(self) -> None:
        """Take out the request that `first` returned."""
        del self._waiting[heapq.heappop(self._heap)[2].request_id]

    def remove(self, request_id: str) -> None:
        """Take out a request wherever it stands; one that does not wait is ignored."""
        self._waiting.pop(request_id, None)
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [e for e in self._heap if self._waiting.get(e[2].request_id) is e[2]]
            heapq.heapify(self._heap)
