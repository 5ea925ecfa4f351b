"""Fair shares of a queue: of the tenants of a class, the one that was served least is next."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.admission import Admission
from policies.ordering import Ordering
from policies.request import Request
from policies.waiting import Place, Waiting, WaitingQueue, by_rank, compacted, in_order

PROMPT_WEIGHT = 1
"""What a prompt token counts in a tenant's share (OSDI 2024, "Fairness in Serving LLMs")."""

OUTPUT_WEIGHT = 2
"""What an output token counts there."""

KEPT_LANES = 1024
"""Tenants without a request that are remembered at least."""


def price(waiting: Waiting) -> float:
    """What a tenant is charged when a request is dispatched, in weighted tokens."""
    # The tenant has paid for the prompt with the first attempt.
    prompt_tokens = waiting.request.prompt_tokens if waiting.attempt == 1 else 0
    return PROMPT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * waiting.predicted_tokens


@dataclass(slots=True, eq=False)
class _Lane:
    """A tenant within a class: its requests that wait, and what it was served."""

    precedence: int
    order: int
    counter: float = 0.0
    waiting: int = 0
    running: int = 0
    stands: bool = False  # among the turns, by an entry of this version
    version: int = 0
    heap: list[tuple[float, int, int, int, Waiting]] = field(default_factory=list)


