"""Requests on the way from the engine where they waited to another replica."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from cluster.core.fleet import Fleet
from policies.admission import Admission
from policies.batch import RequestBatch
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from policies.waiting import Waiting, predicted_tokens


@dataclass(slots=True)
class _Moving:
    waiting: Waiting  # its attempt is the one that was recalled, then the one that is submitted
    source: str
    to: str  # empty when it is gone


class MovingRequests:
    """Those that were recalled, and those of them that were submitted again.

    Each has its room in the account of the replica where it goes on, from the recall until it is
    dispatched there or forgotten.
    """

    def __init__(self, fleet: Fleet, admission: Admission) -> None:
        self._fleet = fleet
        self._admission = admission
        self._recalled: dict[str, _Moving] = {}
        self._resubmitted: dict[str, _Moving] = {}
        # Per replica, those that are yet to be handed back, and the rooms that are kept.
        self._sources: Counter[str] = Counter()
        self._rooms: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._recalled) + len(self._resubmitted)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._recalled or request_id in self._resubmitted

    def __getitem__(self, request_id: str) -> Waiting:
        return self._find(request_id).waiting

    def get(self, request_id: str) -> Waiting | None:
        """What a request waits as; None when it is not on its way."""
        moving = self._recalled.get(request_id) or self._resubmitted.get(request_id)
        return None if moving is None else moving.waiting

    @property
    def resubmitted(self) -> int:
        """Those that can be dispatched."""
        return len(self._resubmitted)

    @property
    def offline(self) -> int:
        """Offline requests among them; counts them one by one."""
        moving = [*self._recalled.values(), *self._resubmitted.values()]
        return sum(m.waiting.request.request_class is RequestClass.OFFLINE for m in moving)

    def is_recalled(self, request_id: str) -> bool:
        """Whether its next attempt is due."""
        return request_id in self._recalled

    def route(self, request_id: str) -> tuple[str, str]:
        """From where to where a request is on its way; the latter is empty: to the queue."""
        moving = self._find(request_id)
        return moving.source, moving.to

    def is_recalled_from(self, request_id: str, replica_id: str) -> bool:
        """Whether its next attempt is due after one on this replica."""
        moving = self._recalled.get(request_id)
        return moving is not None and moving.source == replica_id

    def recall(self, waiting: Waiting, source: str, to: str) -> None:
        """A request is recalled from one replica and its room kept on another.

        Args:
            waiting: What it waits as; its attempt is the one that is recalled.
            source: Where it was.
            to: Where its room is kept.
        """
        request = waiting.request
        self._recalled[request.request_id] = _Moving(waiting, source, to)
        self._sources[source] += 1
        self._rooms[to] += 1
        self._fleet.enter(to, request, waiting.forecast, waiting.estimate)

    def hand_back(self, waiting: Waiting, source: str) -> None:
        """A request is recalled from a replica, to wait in the queue with the key that it has.

        Args:
            waiting: What it waits as; its attempt is the one that is recalled.
            source: Where it was.
        """
        waiting.given_key = waiting.key
        self._recalled[waiting.request.request_id] = _Moving(waiting, source, "")
        self._sources[source] += 1

    def recalled_from(self, replica_id: str) -> int:
        """Those that were recalled from a replica and whose next attempt is due."""
        return self._sources.get(replica_id, 0)

    def rooms_on(self, replica_id: str) -> int:
        """Those of which the room is kept on a replica."""
        return self._rooms.get(replica_id, 0)

    def resubmit(
        self,
        request: Request,
        forecast: Forecast,
        attempt: int,
        now: float,
        *,
        keep_room: bool = True,
    ) -> Waiting | None:
        """Its next attempt is here, with the arrival, the key and the place among equals it had.

        Args:
            request: The request as it is submitted.
            forecast: The forecast it had, bounded by its output tokens.
            attempt: Number of the attempt.
            now: Seconds.
            keep_room: Whether it may go where its room is kept.

        Returns:
            None when its room is still kept; else what has to wait in the queue.
        """
        request_id = request.request_id
        moving = self._find(request_id)
        before, to = moving.waiting, moving.to
        request = replace(request, arrival_s=before.request.arrival_s)
        waiting = Waiting(
            request,
            forecast,
            attempt,
            now,
            key=before.key,
            sequence=before.sequence,
            given_key=before.given_key,
        )
        self.forget(request_id)
        if (
            not to
            or not keep_room
            or request.prompt_tokens + request.max_tokens > self._fleet[to].replica.largest_request
        ):
            return waiting
        (estimate,) = self._admission.estimates(RequestBatch.of([request], [forecast]))
        waiting.estimate = int(estimate)
        waiting.predicted_tokens = predicted_tokens(request, forecast)
        self._fleet.enter(to, request, forecast, waiting.estimate)
        self._resubmitted[request_id] = _Moving(waiting, moving.source, to)
        self._rooms[to] += 1
        return None

    def take(self) -> list[tuple[Waiting, str]]:
        """Take out those that can be dispatched, with where; their room there is theirs now."""
        taken = [(moving.waiting, moving.to) for moving in self._resubmitted.values()]
        for _, to in taken:
            _subtract(self._rooms, to)
        self._resubmitted.clear()
        return taken

    def forecast(self, request_id: str, forecast: Forecast) -> None:
        """A forecast arrived."""
        moving = self._find(request_id)
        moving.waiting.forecast = forecast
        if moving.to:
            self._fleet.learn(moving.to, request_id, forecast)

    def forget(self, request_id: str) -> None:
        """Free the room that is kept for a request."""
        if request_id in self._recalled:
            moving = self._recalled.pop(request_id)
            _subtract(self._sources, moving.source)
        else:
            moving = self._resubmitted.pop(request_id)
        if moving.to:
            _subtract(self._rooms, moving.to)
            self._fleet.remove(moving.to, request_id)

    def room_lost(self, request_id: str) -> Waiting | None:
        """The replica where its room was kept takes it no more, and its entry there is gone.

        Returns:
            What has to wait in the queue; None when its next attempt is due.
        """
        moving = self._find(request_id)
        _subtract(self._rooms, moving.to)
        if request_id in self._recalled:
            moving.to = ""
            return None
        return self._resubmitted.pop(request_id).waiting

    def source_lost(self, replica_id: str) -> list[str]:
        """A replica is gone: forget the requests that were recalled from it; returns their ids."""
        lost = [i for i, moving in self._recalled.items() if moving.source == replica_id]
        for request_id in lost:
            self.forget(request_id)
        return lost

    def _find(self, request_id: str) -> _Moving:
        return self._recalled.get(request_id) or self._resubmitted[request_id]


def _subtract(counts: Counter[str], replica_id: str) -> None:
    counts[replica_id] -= 1
    if not counts[replica_id]:
        del counts[replica_id]
