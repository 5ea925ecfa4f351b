"""What is kept of a request that has not ended."""

from __future__ import annotations

import math

import msgspec

from cluster.messages import Submission
from cluster.snapshot import Event
from cluster.statistics.finished_row import FinishedRow
from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.protocol import Finished


class OpenRecord(msgspec.Struct, gc=False):
    """One request from its arrival on, over all its attempts.

    A million of them may wait, so nothing is allocated before there is something to keep: what
    happens before the first dispatch is told from the times alone. Times are seconds of the
    controller's clock.

    Attributes:
        arrived_s: When the controller heard of it first.
        arrival_unix_s: The same in seconds of the Unix epoch.
        client_id: Whose it is.
        is_offline: Its class.
        is_adopted: Whether an earlier controller had dispatched it, so that its true arrival is
            not known.
        forecast_s: When the latest forecast of the predictor came; None: none did.
        forecast: The predictor's, until the first dispatch; then the one of that dispatch.
        dispatched_s: When it was first sent to a replica; None: never, or by an earlier controller.
        sent_s: When it was last sent to a replica.
        first_token_s: When its first token existed; None: as far as is known it has none.
        replica_id: Where it runs, or ran last; empty: nowhere yet.
        runs: Whether it is on a replica and not taken back.
        attempts: Dispatches.
        output_tokens: As far as attempts that ended told, counted from the original prompt.
        costed: The attempts whose cost is booked, as bits.
        evictions: In attempts that have ended.
        evictions_seen: Evictions of which an event tells.
        recalls: Times it was taken back for another replica.
        recomputed_tokens: Tokens whose KV was computed again.
        energy_joules: Over the attempts that told; None: none did.
        wasted_joules: The part that computed tokens again.
        energy_source: The meter's name.
        events: What happened since the first dispatch; None: nothing.
    """

    arrived_s: float
    arrival_unix_s: float
    client_id: str
    is_offline: bool
    is_adopted: bool = False
    forecast_s: float | None = None
    forecast: Forecast | None = None
    dispatched_s: float | None = None
    sent_s: float | None = None
    first_token_s: float | None = None
    replica_id: str = ""
    runs: bool = False
    attempts: int = 0
    output_tokens: int = 0
    costed: int = 0
    evictions: int = 0
    evictions_seen: int = 0
    recalls: int = 0
    recomputed_tokens: int = 0
    energy_joules: float | None = None
    wasted_joules: float | None = None
    energy_source: str = "none"
    events: list[Event] | None = None

    @property
    def request_class(self) -> RequestClass:
        """Online or offline."""
        return RequestClass.OFFLINE if self.is_offline else RequestClass.ONLINE

    def note(self, now: float, what: str, detail: str = "") -> None:
        """Something happened to it."""
        if self.events is None:
            self.events = self._events_before_dispatch()
        self.events.append(Event(max(0.0, now - self.arrived_s), what, detail))

    def all_events(self) -> list[Event]:
        """What happened to it, in order."""
        known = self._events_before_dispatch() if self.events is None else self.events
        return sorted(known, key=lambda event: event.at_s)

    def _events_before_dispatch(self) -> list[Event]:
        events = [Event(0.0, "arrived", "at a restarted controller" if self.is_adopted else "")]
        if self.forecast_s is not None and self.forecast is not None:
            at_s = self.forecast_s - self.arrived_s
            events.append(Event(at_s, "forecast", in_words(self.forecast)))
        return events

    def has_cost(self, attempt: int) -> bool:
        """Whether the cost of an attempt is booked."""
        return bool(self.costed >> attempt & 1)

    def book(self, finished: Finished, source: str, now: float) -> None:
        """What an attempt cost that ended on a replica; the same one again changes nothing.

        Args:
            finished: The replica's word.
            source: The replica's meter.
            now: When it ended, in seconds of the controller's clock.
        """
        if self.has_cost(finished.attempt):
            return
        self.costed |= 1 << finished.attempt
        self.output_tokens = max(self.output_tokens, finished.output_tokens)
        self.evictions += finished.preemptions
        self.recomputed_tokens += finished.recomputed_tokens
        self.energy_joules = _plus(self.energy_joules, finished.energy_joules)
        self.wasted_joules = _plus(self.wasted_joules, finished.wasted_joules)
        if finished.energy_joules is not None:
            self.energy_source = source
        if finished.first_token_s is not None and self.first_token_s is None:
            self._first_token(finished.first_token_s, finished.running_s, now)

    def _first_token(self, after_s: float, running_s: float, now: float) -> None:
        """The attempt's first token came `after_s` after the engine had accepted it."""
        accepted_s = now - running_s if self.sent_s is None else self.sent_s
        at_s = min(now, accepted_s + after_s)
        if at_s < self.arrived_s:
            return  # before this controller heard of the request
        self.first_token_s = at_s
        self.note(at_s, "first token")

    def row(
        self, submission: Submission, policy: str, ended_s: float, finish_reason: str
    ) -> FinishedRow:
        """The row of the request, which has ended.

        Args:
            submission: Its latest.
            policy: Name of the policy bundle.
            ended_s: When it ended.
            finish_reason: See `FinishedRow`.
        """
        generation = submission.generation
        forecast = self.forecast if self.attempts else None
        return FinishedRow(
            request_id=generation.request_id,
            request_class=self.request_class.name.lower(),
            tenant=submission.tenant,
            job=submission.job,
            policy=policy,
            arrival_unix_s=self.arrival_unix_s,
            forecast_s=self._since_arrival(self.forecast_s),
            dispatched_s=self._since_arrival(self.dispatched_s),
            first_token_s=self._since_arrival(self.first_token_s),
            finished_s=max(0.0, ended_s - self.arrived_s),
            prompt_tokens=submission.prompt_tokens,
            max_tokens=submission.max_tokens,
            output_tokens=max(self.output_tokens, generation.generated_tokens),
            finish_reason=finish_reason,
            forecast_mu=forecast.mu if forecast else None,
            forecast_sigma=forecast.sigma if forecast else None,
            forecast_lower=forecast.lower if forecast else None,
            forecast_upper=forecast.upper if forecast else None,
            forecast_source=forecast.source if forecast else "",
            replica_id=self.replica_id,
            attempts=self.attempts,
            evictions=self.evictions,
            recalls=self.recalls,
            recomputed_tokens=self.recomputed_tokens,
            energy_joules=self.energy_joules,
            wasted_joules=self.wasted_joules,
            energy_source=self.energy_source,
        )

    def _since_arrival(self, at_s: float | None) -> float | None:
        return None if at_s is None else max(0.0, at_s - self.arrived_s)


def in_words(forecast: Forecast) -> str:
    """A forecast in words: its median, its interval and who made it."""
    return (
        f"{forecast.source}: about {math.exp(forecast.mu):.0f} tokens, "
        f"between {forecast.lower} and {forecast.upper}"
    )


def _plus(sum_joules: float | None, more_joules: float | None) -> float | None:
    if more_joules is None:
        return sum_joules
    return more_joules if sum_joules is None else sum_joules + more_joules
