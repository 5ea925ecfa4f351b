"""What the output says of each row: its columns, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from jobs.reading.rows import BadRow


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """One finished row. Durations are in seconds; None is what was not measured or not asked for.

    Attributes:
        row_index: Ordinal of the row in the whole input, from 0.
        row_id: The row's id.
        prompt: The prompt, or the messages as JSON.
        text: The answer.
        token_ids: The answer's tokens, when they are to be kept.
        finish_reason: `stop` or `length`.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        queue_s: From submission to dispatch.
        ttft_s: From submission to the first token.
        latency_s: From submission to the last token.
        finished_unix_s: When it finished, in seconds since 1970.
        replica: Who finished it.
        attempts: Dispatches it took.
        evictions: Times it was evicted.
        recomputed_tokens: Tokens whose KV was computed again because of that.
        forecast_mu: Location of the forecast's ln X.
        forecast_sigma: Scale of the forecast's ln X.
        forecast_lower: Lower end of the forecast's interval in tokens.
        forecast_upper: Upper end of the forecast's interval in tokens.
        forecast_source: Who made the forecast.
        energy_joules: Energy attributed to the row.
        wasted_joules: The part of it that computed tokens again.
        energy_source: How the energy was measured or modelled.
        endpoint: Of an OpenAI batch line.
        model: Of an OpenAI batch line, or the model that answered it.
    """

    row_index: int
    row_id: str
    prompt: str
    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    token_ids: list[int] | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    finished_unix_s: float = 0.0
    replica: str | None = None
    attempts: int = 1
    evictions: int = 0
    recomputed_tokens: int = 0
    forecast_mu: float | None = None
    forecast_sigma: float | None = None
    forecast_lower: int | None = None
    forecast_upper: int | None = None
    forecast_source: str | None = None
    energy_joules: float | None = None
    wasted_joules: float | None = None
    energy_source: str | None = None
    endpoint: str | None = None
    model: str | None = None


def _field(name: str, arrow_type: Any, *, nullable: bool = True) -> Any:
    return pa.field(name, arrow_type, nullable=nullable)


_IDENTITY = [
    _field("row_index", pa.int64(), nullable=False),
    _field("row_id", pa.string(), nullable=False),
]

RESULT_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        _field("prompt", pa.string()),
        _field("text", pa.string()),
        _field("token_ids", pa.list_(pa.int32())),
        _field("finish_reason", pa.string()),
        _field("prompt_tokens", pa.int64()),
        _field("output_tokens", pa.int64()),
        _field("queue_s", pa.float64()),
        _field("ttft_s", pa.float64()),
        _field("latency_s", pa.float64()),
        _field("finished_unix_s", pa.float64()),
        _field("replica", pa.string()),
        _field("attempts", pa.int64()),
        _field("evictions", pa.int64()),
        _field("recomputed_tokens", pa.int64()),
        _field("forecast_mu", pa.float64()),
        _field("forecast_sigma", pa.float64()),
        _field("forecast_lower", pa.int64()),
        _field("forecast_upper", pa.int64()),
        _field("forecast_source", pa.string()),
        _field("energy_joules", pa.float64()),
        _field("wasted_joules", pa.float64()),
        _field("energy_source", pa.string()),
        _field("endpoint", pa.string()),
        _field("model", pa.string()),
    ]
)
"""Columns of `parts/part-*.parquet`."""

ERROR_SCHEMA = pa.schema(
    [
        *_IDENTITY,
        _field("error", pa.string(), nullable=False),
        _field("error_kind", pa.string(), nullable=False),
        _field("echo", pa.string()),
        _field("endpoint", pa.string()),
    ]
)
"""Columns of `errors/error-*.parquet`."""


def to_table(rows: Sequence[msgspec.Struct], schema: Any) -> Any:
    """`rows` as a `pyarrow.Table` of `schema`.

    Text that is not valid Unicode (a lone surrogate) gets U+FFFD where it is not.
    """
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    try:
        return pa.table(columns, schema)
    except UnicodeEncodeError:
        return pa.table({name: _valid(values) for name, values in columns.items()}, schema)


def row_bytes(row: ResultRow | BadRow) -> int:
    """About how much memory `row` takes as a row of a table."""
    if isinstance(row, BadRow):
        return 100 + len(row.error) + len(row.echo)
    return 250 + len(row.prompt) + len(row.text) + 4 * len(row.token_ids or ())


def _valid(values: list[Any]) -> list[Any]:
    return [
        value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, str)
        else value
        for value in values
    ]
