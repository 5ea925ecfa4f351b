"""The scheduling core: told what happened and when, it answers what to do. No IO, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.core.candidates import Candidate
from cluster.core.core_state import CoreState
from cluster.core.decisions import Dispatch, ImpossibleRequestError, Recall
from cluster.core.dispatcher import Dispatcher
from cluster.core.entrance import Entrance
from cluster.core.explanation import Explanations, Standing
from cluster.core.lacks import Lacked
from cluster.core.made_tokens import MadeTokens
from cluster.core.queue_limits import QueueFullError, QueueLimits, QueueLoad
from cluster.core.suspects import PoisonedRequestError, blamed
from policies.bundle import Policy
from policies.forecast import Forecast
from policies.ledger import REFINE_AFTER, Replica
from policies.request import Request, RequestClass
from policies.waiting import Waiting

__all__ = [
    "ClusterScheduler",
    "Dispatch",
    "ImpossibleRequestError",
    "PoisonedRequestError",
    "QueueFullError",
    "QueueLimits",
    "QueueLoad",
    "Recall",
]


class ClusterScheduler:
    """Decides which request runs where and when.

    Events only record; `decide` alone has effects, and returns them in the order in which they
    must be carried out. Equal events at equal times give equal decisions. A request id is known
    from `submit` until `finished`, `cancel` or the loss of its replica; after that it is unknown.

    A request that waits inside an engine (`stalled`) is recalled when the projection of another
    replica has room for it. From then on it is in that replica's account, and `recalled` until its
    next attempt is submitted, which `decide` dispatches there. It is not recalled again before it
    has run there, so that every recall but a request's first comes after an eviction.

    A request that is suspected of killing engines runs alone (see `Isolation`), or no more.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        refine_after: float = REFINE_AFTER,
        limits: QueueLimits | None = None,
        fair_share: bool = False,
        avoid_slow: bool = True,
    ) -> None:
        """Start without replicas.

        Args:
            policy: What to decide with.
            refine_after: Share of the steps it had left after which a running request's length is
                estimated again; 0: whenever it has progressed.
            limits: What may wait; None: everything.
            fair_share: Whether the tenants of a class share by predicted tokens.
            avoid_slow: Whether work goes around replicas that are slow beside the others.
        """
        self.policy = policy
        self._state = state = CoreState(policy, refine_after, limits, fair_share=fair_share)
        self.fleet = state.fleet
        self._waiting = state.waiting
        self._running = state.running
        self._moving = state.moving
        self._learned = state.learned
        self._avoid_slow = avoid_slow
        self._entrance = Entrance(state, policy.admission)
        self._explanations = Explanations(state, policy.ordering.name)
        self._dispatcher = Dispatcher(state, policy.backfill, avoid_slow=avoid_slow)
        self._now = 0.0

    # What is known.

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests dispatched and not yet ended, also those on the way to another replica."""
        return len(self._running) + len(self._moving)

    @property
    def pending(self) -> bool:
        """Whether anything waits for a decision that may come with time."""
        return bool(len(self._waiting) or self._state.stalled or self._moving.resubmitted)

    def state(self, request_id: str) -> str:
        """`waiting`, `running`, `recalled` (its next attempt is due) or `unknown`."""
        if request_id in self._running:
            return "running"
        if self._moving.is_recalled(request_id):
            return "recalled"
        known = request_id in self._waiting or request_id in self._moving
        return "waiting" if known else "unknown"

    def placement(self, request_id: str) -> tuple[str, Forecast] | None:
        """Replica and forecast of a running request; None when it does not run."""
        running = self._running.get(request_id)
        return None if running is None else (running.replica_id, running.forecast)

    def runs_on(self, replica_id: str) -> int:
        """Requests that run or wait on a replica, or that it is yet to hand back.

        Those of which the next attempt is due after one there count too: it is when it is
        submitted that nothing is lost with the replica. 0 for an unknown replica.
        """
        if replica_id not in self.fleet:
            return 0
        running = len(self.fleet[replica_id]) - self._moving.rooms_on(replica_id)
        return running + self._moving.recalled_from(replica_id)

    def works(self, replica_id: str) -> bool:
        """Whether requests run or wait on a replica, as far as it has been told."""
        if replica_id not in self.fleet:
            return False
        return len(self.fleet[replica_id]) > self._moving.rooms_on(replica_id)

    def queue(self, request_class: RequestClass) -> QueueLoad:
        """What waits of a class, at the time that was told last."""
        return self._waiting.load(request_class, self._now)

    # What people ask; it has no effect.

    def explain(self, request_id: str, now: float) -> Standing | None:
        """Where a request stands at a time in seconds, and why; None when it is unknown."""
        return self._explanations.of(request_id, now)

    def lacked(self, since_s: float, until_s: float) -> Lacked:
        """What kept the first of the queue from starting, in seconds (see `QueueLacks.between`)."""
        return self._state.lacks.between(since_s, until_s)

    def head(self, count: int, now: float) -> list[Standing]:
        """The first requests of the queue in their order (see `Explanations.head`)."""
        return self._explanations.head(count, now)

    def candidates(self, now: float) -> list[Candidate]:
        """Every replica, considered for the first request of the queue."""
        return self._explanations.candidates(now)

    def running_of(self, request_class: RequestClass) -> int:
        """Requests of a class that run."""
        return self._running.count(request_class)

    @property
    def made(self) -> MadeTokens:
        """Output tokens that the replicas have made."""
        return self._state.made

    # What happens to requests.

    def submit(
        self,
        request: Request,
        forecast: Forecast,
        now: float,
        *,
        attempt: int = 1,
        place: int | None = None,
        strikes: float = 0.0,
        accepted: bool = False,
    ) -> bool:
        """Queue a request.

        Submission is idempotent: a request that waits or runs in the same or a later attempt is
        left alone. A later attempt supersedes it, and a replica that runs it is told to drop it.
        The next attempt of a recalled one goes where its room is kept, with the arrival, the key
        and the forecast that it had.

        Args:
            request: The request; its output tokens so far bound its length from below.
            forecast: What is known now; `forecast` replaces it.
            now: Seconds.
            attempt: Number of the dispatch this asks for.
            place: Its place among requests with equal keys, from 1; None: in order of submission.
            strikes: How far it is suspected of killing engines (see `cluster.core.suspects`).
            accepted: Whether another core had accepted it: it may wait though the queue is full.

        Returns:
            False when it was known already.

        Raises:
            ImpossibleRequestError: It is larger than every replica; nothing was queued, and a
                recalled one is unknown from now on.
            PoisonedRequestError: It has too many strikes; nothing was changed.
            QueueFullError: It is new, and as much of its class waits as may; nothing was changed.
        """
        self._now = now
        return self._entrance.submit(
            request, forecast, now, attempt, place, strikes, accepted=accepted
        )

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
        """A request runs already, on a replica that has joined: it enters its ledger.

        Args:
            request: The request as it was dispatched there.
            forecast: What is known now.
            now: Seconds.
            replica_id: Where it runs.
            attempt: Number of the dispatch.
            key: The ordering key that it was dispatched with.
            tokens: Output tokens that exist, counted from its original prompt.
            strikes: See `submit`.

        Returns:
            False when a later attempt is known, or this one elsewhere, or the replica is not:
            nothing was changed, and nobody wants it there.
        """
        self._now = now
        return self._entrance.adopt(
            request, forecast, now, replica_id, attempt, key, tokens, strikes
        )

    def forecast(self, request_id: str, forecast: Forecast, now: float) -> None:
        """A forecast arrived; one for a request with a place corrects its memory projection."""
        if request_id in self._waiting:
            request = self._waiting[request_id].request
            self._waiting.forecast(request_id, self._learned.bounded(request, forecast))
        elif (running := self._running.get(request_id)) is not None:
            running.forecast = self._learned.bounded(running.request, forecast)
            self.fleet.learn(running.replica_id, request_id, running.forecast)
        elif request_id in self._moving:
            request = self._moving[request_id].request
            self._moving.forecast(request_id, self._learned.bounded(request, forecast))

    def cancel(self, request_id: str, now: float) -> bool:
        """The client wants no more of it. Returns False when it was not known."""
        if self._state.known(request_id) is None:
            return False
        self._state.supersede(request_id, now)
        self._state.forget(request_id)
        return True

    def evicted(
        self, replica_id: str, request_id: str, tokens: int, now: float, *, kept: int | None = None
    ) -> bool:
        """A replica evicted a request at `tokens` output tokens and gave it back: it waits again.

        What was learnt of its length stays, and counts in its new place in the queue.

        Args:
            replica_id: Who evicted it.
            request_id: Which.
            tokens: Output tokens it had reached, below its cap.
            now: Seconds.
            kept: Output tokens with which it goes on; None: all of them, 0: it restarts.

        Returns:
            False when it does not run there (superseded, cancelled, recalled): nothing was changed.
        """
        if not self._running.runs(request_id, replica_id):
            return False
        running = self._running.leave(request_id, tokens)
        reached, forecast = self._learned.evicted(running.request, running.forecast, tokens)
        rest = replace(reached, generated_tokens=tokens if kept is None else kept)
        again = Waiting(rest, forecast, running.attempt + 1, now, sequence=running.sequence)
        self._waiting.add(again, now)
        return True

    def finished(self, replica_id: str, request_id: str, tokens: int, now: float) -> bool:
        """A request ended on a replica with `tokens` output tokens.

        One that was recalled ends, too, if it went on there before it was told.

        Returns:
            False when it does not run there (superseded, cancelled): nothing was changed.
        """
        if self._running.runs(request_id, replica_id):
            rest = tokens - self.fleet[replica_id].generated(request_id)
            self._state.made.add(replica_id, rest)
            self._running.leave(request_id, tokens)
        elif self._moving.is_recalled_from(request_id, replica_id):
            self._moving.forget(request_id)
        else:
            return False
        self._state.forget(request_id)
        self._state.guard_band.ended(now)
        return True

    # What happens to replicas.

    def replica_joined(self, replica: Replica, now: float) -> None:
        """A replica is ready for work."""
        self.fleet.join(replica)

    def replica_draining(self, replica_id: str, now: float) -> None:
        """A replica takes nothing more; an unknown one is ignored.

        What waits in its engine is recalled as room is found elsewhere, and what was to go on there
        waits in the queue.
        """
        if replica_id not in self.fleet or self.fleet.is_draining(replica_id):
            return
        self.fleet.drain(replica_id)
        for request_id in self.fleet[replica_id].request_ids:
            if request_id not in self._running:
                self.fleet.remove(replica_id, request_id)
                self._state.room_lost(request_id, now)

    def give_back(self, replica_id: str, now: float) -> None:
        """Everything that still runs on a replica is to be handed back, and it takes nothing more.

        An unknown replica is ignored.
        """
        if replica_id in self.fleet:
            self.replica_draining(replica_id, now)
            self._state.giving_back[replica_id] = None

    def replica_lost(self, replica_id: str, now: float, *, blame: float = 0.0) -> dict[str, float]:
        """A replica is gone.

        Those that ran or waited there are lost with it, and those that were recalled from there and
        not submitted again yet: nobody can tell whether the replica has told their clients. Those
        that were to go on there are not lost: they wait for their next attempt, or in the queue.

        Args:
            replica_id: Which; an unknown one takes nothing with it.
            now: Seconds.
            blame: Strikes for each request that was lost (see `cluster.core.suspects`).

        Returns:
            The strikes of each lost request, which is unknown from now on.
        """
        if replica_id not in self.fleet:
            return {}
        self._state.stalled.discard_all(replica_id)
        self._state.giving_back.pop(replica_id, None)
        self._state.made.forget(replica_id)
        lost: dict[str, float] = {}
        ledger = self.fleet.leave(replica_id)
        for request_id in ledger.request_ids:
            if (running := self._running.get(request_id)) is not None:
                tokens = ledger.generated(request_id)
                got_further = tokens > running.request.generated_tokens
                self._running.lose(request_id, tokens)
                lost[request_id] = blamed(blame, got_further=got_further)
            else:
                self._state.room_lost(request_id, now)
        lost |= dict.fromkeys(self._moving.source_lost(replica_id), blame)
        orphans = {i: self._state.suspects[i] + strikes for i, strikes in lost.items()}
        for request_id in orphans:
            self._state.forget(request_id)
        recalls = self._state.recalls
        self._state.recalls = [r for r in recalls if r.replica_id != replica_id]
        return orphans

    def progressed(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """A replica's own counts of output tokens, counted from each original prompt."""
        if replica_id not in self.fleet:
            return
        running, tokens = self.fleet.progressed(replica_id, tokens_by_request)
        self._state.made.add(replica_id, tokens)
        if running and self._avoid_slow:
            self.fleet.speeds.progressed(replica_id, tokens, running, now)

    def stalled(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """All requests that wait inside a replica's engine: evicted there or not started.

        Args:
            replica_id: Whose engine.
            tokens_by_request: Output tokens of each, counted from its original prompt. Those that
                do not run there (superseded, cancelled, recalled) are ignored.
            now: Seconds.
        """
        if replica_id in self.fleet:
            self._state.relocations.stalled(replica_id, tokens_by_request, now)

    # What to do.

    def pace_offline(self, most_running: int | None, now: float) -> None:
        """From now on offline requests are dispatched only while fewer than so many run.

        Those that run go on. Online requests are never held.

        Args:
            most_running: Offline requests that may run at once; None: any number.
            now: Seconds.

        Raises:
            ValueError: It is negative.
        """
        if most_running is not None and most_running < 0:
            raise ValueError(f"most_running is {most_running}, must be at least 0, or None")
        self._state.pace.most_running = most_running

    @property
    def offline_running(self) -> int:
        """Offline requests among those that run."""
        return self._state.pace.running

    def decide(self, now: float) -> list[Dispatch | Recall]:
        """What to do now, in this order; each returned action is taken as done.

        Requests that wait inside engines are begun: in each service class they are given room
        before those in the queue.
        """
        self._now = now
        actions = self._dispatcher.decide(now)
        if self._state.recalls:
            actions, self._state.recalls = [*self._state.recalls, *actions], []
        return actions

    def patience(self, now: float) -> int:
        """Steps that the replicas make at least before time alone may change what `decide` said.

        Until something ends, arrives or is learnt; `NEVER` where only that can.
        """
        return self._dispatcher.patience(now)
