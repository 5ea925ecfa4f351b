"""The scheduling core: told what happened and when, it answers what to do. No IO, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.fleet import NEVER, Fleet
from cluster.ledger import REFINE_AFTER, Replica
from cluster.queue import Waiting, WaitingQueue
from policies.batch import RequestBatch
from policies.bundle import Policy
from policies.forecast import Forecast
from policies.request import Request, RequestClass

ONLINE_MEMORY_S = 60.0
"""How long after the latest online arrival offline work keeps clear of the guard band."""


class ImpossibleRequestError(ValueError):
    """No replica of the cluster can ever run the request."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start a request on a replica.

    Attributes:
        request: The request, with the output tokens that exist already.
        replica_id: Where to run it.
        attempt: Number of this dispatch of the request, from 1.
        forecast: The forecast the decision was made with.
        key: Its static ordering key.
        queued_s: Seconds it waited.
        peak_blocks: Projected peak of the replica's KV use with it, in blocks.
    """

    request: Request
    replica_id: str
    attempt: int
    forecast: Forecast
    key: float
    queued_s: float
    peak_blocks: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Abort a request on a replica: it was cancelled or goes on elsewhere."""

    request_id: str
    replica_id: str


@dataclass(slots=True)
class _Running:
    request: Request
    forecast: Forecast
    attempt: int
    replica_id: str
    sequence: int


