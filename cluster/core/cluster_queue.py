"""Everything that waits for a replica: in order, or to run alone."""

from __future__ import annotations

import itertools

from cluster.core.queue_limits import QueueFullError, QueueLimits, QueueLoad, QueueMeter
from cluster.core.suspects import Suspects
from policies.bundle import Policy
from policies.fair_share import FairWaitingQueue
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from policies.waiting import Waiting, WaitingQueue, predicted_tokens


class ClusterQueue:
    """The waiting requests, with the load of each class.

    Those that must run alone stand apart, where they are in nobody's way.

    Attributes:
        ordered: All others.
        alone: How many must run alone.
    """

    def __init__(
        self, policy: Policy, suspects: Suspects, limits: QueueLimits | None, *, fair_share: bool
    ) -> None:
        kind = FairWaitingQueue if fair_share else WaitingQueue
        self.ordered: WaitingQueue = kind(policy.ordering, policy.admission)
        self._alone = WaitingQueue(policy.ordering, policy.admission)
        self.alone = 0
        self._places: dict[str, WaitingQueue] = {}
        self._suspects = suspects
        self._limits = limits
        self._meters = [QueueMeter() for _ in RequestClass]
        self._sequence = itertools.count(1)

    @property
    def shares(self) -> FairWaitingQueue | None:
        """The accounts of the tenants, where they share."""
        return self.ordered if isinstance(self.ordered, FairWaitingQueue) else None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._places

    def __getitem__(self, request_id: str) -> Waiting:
        return self._places[request_id][request_id]

    def get(self, request_id: str) -> Waiting | None:
        """A request; None when it does not wait."""
        place = self._places.get(request_id)
        return None if place is None else place[request_id]

    def count(self, request_class: RequestClass) -> int:
        """How many of a class wait."""
        return self._meters[request_class].requests

    def load(self, request_class: RequestClass, now: float) -> QueueLoad:
        """What waits of a class."""
        return self._meters[request_class].load(now)

    def refuse_when_full(self, request: Request, now: float) -> None:
        """Refuse a new request when as much of its class waits as may.

        Raises:
            QueueFullError: So it is.
        """
        if self._limits is None:
            return
        request_class = request.request_class
        meter = self._meters[request_class]
        most_requests, most_tokens = self._limits.of(request_class)
        if meter.requests < most_requests and meter.tokens < most_tokens:
            return
        name, retry_after_s = request_class.name.lower(), meter.load(now).retry_after_s
        raise QueueFullError(
            f"the queue is full: {meter.requests:,} {name} requests wait with {meter.tokens:,} "
            f"predicted tokens (queue.{name}_requests is {most_requests:,}, queue.{name}_tokens "
            f"{most_tokens:,}): ask again in {retry_after_s:.0f} s",
            retry_after_s,
        )

    def next_sequence(self) -> int:
        """A place behind all that were submitted so far, among equals."""
        return next(self._sequence)

    def add(self, waiting: Waiting, now: float) -> None:
        """Add a request."""
        request = waiting.request
        waiting.sequence = waiting.sequence or next(self._sequence)
        waiting.predicted_tokens = predicted_tokens(request, waiting.forecast)
        self._meters[request.request_class].enter(waiting.predicted_tokens, now)
        alone = self._suspects.runs_alone(request.request_id)
        self.alone += alone
        place = self._alone if alone else self.ordered
        self._places[request.request_id] = place
        place.add(waiting)

    def forecast(self, request_id: str, forecast: Forecast) -> None:
        """Give a waiting request another forecast."""
        queue = self._places[request_id]
        queue.forecast(request_id, forecast)
        waiting = queue[request_id]
        before = waiting.predicted_tokens
        waiting.predicted_tokens = predicted_tokens(waiting.request, forecast)
        meter = self._meters[waiting.request.request_class]
        meter.tokens += waiting.predicted_tokens - before

    def remove(self, request_id: str, now: float) -> Waiting:
        """Take a request out, wherever it stands."""
        waiting = self._places[request_id].remove(request_id)
        self._leave(waiting, now)
        return waiting

    def take(self, first: Waiting, now: float) -> None:
        """Take out the request that is first in order: it is dispatched."""
        self.ordered.pop()
        self._leave(first, now)

    def first_alone(self, slots: int) -> Waiting | None:
        """The first of those that must run alone."""
        self._alone.key_pending(slots)
        return self._alone.first()

    def _leave(self, waiting: Waiting, now: float) -> None:
        if self._places.pop(waiting.request.request_id) is self._alone:
            self.alone -= 1
        meter = self._meters[waiting.request.request_class]
        meter.leave(waiting.predicted_tokens, now)
