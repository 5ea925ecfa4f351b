"""What the scheduling core knows."""

from __future__ import annotations

from cluster.core.cluster_queue import ClusterQueue
from cluster.core.decisions import ImpossibleRequestError, Recall
from cluster.core.fleet import Fleet
from cluster.core.guard_band import GuardBand
from cluster.core.isolation import Isolation
from cluster.core.lacks import QueueLacks
from cluster.core.learned_bounds import LearnedBounds
from cluster.core.made_tokens import MadeTokens
from cluster.core.moving import MovingRequests
from cluster.core.offline_pace import OfflinePace
from cluster.core.queue_limits import QueueLimits
from cluster.core.relocations import Relocations
from cluster.core.running import Running, RunningRequests
from cluster.core.stalled import StalledRequests
from cluster.core.suspects import Suspects
from policies.bundle import Policy
from policies.request import Request
from policies.waiting import Waiting


class CoreState:
    """The parts of the scheduling core's state, made for each other.

    Attributes:
        fleet: What each replica holds.
        suspects: Who may have killed engines.
        learned: What evictions taught.
        guard_band: What offline work leaves free.
        waiting: Who waits in the queue.
        stalled: Who waits inside engines.
        running: Who was dispatched.
        moving: Who is on the way from one replica to another, or back to the queue.
        made: How many output tokens the replicas have made.
        pace: How many offline requests may run at once.
        isolation: Who runs alone.
        relocations: The search for room elsewhere.
        recalls: Requests that nobody wants any more where they run.
        giving_back: Replicas that are to hand everything back.
        lacks: What has kept the first request of the queue from starting, and for how long.
    """

    def __init__(
        self, policy: Policy, refine_after: float, limits: QueueLimits | None, *, fair_share: bool
    ) -> None:
        self.fleet = Fleet(policy.admission, refine_after, policy.horizon)
        self.suspects = Suspects()
        self.learned = LearnedBounds(policy.eviction)
        self.waiting = ClusterQueue(policy, self.suspects, limits, fair_share=fair_share)
        self.stalled = StalledRequests()
        self.running = RunningRequests(self.fleet, self.stalled, self.waiting.shares)
        self.guard_band = GuardBand(policy.guard_band, self.fleet, self.running)
        self.moving = MovingRequests(self.fleet, policy.admission)
        self.made = MadeTokens()
        self.pace = OfflinePace(self.running, self.moving)
        self.isolation = Isolation(self.fleet, self.waiting, self.running)
        self.relocations = Relocations(
            self.fleet,
            self.running,
            self.stalled,
            self.moving,
            self.learned,
            self.suspects,
            self.guard_band,
        )
        self.recalls: list[Recall] = []
        self.giving_back: dict[str, None] = {}
        self.lacks = QueueLacks()

    def known(self, request_id: str) -> Waiting | Running | None:
        """A request as it waits, runs or is on its way; None when it is unknown."""
        if (running := self.running.get(request_id)) is not None:
            return running
        if (waiting := self.waiting.get(request_id)) is not None:
            return waiting
        return self.moving.get(request_id)

    def supersede(self, request_id: str, now: float) -> None:
        """What is known of a request holds no more, wherever it is."""
        if request_id in self.running:
            self.stop(request_id)
        elif request_id in self.waiting:
            self.waiting.remove(request_id, now)
        else:
            self.moving.forget(request_id)

    def stop(self, request_id: str) -> None:
        """Nobody wants a running request any more where it runs."""
        self.recalls.append(Recall(request_id, self.running.leave(request_id).replica_id))

    def forget(self, request_id: str) -> None:
        """A request is unknown from now on."""
        self.learned.forget(request_id)
        self.suspects.forget(request_id)

    def room_lost(self, request_id: str, now: float) -> None:
        """The replica where a request was to go on takes it no more."""
        if (waiting := self.moving.room_lost(request_id)) is not None:
            self.waiting.add(waiting, now)

    def refuse_impossible(self, request: Request) -> None:
        """Refuse what no replica can hold; a recalled request is unknown from now on.

        Raises:
            ImpossibleRequestError: It is too large.
        """
        total = request.prompt_tokens + request.max_tokens
        limit = self.fleet.largest_request
        if not len(self.fleet) or total <= limit:
            return
        if self.moving.is_recalled(request.request_id):
            self.moving.forget(request.request_id)
            self.forget(request.request_id)
        raise ImpossibleRequestError(
            f"request {request.request_id!r} needs {total} tokens (prompt "
            f"{request.prompt_tokens} + max_tokens {request.max_tokens}), but the model's "
            f"context and KV cache hold {limit}: shorten the prompt or lower max_tokens to "
            f"{max(0, limit - request.prompt_tokens)}"
        )
