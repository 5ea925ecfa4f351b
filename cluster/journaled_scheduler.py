"""The scheduling core with a journal of all that it is told and all that it decides."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.core.candidates import Candidate
from cluster.core.explanation import Standing
from cluster.core.fleet import Fleet
from cluster.core.lacks import Lacked
from cluster.core.made_tokens import MadeTokens
from cluster.journal import Journal
from cluster.journal_events import (
    Action,
    Adopted,
    Cancelled,
    Decided,
    Draining,
    Ended,
    Evicted,
    Forecasted,
    GaveBack,
    Header,
    Joined,
    Length,
    Lost,
    Paced,
    Progressed,
    Ref,
    Sizes,
    Stalled,
    Submitted,
)
from cluster.scheduler import ClusterScheduler, Dispatch, QueueLoad, Recall
from policies.bundle import Policy
from policies.forecast import Forecast
from policies.ledger import Replica
from policies.request import Request, RequestClass


def open_journal(config: ClusterConfig) -> Journal | None:
    """The journal that the configuration asks for."""
    if config.journal is None:
        return None
    header = Header(
        model=config.model,
        policy=config.policy.model_dump(mode="json"),
        limits=config.queue.model_dump(exclude={"replacement_s"}),
        started_unix_s=time.time(),
    )
    return Journal(Path(config.journal), header)


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

    def placement(self, request_id: str) -> tuple[str, Forecast] | None:
        """See `ClusterScheduler.placement`."""
        return self._core.placement(request_id)

    def runs_on(self, replica_id: str) -> int:
        """See `ClusterScheduler.runs_on`."""
        return self._core.runs_on(replica_id)

    def works(self, replica_id: str) -> bool:
        """See `ClusterScheduler.works`."""
        return self._core.works(replica_id)

    def queue(self, request_class: RequestClass) -> QueueLoad:
        """See `ClusterScheduler.queue`."""
        return self._core.queue(request_class)

    def explain(self, request_id: str, now: float) -> Standing | None:
        """See `ClusterScheduler.explain`."""
        return self._core.explain(request_id, now)

    def lacked(self, since_s: float, until_s: float) -> Lacked:
        """See `ClusterScheduler.lacked`."""
        return self._core.lacked(since_s, until_s)

    def head(self, count: int, now: float) -> list[Standing]:
        """See `ClusterScheduler.head`."""
        return self._core.head(count, now)

    def candidates(self, now: float) -> list[Candidate]:
        """See `ClusterScheduler.candidates`."""
        return self._core.candidates(now)

    def running_of(self, request_class: RequestClass) -> int:
        """See `ClusterScheduler.running_of`."""
        return self._core.running_of(request_class)

    @property
    def made(self) -> MadeTokens:
        """See `ClusterScheduler.made`."""
        return self._core.made

    def submit(
        self,
        request: Request,
        forecast: Forecast,
        now: float,
        *,
        attempt: int = 1,
        strikes: float = 0.0,
        accepted: bool = False,
    ) -> bool:
        """See `ClusterScheduler.submit`."""
        request_id = request.request_id
        number = self._requests.give(request_id)
        sizes, length = _sizes(request), _length(forecast)
        self._journal.add(
            Submitted(now, number, request_id, sizes, length, attempt, strikes, accepted)
        )
        try:
            return self._core.submit(
                request, forecast, now, attempt=attempt, strikes=strikes, accepted=accepted
            )
        finally:
            self._forget_unknown(request_id)

    def adopt(
        self,
        request: Request,
        forecast: Forecast,
        now: float,
        *,
        replica_id: str,
        attempt: int,
        key: float,
        tokens: int,
        strikes: float = 0.0,
    ) -> bool:
        """See `ClusterScheduler.adopt`."""
        request_id = request.request_id
        self._journal.add(
            Adopted(
                now,
                self._requests.give(request_id),
                request_id,
                _sizes(request),
                _length(forecast),
                attempt,
                self._replicas.find(replica_id),
                key if math.isfinite(key) else None,
                tokens,
                strikes,
            )
        )
        adopted = self._core.adopt(
            request,
            forecast,
            now,
            replica_id=replica_id,
            attempt=attempt,
            key=key,
            tokens=tokens,
            strikes=strikes,
        )
        self._forget_unknown(request_id)
        return adopted

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
                replica.look_ahead,
                replica.gives_way,
            )
        )
        self._core.replica_joined(replica, now)

    def replica_draining(self, replica_id: str, now: float) -> None:
        """See `ClusterScheduler.replica_draining`."""
        self._journal.add(Draining(now, self._replicas.find(replica_id)))
        self._core.replica_draining(replica_id, now)

    def give_back(self, replica_id: str, now: float) -> None:
        """See `ClusterScheduler.give_back`."""
        self._journal.add(GaveBack(now, self._replicas.find(replica_id)))
        self._core.give_back(replica_id, now)

    def replica_lost(self, replica_id: str, now: float, *, blame: float = 0.0) -> dict[str, float]:
        """See `ClusterScheduler.replica_lost`."""
        self._journal.add(Lost(now, self._replicas.find(replica_id), blame))
        self._replicas.forget(replica_id)
        orphans = self._core.replica_lost(replica_id, now, blame=blame)
        for request_id in orphans:
            self._requests.forget(request_id)
        return orphans

    def progressed(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """See `ClusterScheduler.progressed`."""
        tokens = self._numbered(tokens_by_request)
        self._journal.add(Progressed(now, self._replicas.find(replica_id), tokens))
        self._core.progressed(replica_id, tokens_by_request, now)

    def stalled(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """See `ClusterScheduler.stalled`."""
        tokens = self._numbered(tokens_by_request)
        self._journal.add(Stalled(now, self._replicas.find(replica_id), tokens))
        self._core.stalled(replica_id, tokens_by_request, now)

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

    def pace_offline(self, most_running: int | None, now: float) -> None:
        """See `ClusterScheduler.pace_offline`."""
        self._journal.add(Paced(now, most_running))
        self._core.pace_offline(most_running, now)

    @property
    def offline_running(self) -> int:
        """See `ClusterScheduler.offline_running`."""
        return self._core.offline_running

    def decide(self, now: float) -> list[Dispatch | Recall]:
        """See `ClusterScheduler.decide`; what was recorded up to here goes to the file."""
        actions = self._core.decide(now)
        recorded = []
        for action in recorded_actions(actions):
            request = self._requests.find(str(action.request))
            replica = self._replicas.find(str(action.replica))
            to = self._replicas.find(str(action.to))
            sent = action.attempt, action.key, action.peak_blocks
            recorded.append(Action(request, replica, *sent, to, action.hand_back))
        self._journal.add(Decided(now, recorded))
        self._journal.flush()
        return actions

    def _forget_unknown(self, request_id: str) -> None:
        if self._core.state(request_id) == "unknown":
            self._requests.forget(request_id)

    def _numbered(self, tokens_by_request: Mapping[str, int]) -> list[tuple[Ref, int]]:
        return [(self._requests.find(name), count) for name, count in tokens_by_request.items()]


def recorded_actions(actions: list[Dispatch | Recall]) -> list[Action]:
    """Decisions as a journal tells them, with requests and replicas by id."""
    return [
        Action(action.request_id, action.replica_id, to=action.to, hand_back=action.hand_back)
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
