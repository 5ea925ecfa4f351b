"""How requests enter the scheduling core: submitted, or found running."""

from __future__ import annotations

from dataclasses import replace

from cluster.core.core_state import CoreState
from policies.admission import Admission
from policies.batch import RequestBatch
from policies.forecast import Forecast
from policies.request import Request
from policies.waiting import Waiting, predicted_tokens


class Entrance:
    """Lets requests in, once each.

    Args:
        state: The core's.
        admission: Projects the length of those that run already.
    """

    def __init__(self, state: CoreState, admission: Admission) -> None:
        self._state = state
        self._admission = admission

    def submit(
        self,
        request: Request,
        forecast: Forecast,
        now: float,
        attempt: int,
        place: int | None,
        strikes: float,
        *,
        accepted: bool,
    ) -> bool:
        """See `ClusterScheduler.submit`."""
        state = self._state
        request_id = request.request_id
        if strikes:
            state.suspects.refuse_poison(request_id, strikes)
        state.refuse_impossible(request)
        if (known := state.known(request_id)) is None:
            if attempt == 1 and not request.generated_tokens and not accepted:
                state.waiting.refuse_when_full(request, now)
        elif attempt <= known.attempt:
            return False
        if strikes:
            state.suspects.suspect(request_id, strikes)
        if known is not None and request_id in state.moving:
            kept = state.learned.bounded(request, known.forecast)
            alone = state.suspects.runs_alone(request_id)
            queued = state.moving.resubmit(request, kept, attempt, now, keep_room=not alone)
        else:
            if known is not None:
                place = known.sequence if request_id in state.waiting else place
                state.supersede(request_id, now)
            forecast = state.learned.bounded(request, forecast)
            queued = Waiting(request, forecast, attempt, now, sequence=place or 0)
        if queued is not None:
            state.waiting.add(queued, now)
        state.guard_band.submitted(request, forecast, now)
        return True

    def adopt(
        self,
        request: Request,
        forecast: Forecast,
        now: float,
        replica_id: str,
        attempt: int,
        key: float,
        tokens: int,
        strikes: float,
    ) -> bool:
        """See `ClusterScheduler.adopt`."""
        state = self._state
        request_id = request.request_id
        if replica_id not in state.fleet:
            return False
        sequence = 0
        if (known := state.known(request_id)) is not None:
            waits = request_id in state.waiting
            if attempt < known.attempt or (attempt == known.attempt and not waits):
                return False
            sequence = known.sequence
            state.supersede(request_id, now)
        state.suspects.suspect(request_id, strikes)
        tokens = min(max(tokens, request.generated_tokens), request.max_tokens - 1)
        waiting = Waiting(
            request,
            state.learned.bounded(request, forecast).at_least(tokens),
            attempt,
            now,
            key=key,
            sequence=sequence or state.waiting.next_sequence(),
        )
        reached = replace(request, generated_tokens=tokens)
        batch = RequestBatch.of([reached], [waiting.forecast])
        (estimate,) = self._admission.estimates(batch)
        waiting.predicted_tokens = predicted_tokens(request, waiting.forecast)
        state.fleet.enter(replica_id, request, waiting.forecast, int(estimate))
        state.fleet.progressed(replica_id, {request_id: tokens})
        state.running.start(waiting, replica_id)
        if state.suspects.runs_alone(request_id):
            state.isolation.begin(request_id, replica_id)
        state.guard_band.submitted(request, waiting.forecast, now)
        return True
