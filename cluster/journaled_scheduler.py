"""The scheduling core with a journal of all that it is told and all that it decides."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.fleet import Fleet
from cluster.journal import Journal
from cluster.journal_events import (
    Action,
    Cancelled,
    Decided,
    Ended,
    Evicted,
    Forecasted,
    Header,
    Joined,
    Length,
    Lost,
    Progressed,
    Ref,
    Sizes,
    Submitted,
)
from cluster.ledger import Replica
from cluster.scheduler import ClusterScheduler, Dispatch, Recall
from policies.bundle import Policy
from policies.forecast import Forecast
from policies.request import Request


def open_journal(config: ClusterConfig) -> Journal | None:
    """The journal that the configuration asks for."""
    if config.journal is None:
        return None
    header = Header(
        model=config.model,
        policy=config.policy.model_dump(mode="json"),
        started_unix_s=time.time(),
    )
    return Journal(Path(config.journal).expanduser(), header)


class JournaledScheduler:
    """A `ClusterScheduler` whose calls are recorded before they are made.

    The file grows without bound: about 320 bytes for a request (140 to submit, 85 for the later
    forecast, 55 to dispatch, 36 to finish) and 10 for each progress report while it runs; 30 bytes
    a second when idle.

    Args:
        core: What decides; new, so that a replay can begin where it did.
        journal: Where to record.
    """

    def __init__(self, core: ClusterScheduler, journal: Journal) -> None:
        self._core = core
        self._journal = journal
        self._requests = _Numbers()
        self._replicas = _Numbers()

    @property
    def policy(self) -> Policy:
        """See `ClusterScheduler`."""
        return self._core.policy

    @property
    def fleet(self) -> Fleet:
        """See `ClusterScheduler`."""
        return self._core.fleet

    @property
    def waiting(self) -> int:
        """See `ClusterScheduler.waiting`."""
        return self._core.waiting

    @property
    def running(self) -> int:
        """See `ClusterScheduler.running`."""
        return self._core.running

    def state(self, request_id: str) -> str:
        """See `ClusterScheduler.state`."""
        return self._core.state(request_id)

    def submit(self, request: Request, forecast: Forecast, now: float, *, attempt: int = 1) -> bool:
        """See `ClusterScheduler.submit`."""
        request_id = request.request_id
        number = self._requests.give(request_id)
        self._journal.add(
            Submitted(now, number, request_id, _sizes(request), _length(forecast), attempt)
        )
        try:
            return self._core.submit(request, forecast, now, attempt=attempt)
        finally:
            if self._core.state(request_id) == "unknown":
                self._requests.forget(request_id)

    def forecast(self, request_id: str, forecast: Forecast, now: float) -> None:
        """See `ClusterScheduler.forecast`."""
        self._journal.add(Forecasted(now, self._requests.find(request_id), _length(forecast)))
        self._core.forecast(request_id, forecast, now)

    def cancel(self, request_id: str, now: float) -> bool:
        """See `ClusterScheduler.cancel`."""
        self._journal.add(Cancelled(now, self._requests.find(request_id)))
        self._requests.forget(request_id)
        return self._core.cancel(request_id, now)

    def replica_joined(self, replica: Replica, now: float) -> None:
        """See `ClusterScheduler.replica_joined`."""
        number = self._replicas.give(replica.replica_id)
        self._journal.add(
            Joined(
                now,
                number,
                replica.replica_id,
                replica.kv_blocks,
                replica.block_size,
                replica.slots,
                replica.max_model_len,
            )
        )
        self._core.replica_joined(replica, now)

    def replica_lost(self, replica_id: str, now: float) -> list[str]:
        """See `ClusterScheduler.replica_lost`."""
        self._journal.add(Lost(now, self._replicas.find(replica_id)))
        self._replicas.forget(replica_id)
        orphans = self._core.replica_lost(replica_id, now)
        for request_id in orphans:
            self._requests.forget(request_id)
        return orphans

    def progressed(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """See `ClusterScheduler.progressed`."""
        tokens = [(self._requests.find(name), count) for name, count in tokens_by_request.items()]
        self._journal.add(Progressed(now, self._replicas.find(replica_id), tokens))
        self._core.progressed(replica_id, tokens_by_request, now)

    def evicted(
        self, replica_id: str, request_id: str, tokens: int, now: float, *, kept: int | None = None
    ) -> bool:
        """See `ClusterScheduler.evicted`."""
        request, replica = self._requests.find(request_id), self._replicas.find(replica_id)
        self._journal.add(Evicted(now, replica, request, tokens, kept))
        return self._core.evicted(replica_id, request_id, tokens, now, kept=kept)

    def finished(self, replica_id: str, request_id: str, tokens: int, now: float) -> bool:
        """See `ClusterScheduler.finished`."""
        request, replica = self._requests.find(request_id), self._replicas.find(replica_id)
        self._journal.add(Ended(now, replica, request, tokens))
        ended = self._core.finished(replica_id, request_id, tokens, now)
        if ended:
            self._requests.forget(request_id)
        return ended

    def decide(self, now: float) -> list[Dispatch | Recall]:
        """See `ClusterScheduler.decide`; what was recorded up to here goes to the file."""
        actions = self._core.decide(now)
        recorded = []
        for action in recorded_actions(actions):
            request = self._requests.find(str(action.request))
            replica = self._replicas.find(str(action.replica))
            recorded.append(
                Action(request, replica, action.attempt, action.key, action.peak_blocks)
            )
        self._journal.add(Decided(now, recorded))
        self._journal.flush()
        return actions


def recorded_actions(actions: list[Dispatch | Recall]) -> list[Action]:
    """Decisions as a journal tells them, with requests and replicas by id."""
    return [
        Action(action.request_id, action.replica_id)
        if isinstance(action, Recall)
        else Action(
            request=action.request.request_id,
            replica=action.replica_id,
            attempt=action.attempt,
            key=action.key if math.isfinite(action.key) else None,
            peak_blocks=action.peak_blocks,
        )
        for action in actions
    ]


class _Numbers:
    """Numbers of ids that are alive; no number is given twice."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._next = itertools.count()

    def give(self, name: str) -> int:
        """The number of an id, a new one when it has none."""
        if name not in self._numbers:
            self._numbers[name] = next(self._next)
        return self._numbers[name]

    def find(self, name: str) -> Ref:
        """The number of an id, or the id."""
        return self._numbers.get(name, name)

    def forget(self, name: str) -> None:
        self._numbers.pop(name, None)


def _sizes(request: Request) -> Sizes:
    return Sizes(
        request.prompt_tokens,
        request.max_tokens,
        request.arrival_s,
        int(request.request_class),
        request.tenant,
        request.generated_tokens,
        request.output_tokens,
    )


def _length(forecast: Forecast) -> Length:
    return Length(forecast.mu, forecast.sigma, forecast.lower, forecast.upper, forecast.source)