class FairWaitingQueue(WaitingQueue):
    """A waiting queue that shares service among tenants by a virtual token counter each.

    The next request is that of the tenant with the least counter, among those of the first class
    that has any; which of its requests, the ordering decides. A tenant is charged what is predicted
    when a request is dispatched, and the difference when it is known. One that comes back after it
    had nothing waiting starts no lower than the least of those that wait, so that nobody saves up
    service (Sheng et al., OSDI 2024). Everything costs O(log n + log tenants).
    """

    def __init__(self, ordering: Ordering, admission: Admission) -> None:
        super().__init__(ordering, admission)
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._orders = itertools.count()
        # Per class, the tenants that have somebody waiting by what they were served.
        self._turns: dict[int, list[tuple[float, int, int, _Lane]]] = {}
        # Per class, the tenant whose last request left the queue last.
        self._left: dict[int, _Lane] = {}
        self._sweep_at = KEPT_LANES

    def counters(self, precedence: int) -> dict[str, float]:
        """What each tenant of a class was served, in weighted tokens."""
        lanes = self._lanes.items()
        return {tenant: lane.counter for (p, tenant), lane in lanes if p == precedence}

    def add(self, waiting: Waiting) -> None:
        """See `WaitingQueue.add`."""
        lane = self._lane(waiting.request)
        if not lane.waiting:
            lane.counter = max(lane.counter, self._floor(lane.precedence))
        lane.waiting += 1
        if not lane.stands:
            self._stand(lane)
        super().add(waiting)

    def remove(self, request_id: str) -> Waiting:
        """See `WaitingQueue.remove`."""
        waiting = super().remove(request_id)
        lane = self._lane(waiting.request)
        self._take_from(lane)
        lane.heap = compacted(lane.heap, lane.waiting)
        return waiting

    def first(self) -> Waiting | None:
        """See `WaitingQueue.first`."""
        for precedence in sorted(self._turns):
            while (lane := self._top(precedence)) is not None:
                heap = lane.heap
                while heap:
                    *_, version, waiting = heap[0]
                    if version == waiting.version:
                        return waiting
                    heapq.heappop(heap)
                self._sit(lane)  # its requests have no keys yet
        return None

    def pop(self) -> None:
        """See `WaitingQueue.pop`."""
        waiting = self.first()
        assert waiting is not None, "nobody waits"
        lane = self._lane(waiting.request)
        heapq.heappop(lane.heap)
        del self._entries[waiting.request.request_id]
        self._take_from(lane)

    def restore(self, popped: Sequence[Waiting]) -> None:
        """See `WaitingQueue.restore`."""
        for waiting in popped:
            self._lane(waiting.request).waiting += 1
        super().restore(popped)

    def charge(self, request: Request, tokens: float) -> None:
        """A tenant's request is dispatched.

        Args:
            request: The request.
            tokens: What it is predicted to cost, in weighted tokens.
        """
        lane = self._lane(request)
        lane.running += 1
        self._count(lane, tokens)

    def settle(self, request: Request, tokens: float) -> None:
        """A request that was charged runs no more.

        Args:
            request: The request.
            tokens: What it has cost beyond what it was charged, in weighted tokens.
        """
        lane = self._lane(request)
        lane.running -= 1
        self._count(lane, tokens)

    def peek(self, count: int, slots: int) -> list[Place]:
        """See `WaitingQueue.peek`: as if what runs cost what was predicted of it."""
        fresh: defaultdict[_Lane, list[Place]] = defaultdict(list)
        for place in sorted(self._preview(slots), key=by_rank):
            fresh[self._lane(place.waiting.request)].append(place)
        places: list[Place] = []
        for precedence in sorted({precedence for precedence, _ in self._lanes}):
            turns = []
            for lane in self._waiting_lanes(precedence):
                order = heapq.merge(in_order(lane.heap), fresh[lane], key=by_rank)
                if (first := next(order, None)) is not None:
                    turns.append((lane.counter, lane.order, first, order))
            heapq.heapify(turns)
            while turns and len(places) < count:
                counter, number, first, order = turns[0]
                places.append(first)
                if (following := next(order, None)) is None:
                    heapq.heappop(turns)
                else:
                    counter += price(first.waiting)
                    heapq.heapreplace(turns, (counter, number, following, order))
        return places

    def estimated_place(self, request_id: str, slots: int) -> int:
        """See `WaitingQueue.estimated_place`: others' turns come by what they were served."""
        own = self.place(request_id, slots)
        own_lane = self._lane(own.waiting.request)
        sample, each = self._sample(slots)
        by_lane: defaultdict[_Lane, list[Place]] = defaultdict(list)
        for place in sample:
            by_lane[self._lane(place.waiting.request)].append(place)
        before = [place for place in by_lane[own_lane] if place.rank < own.rank]
        reaches = own_lane.counter + each * sum(price(place.waiting) for place in before)
        earlier = (v.waiting for v in self._lanes.values() if v.precedence < own_lane.precedence)
        ahead = each * len(before) + sum(earlier)
        for lane in self._waiting_lanes(own_lane.precedence):
            counter, served = lane.counter, 0
            for place in sorted(by_lane[lane], key=by_rank) if lane is not own_lane else ():
                if counter > reaches:
                    break
                counter += each * price(place.waiting)
                served += each
            ahead += min(lane.waiting, served)
        return 1 + ahead

    def _waiting_lanes(self, precedence: int) -> list[_Lane]:
        lanes = self._lanes.items()
        return [lane for (p, _), lane in lanes if p == precedence and lane.waiting]

    def _push(self, waiting: Waiting) -> None:
        lane = self._lane(waiting.request)
        rank = (waiting.key, waiting.sequence, next(self._pushes), waiting.version)
        heapq.heappush(lane.heap, (*rank, waiting))
        lane.heap = compacted(lane.heap, lane.waiting)
        if not lane.stands:
            self._stand(lane)

    def _count(self, lane: _Lane, tokens: float) -> None:
        lane.counter += tokens
        if lane.stands:
            self._stand(lane)

    def _stand(self, lane: _Lane) -> None:
        """Put a lane at its place among the turns, whatever its place was."""
        lane.version += 1
        lane.stands = True
        turns = self._turns.setdefault(lane.precedence, [])
        heapq.heappush(turns, (lane.counter, lane.order, lane.version, lane))

    def _sit(self, lane: _Lane) -> None:
        lane.version += 1
        lane.stands = False

    def _top(self, precedence: int) -> _Lane | None:
        """The least served tenant of a class that has somebody waiting."""
        turns = self._turns.get(precedence, [])
        while turns:
            *_, version, lane = turns[0]
            if version == lane.version:
                if lane.waiting:
                    return lane
                self._sit(lane)
            heapq.heappop(turns)
        return None

    def _floor(self, precedence: int) -> float:
        """Where a tenant of a class starts that has had nobody waiting."""
        lane = self._top(precedence) or self._left.get(precedence)
        return 0.0 if lane is None else lane.counter

    def _take_from(self, lane: _Lane) -> None:
        lane.waiting -= 1
        if not lane.waiting:
            self._left[lane.precedence] = lane

    def _lane(self, request: Request) -> _Lane:
        key = (int(request.request_class), request.tenant)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= self._sweep_at:
                self._sweep()
            lane = self._lanes[key] = _Lane(key[0], next(self._orders))
        return lane

    def _sweep(self) -> None:
        """Forget tenants that would start where everybody starts."""
        floors = {precedence: self._floor(precedence) for precedence, _ in self._lanes}
        self._lanes = {
            key: lane
            for key, lane in self._lanes.items()
            if lane.waiting or lane.running or lane.counter > floors[key[0]]
        }
        self._sweep_at = max(KEPT_LANES, 2 * len(self._lanes))
