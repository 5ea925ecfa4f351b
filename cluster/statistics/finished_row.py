"""One row per finished request: what it asked for, what it got, when, and what it cost."""

from __future__ import annotations

import msgspec
import pyarrow as pa


class FinishedRow(msgspec.Struct, frozen=True):
    """One request that has ended, with all its attempts.

    Durations are seconds since the controller received the request first, so that they include
    whatever it waited after the loss of a replica. A restarted controller counts from when it heard
    of the request.

    Attributes:
        request_id: Which.
        request_class: `online` or `offline`.
        tenant: Whom it is accounted to.
        job: The offline job that it belongs to; empty: none.
        policy: Name of the policy bundle.
        arrival_unix_s: When it arrived, in seconds of the Unix epoch.
        forecast_s: When the predictor's forecast came; None: it ran on the prior.
        dispatched_s: When it was first sent to a replica; None: never.
        first_token_s: When its first token existed; None: it has none.
        finished_s: When it ended.
        prompt_tokens: Of the original prompt.
        max_tokens: Its cap.
        output_tokens: Counted from the original prompt.
        finish_reason: `stop`, `length`, `abort` (its client wanted no more) or `error`.
        forecast_mu: Location of the log length that it was scheduled by; None: never scheduled.
        forecast_sigma: The same, scale.
        forecast_lower: The interval's lower end in tokens.
        forecast_upper: The interval's upper end in tokens.
        forecast_source: Who made the forecast.
        replica_id: Where it ended; empty: nowhere.
        attempts: Dispatches it took.
        evictions: Times that an engine evicted it.
        recalls: Times that it was taken back for another replica.
        recomputed_tokens: Tokens whose KV was computed again.
        energy_joules: Energy attributed to it, over all attempts that told; None: not measured.
        wasted_joules: The part of it that computed tokens again.
        energy_source: The meter's name; `none`: not measured.
    """

    request_id: str
    request_class: str
    tenant: str
    job: str
    policy: str
    arrival_unix_s: float
    forecast_s: float | None
    dispatched_s: float | None
    first_token_s: float | None
    finished_s: float
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    finish_reason: str
    forecast_mu: float | None
    forecast_sigma: float | None
    forecast_lower: int | None
    forecast_upper: int | None
    forecast_source: str
    replica_id: str
    attempts: int
    evictions: int
    recalls: int
    recomputed_tokens: int
    energy_joules: float | None
    wasted_joules: float | None
    energy_source: str


ROW_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("request_class", pa.dictionary(pa.int32(), pa.string())),
        ("tenant", pa.dictionary(pa.int32(), pa.string())),
        ("job", pa.dictionary(pa.int32(), pa.string())),
        ("policy", pa.dictionary(pa.int32(), pa.string())),
        ("arrival_unix_s", pa.float64()),
        ("forecast_s", pa.float64()),
        ("dispatched_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("finished_s", pa.float64()),
        ("prompt_tokens", pa.int32()),
        ("max_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("finish_reason", pa.dictionary(pa.int32(), pa.string())),
        ("forecast_mu", pa.float64()),
        ("forecast_sigma", pa.float64()),
        ("forecast_lower", pa.int32()),
        ("forecast_upper", pa.int32()),
        ("forecast_source", pa.dictionary(pa.int32(), pa.string())),
        ("replica_id", pa.dictionary(pa.int32(), pa.string())),
        ("attempts", pa.int32()),
        ("evictions", pa.int32()),
        ("recalls", pa.int32()),
        ("recomputed_tokens", pa.int32()),
        ("energy_joules", pa.float64()),
        ("wasted_joules", pa.float64()),
        ("energy_source", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""`FinishedRow` as Parquet keeps it."""