class ClusterScheduler:
    """Decides which request runs where and when.

    Events only record; `decide` alone has effects, and returns them in the order in which they
    must be carried out. Equal events at equal times give equal decisions. A request id is known
    from `submit` until `finished`, `cancel` or the loss of its replica; after that it is unknown.
    """

    def __init__(self, policy: Policy, *, refine_after: float = REFINE_AFTER) -> None:
        """Start without replicas.

        Args:
            policy: What to decide with.
            refine_after: Share of the steps it had left after which a running request's length is
                estimated again; 0: whenever it has progressed.
        """
        self.policy = policy
        self.fleet = Fleet(policy.admission, refine_after, policy.horizon)
        self._waiting = WaitingQueue(policy.ordering, policy.admission)
        self._running: dict[str, _Running] = {}
        self._recalls: list[Recall] = []
        self._last_online_s: float | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests dispatched and not yet ended."""
        return len(self._running)

    def state(self, request_id: str) -> str:
        """`waiting`, `running` or `unknown`."""
        if request_id in self._waiting:
            return "waiting"
        return "running" if request_id in self._running else "unknown"

    def submit(
        self,
        request: Request,
        forecast: Forecast,
        now: float,
        *,
        attempt: int = 1,
        place: int | None = None,
    ) -> bool:
        """Queue a request.

        Submission is idempotent: a request that waits or runs in the same or a later attempt is
        left alone. A later attempt supersedes a running one, whose replica is told to drop it.

        Args:
            request: The request.
            forecast: What is known now; `forecast` replaces it.
            now: Seconds.
            attempt: Number of the dispatch this asks for.
            place: Its place among requests with equal keys, from 1; None: in order of submission.

        Returns:
            False when it was known already.

        Raises:
            ImpossibleRequestError: It is larger than every replica; nothing was queued.
        """
        self._refuse_impossible(request)
        if request.request_id in self._waiting:
            return False
        running = self._running.get(request.request_id)
        if running is not None:
            if attempt <= running.attempt:
                return False
            self._stop(request.request_id)
        if request.request_class is RequestClass.ONLINE:
            self._last_online_s = now
        self._waiting.add(Waiting(request, forecast, attempt, now, sequence=place or 0))
        return True

    def forecast(self, request_id: str, forecast: Forecast, now: float) -> None:
        """A forecast arrived; one for a running request corrects its memory projection."""
        if request_id in self._waiting:
            self._waiting.forecast(request_id, forecast)
        elif request_id in self._running:
            running = self._running[request_id]
            running.forecast = forecast
            self.fleet[running.replica_id].learn(request_id, forecast)
            self.fleet.changed(running.replica_id, refine=True)

    def cancel(self, request_id: str, now: float) -> bool:
        """The client wants no more of it. Returns False when it was not known."""
        if request_id in self._waiting:
            self._waiting.remove(request_id)
            return True
        if request_id in self._running:
            self._stop(request_id)
            return True
        return False

    def replica_joined(self, replica: Replica, now: float) -> None:
        """A replica is ready for work."""
        self.fleet.join(replica)

    def replica_lost(self, replica_id: str, now: float) -> list[str]:
        """A replica is gone. Returns the requests that ran there, which are now unknown."""
        if replica_id not in self.fleet:
            return []
        orphans = self.fleet.leave(replica_id).request_ids
        for request_id in orphans:
            del self._running[request_id]
        self._recalls = [r for r in self._recalls if r.replica_id != replica_id]
        return orphans

    def progressed(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """A replica's own counts of output tokens, counted from each original prompt."""
        if replica_id in self.fleet:
            self.fleet[replica_id].progressed(tokens_by_request)
            self.fleet.changed(replica_id, refine=True)

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
            False when it does not run there (superseded, cancelled): nothing was changed.
        """
        running = self._running.get(request_id)
        if running is None or running.replica_id != replica_id:
            return False
        self._leave(request_id)
        reached = replace(running.request, generated_tokens=tokens)
        (lower,) = self.policy.eviction.learned(RequestBatch.of([reached], [running.forecast]))
        forecast = running.forecast.at_least(int(lower))
        rest = replace(reached, generated_tokens=tokens if kept is None else kept)
        self._waiting.add(
            Waiting(rest, forecast, running.attempt + 1, now, sequence=running.sequence)
        )
        return True

    def finished(self, replica_id: str, request_id: str, tokens: int, now: float) -> bool:
        """A request ended on a replica with `tokens` output tokens.

        Returns:
            False when it does not run there (superseded, cancelled): nothing was changed.
        """
        running = self._running.get(request_id)
        if running is None or running.replica_id != replica_id:
            return False
        self._leave(request_id)
        return True

    def decide(self, now: float) -> list[Dispatch | Recall]:
        """What to do now, in this order; each returned action is taken as done."""
        actions: list[Dispatch | Recall] = [*self._recalls]
        self._recalls = []
        if not len(self._waiting) or not self.fleet.has_free_slot:
            return actions
        self._waiting.key_pending(self.fleet.slots)
        backfill = self.policy.backfill
        passed: list[Waiting] = []
        while (head := self._waiting.first()) is not None and self.fleet.has_free_slot:
            dispatch = self._place(head, now)
            if dispatch is None:
                if head.overtaken >= backfill or len(passed) == backfill:
                    break
                self._waiting.pop()
                passed.append(head)
            else:
                self._waiting.pop()
                actions.append(dispatch)
                for waiting in passed:
                    waiting.overtaken += 1
                if any(w.overtaken >= backfill for w in passed):
                    break
        self._waiting.restore(passed)
        return actions

    def patience(self, now: float) -> int:
        """Steps that the replicas make at least before time alone may change what `decide` said.

        Until something ends, arrives or is learnt; `NEVER` where only that can.
        """
        if not self.fleet.has_free_slot:
            return NEVER
        head = self._waiting.first()
        if head is None or self.policy.backfill or self._guard_band(head.request, now):
            return 1
        return self.fleet.patience(*_sizes(head))

    def _place(self, head: Waiting, now: float) -> Dispatch | None:
        request = head.request
        placed = self.fleet.place(*_sizes(head), self._guard_band(request, now))
        if placed is None:
            return None
        replica_id, peak_blocks = placed
        self._enter(head, replica_id)
        queued_s = now - head.submitted_s
        return Dispatch(
            request, replica_id, head.attempt, head.forecast, head.key, queued_s, peak_blocks
        )

    def _guard_band(self, request: Request, now: float) -> float:
        """Offline work leaves room while online requests come in."""
        if request.request_class is RequestClass.ONLINE or self._last_online_s is None:
            return 0.0
        return self.policy.guard_band if now - self._last_online_s < ONLINE_MEMORY_S else 0.0

    def _enter(self, head: Waiting, replica_id: str) -> None:
        request = head.request
        self._running[request.request_id] = _Running(
            request, head.forecast, head.attempt, replica_id, head.sequence
        )
        self.fleet[replica_id].add(request, head.forecast, head.estimate)
        self.fleet.changed(replica_id)

    def _leave(self, request_id: str) -> str:
        replica_id = self._running.pop(request_id).replica_id
        self.fleet[replica_id].remove(request_id)
        self.fleet.changed(replica_id)
        return replica_id

    def _stop(self, request_id: str) -> None:
        self._recalls.append(Recall(request_id, self._leave(request_id)))

    def _refuse_impossible(self, request: Request) -> None:
        total = request.prompt_tokens + request.max_tokens
        limit = self.fleet.largest_request
        if len(self.fleet) and total > limit:
            raise ImpossibleRequestError(
                f"request {request.request_id!r} needs {total} tokens (prompt "
                f"{request.prompt_tokens} + max_tokens {request.max_tokens}), but the model's "
                f"context and KV cache hold {limit}: shorten the prompt or lower max_tokens to "
                f"{max(0, limit - request.prompt_tokens)}"
            )


def _sizes(head: Waiting) -> tuple[int, int, int]:
    """Tokens it holds when it starts, is projected to add, and can reach."""
    request = head.request
    return (
        request.prompt_tokens + request.generated_tokens,
        head.estimate - request.generated_tokens,
        request.prompt_tokens + request.max_tokens,
    )
