"""Requests that wait inside engines, and the search for room elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.core.decisions import Recall
from cluster.core.fleet import Fleet
from cluster.core.guard_band import GuardBand
from cluster.core.learned_bounds import LearnedBounds
from cluster.core.moving import MovingRequests
from cluster.core.running import Running, RunningRequests
from cluster.core.stalled import StalledRequest, StalledRequests
from cluster.core.suspects import Suspects
from policies.request import Request, RequestClass
from policies.waiting import Waiting

ENGINE_PATIENCE_S = 1.0
"""A request that an engine has had wait for so long is not admitted there, whatever our projection
says: the engine's own knows more."""

STALLED_LOOKED_AT = 16
"""Most waiting requests inside engines that one round leaves there, before it looks at no more."""


class Relocations:
    """Recalls requests from engines that have them wait, or that are to have none any more."""

    def __init__(
        self,
        fleet: Fleet,
        running: RunningRequests,
        stalled: StalledRequests,
        moving: MovingRequests,
        learned: LearnedBounds,
        suspects: Suspects,
        guard_band: GuardBand,
    ) -> None:
        self._fleet = fleet
        self._running = running
        self._stalled = stalled
        self._moving = moving
        self._learned = learned
        self._suspects = suspects
        self._guard_band = guard_band

    def stalled(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        """See `ClusterScheduler.stalled`."""
        here = {
            request_id: min(tokens, self._running[request_id].request.max_tokens - 1)
            for request_id, tokens in tokens_by_request.items()
            if self._running.runs(request_id, replica_id)
        }
        before = self._stalled.there(replica_id)
        gone = [request_id for request_id in before if request_id not in here]
        for request_id in gone:
            self._stalled.discard(replica_id, request_id)
        self._fleet.started(replica_id, gone)
        if not here:
            return
        self._fleet.progressed(replica_id, here)
        for request_id, tokens in here.items():
            if request_id not in before or before[request_id].tokens != tokens:
                self._stall(request_id, tokens, now)

    def decide(self, up_to: RequestClass, now: float) -> list[Recall]:
        """Find room elsewhere for requests of these classes that wait inside engines, in order."""
        recalls: list[Recall] = []
        if not self._stalled or len(self._fleet) == 1:
            return recalls
        left: list[StalledRequest] = []
        goes_on: dict[str, bool] = {}
        while len(left) < STALLED_LOOKED_AT and (stalled := self._stalled.pop(up_to)) is not None:
            home = stalled.replica_id
            # Engines start requests in this order, too: where the first waits, all others do.
            if home not in goes_on:
                goes_on[home] = self._goes_on_there(stalled, now)
            recall = None if goes_on[home] else self._recall(stalled, now)
            if recall is None:
                left.append(stalled)
            else:
                recalls.append(recall)
                del goes_on[home]
        self._stalled.restore(left)
        return recalls

    def hand_back(self, replica_id: str, now: float) -> list[Recall]:
        """Recall everything that runs on a replica, to wherever there is room."""
        recalls = []
        for request_id in self._running.on(replica_id):
            tokens = self._fleet[replica_id].generated(request_id)
            running = self._running.leave(request_id)
            self._moving.hand_back(_waiting(running, tokens, now), replica_id)
            recalls.append(Recall(request_id, replica_id, hand_back=True))
        return recalls

    def _stall(self, request_id: str, tokens: int, now: float) -> None:
        running = self._running[request_id]
        has_run = tokens > running.request.generated_tokens
        if has_run:
            request, forecast = running.request, running.forecast
            _, running.forecast = self._learned.evicted(request, forecast, tokens)
            self._fleet.learn(running.replica_id, request_id, running.forecast)
        rank = (int(running.request.request_class), running.key, running.sequence)
        movable = has_run or not running.recalled
        if self._suspects.runs_alone(request_id):
            movable = False
        self._stalled.add(
            StalledRequest(request_id, running.replica_id, rank, tokens, now, movable)
        )

    def _goes_on_there(self, stalled: StalledRequest, now: float) -> bool:
        if now - stalled.since_s >= ENGINE_PATIENCE_S:
            return False
        replica_id = stalled.replica_id
        if self._fleet.is_closed(replica_id) or self._fleet.is_avoided(replica_id):
            return False
        waiting = self._stalled.there(replica_id)
        return self._fleet.lets_go_on(replica_id, stalled.request_id, waiting)

    def _recall(self, stalled: StalledRequest, now: float) -> Recall | None:
        request_id, home = stalled.request_id, stalled.replica_id
        request = self._running[request_id].request
        held, steps = self._fleet[home].sizes(request_id)
        most = request.prompt_tokens + request.max_tokens
        kept = self._guard_band.kept(request, now)
        placed = self._fleet.place(
            held,
            steps,
            most,
            kept.share,
            besides=home,
            online=request.request_class is RequestClass.ONLINE,
            only_empty=kept.places,
        )
        if placed is None:
            return None
        tokens = self._fleet[home].generated(request_id)
        running = self._running.leave(request_id)
        to, _ = placed
        waiting = _waiting(running, tokens, now)
        waiting.estimate = tokens + steps
        self._moving.recall(waiting, home, to)
        return Recall(request_id, home, to)


def _waiting(running: Running, tokens: int, now: float) -> Waiting:
    """A request that ran and was recalled at so many output tokens."""
    request: Request = replace(running.request, generated_tokens=tokens)
    return Waiting(
        request,
        running.forecast,
        running.attempt,
        now,
        key=running.key,
        sequence=running.sequence,
    )
