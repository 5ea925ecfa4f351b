"""Why a request is where it is, in words and numbers, found out when somebody asks.

Nothing here changes what is decided: it reads the core's state as it is, and what a decision would
first bring up to date it works out for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.core.candidates import Candidate, Need, candidates, told_candidates
from cluster.core.core_state import CoreState
from cluster.core.reasons import Reasons
from cluster.core.running import Running
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from policies.waiting import Place, Waiting

EXACT_PLACES = 1000
"""First requests of the queue whose place is found exactly; of others it is estimated."""

MOST_CANDIDATES = 20
"""Most replicas that are named, the best ones."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the scheduling core knows of a request.

    Attributes:
        request: The request, with the output tokens it was last sent off with.
        forecast: What it is scheduled by.
        attempt: Number of the dispatch that it waits for or runs in.
        state: `waiting`, `running` or `recalled`.
        reason: Why it waits, or where it runs, in a sentence.
        key: Its ordering key.
        since_s: When it began to wait, in seconds of the caller's clock; None: it runs.
        output_tokens: That exist, as far as is known.
        position: Its place in the order of dispatch from 1; None: it does not stand there.
        position_is_exact: Whether that was found out rather than estimated.
        replica_id: Where it runs, or is to go on; empty: nowhere.
        candidates: The best replicas for it, the best first; none while it runs undisturbed.
        candidates_of: How many replicas were considered.
    """

    request: Request
    forecast: Forecast
    attempt: int
    state: str
    reason: str
    key: float
    since_s: float | None = None
    output_tokens: int = 0
    position: int | None = None
    position_is_exact: bool = True
    replica_id: str = ""
    candidates: tuple[Candidate, ...] = ()
    candidates_of: int = 0


class Explanations:
    """Explains single requests and the head of the queue.

    Args:
        state: The core's; it is only read.
        ordering: Name of the policy's ordering.
    """

    def __init__(self, state: CoreState, ordering: str) -> None:
        self._state = state
        self._reasons = Reasons(state, ordering)

    def of(self, request_id: str, now: float) -> Standing | None:
        """One request at a time in seconds; None when it is unknown.

        Costs a projection per replica, and a look at the first `EXACT_PLACES` of the queue.
        """
        state = self._state
        if (running := state.running.get(request_id)) is not None:
            return self._running(request_id, running, now)
        if request_id in state.moving:
            return self._moving(request_id)
        if request_id not in state.waiting:
            return None
        if state.suspects.runs_alone(request_id):
            return self._alone(state.waiting[request_id])
        return self._waiting(request_id, now)

    def head(self, count: int, now: float) -> list[Standing]:
        """The first requests of the queue in their order, without candidates.

        Those that must run alone stand apart, and are not among them.

        Args:
            count: How many at most.
            now: Seconds.
        """
        places = self._state.waiting.ordered.peek(count, self._state.fleet.slots)
        return [
            self._standing(place, position, self._why(place, position, places[0], now))
            for position, place in enumerate(places, 1)
        ]

    def candidates(self, now: float) -> list[Candidate]:
        """Every replica, considered for the first request of the queue; none when nothing waits."""
        fleet = self._state.fleet
        places = self._state.waiting.ordered.peek(1, fleet.slots)
        return told_candidates(fleet, self._need(places[0], now)) if places else []

    def _waiting(self, request_id: str, now: float) -> Standing:
        queue, slots = self._state.waiting.ordered, self._state.fleet.slots
        places = queue.peek(EXACT_PLACES, slots)
        own = queue.place(request_id, slots)
        waiting = own.waiting
        position = next((i for i, p in enumerate(places, 1) if p.waiting is waiting), None)
        exact = position is not None and queue.is_previewed
        if position is None:
            position = max(queue.estimated_place(request_id, slots), len(places) + 1)
        found = told_candidates(self._state.fleet, self._need(own, now))
        return replace(
            self._standing(own, position, self._why(own, position, places[0], now, named=True)),
            position_is_exact=exact,
            candidates=tuple(found[:MOST_CANDIDATES]),
            candidates_of=len(found),
        )

    def _why(
        self, place: Place, position: int, first: Place, now: float, *, named: bool = False
    ) -> str:
        """Why a request waits; `named`: with why the first one does."""
        if place.waiting is first.waiting:
            return self._reasons.first_waits(place.waiting, self._need(place, now))
        behind = self._reasons.behind(place.waiting.request.request_class, position - 1, now)
        if not named:
            return behind
        why = self._reasons.first_waits(first.waiting, self._need(first, now))
        return f"{behind}; the first of them, {first.waiting.request.request_id}, {why}"

    def _standing(self, place: Place, position: int | None, reason: str) -> Standing:
        waiting = place.waiting
        return Standing(
            request=waiting.request,
            forecast=waiting.forecast,
            attempt=waiting.attempt,
            state="waiting",
            reason=reason,
            key=place.key,
            since_s=waiting.submitted_s,
            output_tokens=waiting.request.generated_tokens,
            position=position,
        )

    def _alone(self, waiting: Waiting) -> Standing:
        reason = self._reasons.waits_alone(waiting.request.request_id)
        return self._standing(Place(waiting, waiting.key, waiting.estimate), None, reason)

    def _moving(self, request_id: str) -> Standing:
        moving = self._state.moving
        waiting, (source, to) = moving[request_id], moving.route(request_id)
        recalled = moving.is_recalled(request_id)
        reason = self._reasons.moves(source, to, resubmitted=not recalled)
        standing = self._standing(Place(waiting, waiting.key, waiting.estimate), None, reason)
        return replace(standing, state="recalled" if recalled else "waiting", replica_id=to)

    def _running(self, request_id: str, running: Running, now: float) -> Standing:
        fleet, home = self._state.fleet, running.replica_id
        tokens = fleet[home].generated(request_id)
        standing = Standing(
            request=running.request,
            forecast=running.forecast,
            attempt=running.attempt,
            state="running",
            reason=self._reasons.runs(running, tokens),
            key=running.key,
            output_tokens=tokens,
            replica_id=home,
        )
        stalled = self._state.stalled.there(home).get(request_id)
        if stalled is None:
            return standing
        request, (held, steps) = running.request, fleet[home].sizes(request_id)
        need = self._sized(request, held, steps, now, besides=home)
        found = candidates(fleet, need)
        return replace(
            standing,
            reason=self._reasons.waits_inside(running, stalled, found, now),
            since_s=stalled.since_s,
            candidates=tuple(found[:MOST_CANDIDATES]),
            candidates_of=len(found),
        )

    def _need(self, place: Place, now: float) -> Need:
        request = place.waiting.request
        held = request.prompt_tokens + request.generated_tokens
        return self._sized(request, held, place.estimate - request.generated_tokens, now)

    def _sized(
        self, request: Request, held: int, steps: int, now: float, *, besides: str = ""
    ) -> Need:
        free = sum(
            max(ledger.free_slots - ledger.replica.look_ahead, 0) for ledger in self._state.fleet
        )
        kept = self._state.guard_band.kept(request, now, free)
        return Need(
            held=held,
            steps=steps,
            most=request.prompt_tokens + request.max_tokens,
            online=request.request_class is RequestClass.ONLINE,
            guard_band=kept.share,
            only_empty=kept.places,
            besides=besides,
        )
