"""A request that has ended as spans: what it did when, without any tracing library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.snapshot import Event
from cluster.statistics.finished_row import FinishedRow

Value = str | int | float | bool | tuple[str, ...]
"""What an attribute may hold."""

_ATTEMPT = "tiebreak.attempt"

_ENDS_A_RUN = ("recalled", "lost", "finished", "refused")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time.

    Attributes:
        name: What.
        start_s: When it began, in seconds since the request arrived.
        end_s: When it ended, not before.
        attributes: What is known of it.
    """

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


def phases(row: FinishedRow, events: Sequence[Event]) -> list[Span]:
    """What a request went through, in order: `forecast`, then for each attempt `queue` and the run.

    A run is a `prefill` until the first token and a `decode` from there on. What is not known of a
    run that was lost is left out, so that nothing is told that was not seen.

    Args:
        row: Of the request.
        events: What happened to it, in order.
    """
    spans = []
    if row.forecast_s is not None:
        spans.append(
            Span("forecast", 0.0, row.forecast_s, {"tiebreak.forecast.source": row.forecast_source})
        )
    return spans + list(_attempts(row, events))


def _attempts(row: FinishedRow, events: Sequence[Event]) -> Iterator[Span]:
    waits_since = 0.0
    runs_since: float | None = None
    attempt = 0
    for event in sorted(events, key=lambda event: event.at_s):
        at_s = min(event.at_s, row.finished_s)
        is_dispatch = event.what == "dispatched"
        if runs_since is not None and (is_dispatch or event.what in _ENDS_A_RUN):
            yield from _run(runs_since, at_s, row.first_token_s, attempt)
            waits_since, runs_since = at_s, None
        if is_dispatch:
            attempt += 1
            yield Span("queue", waits_since, at_s, {_ATTEMPT: attempt})
            runs_since = at_s
    if runs_since is not None:
        yield from _run(runs_since, row.finished_s, row.first_token_s, attempt)
    elif waits_since < row.finished_s:
        yield Span("queue", waits_since, row.finished_s, {_ATTEMPT: attempt + 1})


def _run(start_s: float, end_s: float, first_token_s: float | None, attempt: int) -> Iterator[Span]:
    """A run of an attempt, split at the request's first token if that fell into it."""
    attributes = {_ATTEMPT: attempt}
    if first_token_s is None or first_token_s > end_s:
        yield Span("prefill", start_s, end_s, attributes)
        return
    if first_token_s >= start_s:
        yield Span("prefill", start_s, first_token_s, attributes)
    # An attempt that goes on from tokens of an earlier one computes their KV first, all in one.
    yield Span("decode", max(start_s, first_token_s), end_s, attributes)


def attributes(row: FinishedRow, model: str) -> dict[str, Value]:
    """What is known of a request, neither prompt nor answer.

    Named by OpenTelemetry's conventions for generative AI where they have a name.

    Args:
        row: Of the request.
        model: Which it asked.
    """
    known: dict[str, Value | None] = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "tiebreak",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": row.max_tokens,
        "gen_ai.response.id": row.request_id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": (row.finish_reason,),
        "gen_ai.response.time_to_first_chunk": row.first_token_s,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.output_tokens,
        "error.type": "error" if row.finish_reason == "error" else None,
        "tiebreak.request_class": row.request_class,
        "tiebreak.tenant": row.tenant,
        "tiebreak.job": row.job or None,
        "tiebreak.policy": row.policy,
        "tiebreak.replica": row.replica_id or None,
        "tiebreak.attempts": row.attempts,
        "tiebreak.evictions": row.evictions,
        "tiebreak.recalls": row.recalls,
        "tiebreak.recomputed_tokens": row.recomputed_tokens,
        "tiebreak.forecast.source": row.forecast_source or None,
        "tiebreak.forecast.lower_tokens": row.forecast_lower,
        "tiebreak.forecast.upper_tokens": row.forecast_upper,
        "tiebreak.energy.joules": row.energy_joules,
        "tiebreak.energy.wasted_joules": row.wasted_joules,
        "tiebreak.energy.source": row.energy_source,
    }
    return {name: value for name, value in known.items() if value is not None}
