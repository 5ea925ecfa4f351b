"""What runs where next: the part of the scheduling core that decides."""

from __future__ import annotations

from dataclasses import replace

from cluster.core.core_state import CoreState
from cluster.core.decisions import Dispatch, Recall
from cluster.core.fleet_summary import NEVER
from cluster.core.lacks import Lack
from policies.request import RequestClass
from policies.waiting import Waiting


class Dispatcher:
    """Decides on what the core's state says, and changes that state by nothing but its decisions.

    Args:
        state: The core's.
        backfill: Requests that may overtake a head that fits nowhere.
        avoid_slow: Whether work goes around replicas that are slow beside the others.
    """

    def __init__(self, state: CoreState, backfill: int, *, avoid_slow: bool) -> None:
        self._state = state
        self._backfill = backfill
        self._avoid_slow = avoid_slow

    def decide(self, now: float) -> list[Dispatch | Recall]:
        """See `ClusterScheduler.decide`; without the recalls that were due before."""
        actions = self._decide(now)
        self._state.lacks.note(self._lack(now), now)
        return actions

    def _decide(self, now: float) -> list[Dispatch | Recall]:
        state = self._state
        actions: list[Dispatch | Recall] = []
        if self._avoid_slow:
            state.fleet.judge(now)
        if state.giving_back:
            actions += self._hand_back(now)
        if state.moving.resubmitted:
            actions += self._go_on(now)
        paced = state.pace.holds(RequestClass.OFFLINE)
        lowest = RequestClass.ONLINE if paced else RequestClass.OFFLINE
        if (alone := state.isolation.next(now, up_to=lowest)) is not None:
            actions.append(self._isolate(*alone, now))
        if not (len(state.waiting) or state.stalled):
            return actions
        if not (state.fleet.has_free_slot or self._way_is_made()):
            return actions
        state.waiting.ordered.key_pending(state.fleet.slots)
        first = state.waiting.ordered.first()
        up_to = first.request.request_class if first is not None else RequestClass.OFFLINE
        actions += state.relocations.decide(up_to, now)
        return self._dispatch(actions, up_to, now)

    def patience(self, now: float) -> int:
        """Steps that the replicas make at least before time alone may change what `decide` said.

        Until something ends, arrives or is learnt; `NEVER` where only that can.
        """
        if not self._state.fleet.has_free_slot:
            return NEVER
        if self._state.stalled:
            return 1
        head = self._state.waiting.ordered.first()
        if head is None or self._backfill or self._state.guard_band.kept(head.request, now).share:
            return 1
        if self._state.pace.holds(head.request.request_class):
            return NEVER
        return self._state.fleet.patience(*_sizes(head))

    def _lack(self, now: float) -> Lack | None:
        """What the first request lacks that a decision has left in the queue."""
        fleet, queue = self._state.fleet, self._state.waiting.ordered
        if not len(queue):
            return None
        if not fleet.serving:
            return Lack.REPLICAS
        places = fleet.free_places
        if (first := queue.first()) is not None:
            if self._state.pace.holds(first.request.request_class):
                return Lack.POWER
            kept = self._state.guard_band.kept(first.request, now, places)
            if fleet.has_free_slot and kept.places:
                return Lack.KEPT
            if places and kept.share:
                return Lack.GUARDED
        return Lack.MEMORY if places else Lack.PLACES

    def _dispatch(
        self, actions: list[Dispatch | Recall], up_to: RequestClass, now: float
    ) -> list[Dispatch | Recall]:
        """Dispatch from the queue, in order, after `actions`, which it extends and returns.

        Requests that wait inside engines were looked at up to the class `up_to`.
        """
        backfill = self._backfill
        fleet, queue = self._state.fleet, self._state.waiting.ordered
        passed: list[Waiting] = []
        while (head := queue.first()) is not None:
            online = head.request.request_class is RequestClass.ONLINE
            if not (fleet.has_free_slot or (online and fleet.has_online_place)):
                break
            if self._state.pace.holds(head.request.request_class):
                break  # all behind it are of its class
            if head.request.request_class > up_to:
                up_to = head.request.request_class
                actions += self._state.relocations.decide(up_to, now)
            placed = self._place(head, now)
            if placed is None:
                if head.overtaken >= backfill or len(passed) == backfill:
                    break
                queue.pop()
                passed.append(head)
            else:
                self._state.waiting.take(head, now)
                actions.append(self._start(head, *placed, now))
                for waiting in passed:
                    waiting.overtaken += 1
                if any(w.overtaken >= backfill for w in passed):
                    break
        queue.restore(passed)
        return actions

    def _way_is_made(self) -> bool:
        """Whether offline requests give way to an online one that waits."""
        state = self._state
        return state.waiting.count(RequestClass.ONLINE) > 0 and state.fleet.has_online_place

    def _place(self, head: Waiting, now: float) -> tuple[str, int, bool] | None:
        """Replica, projected peak in blocks, and whether it is sent there ahead of room."""
        fleet, sizes = self._state.fleet, _sizes(head)
        request = head.request
        online = request.request_class is RequestClass.ONLINE
        kept = self._state.guard_band.kept(request, now)
        placed = fleet.place(*sizes, kept.share, online=online, only_empty=kept.places)
        if placed is not None:
            return *placed, False
        # The engine that starts it then knows of no guard band, and of no request that may come.
        if online or not self._state.guard_band.binds(request, now):
            placed = fleet.place_ahead(*sizes, online=online)
        return None if placed is None else (*placed, True)

    def _start(
        self, waiting: Waiting, replica_id: str, peak_blocks: int, ahead: bool, now: float
    ) -> Dispatch:
        fleet = self._state.fleet
        self._state.running.start(waiting, replica_id)
        fleet.enter(replica_id, waiting.request, waiting.forecast, waiting.estimate, ahead=ahead)
        if fleet.speeds.tried:
            fleet.dispatched(replica_id, now)
        return Dispatch.of(waiting, replica_id, now, peak_blocks)

    def _hand_back(self, now: float) -> list[Recall]:
        """Recall everything from replicas that are to have nothing more."""
        recalls = []
        for replica_id in self._state.giving_back:
            recalls += self._state.relocations.hand_back(replica_id, now)
        self._state.giving_back.clear()
        return recalls

    def _go_on(self, now: float) -> list[Dispatch]:
        """Dispatch recalled requests that were submitted again to where their room is kept."""
        dispatches = []
        for waiting, replica_id in self._state.moving.take():
            self._state.running.start(waiting, replica_id, recalled=True)
            peak_blocks = self._state.fleet[replica_id].profile.peak
            dispatches.append(Dispatch.of(waiting, replica_id, now, peak_blocks))
        return dispatches

    def _isolate(self, waiting: Waiting, replica_id: str, now: float) -> Dispatch:
        """Dispatch who must run alone."""
        request_id = waiting.request.request_id
        self._state.waiting.remove(request_id, now)
        self._state.isolation.begin(request_id, replica_id)
        dispatch = self._start(waiting, replica_id, 0, ahead=False, now=now)
        return replace(dispatch, peak_blocks=self._state.fleet[replica_id].profile.peak)


def _sizes(head: Waiting) -> tuple[int, int, int]:
    """Tokens it holds when it starts, is projected to add, and can reach."""
    request = head.request
    return (
        request.prompt_tokens + request.generated_tokens,
        head.estimate - request.generated_tokens,
        request.prompt_tokens + request.max_tokens,
    )
