"""One row per request that finished in a simulation."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from policies.forecast import Forecast
from policies.request import Request
from replicas.batch_energy import Cost

ROW_SCHEMA = pa.schema(
    [
        ("request", pa.int64()),  # its number
        ("request_class", pa.int8()),
        ("replica", pa.int32()),  # where it finished
        ("arrival_s", pa.float64()),
        ("dispatched_s", pa.float64()),  # first time
        ("first_token_s", pa.float64()),
        ("finished_s", pa.float64()),
        ("prompt_tokens", pa.int32()),
        ("max_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("mu", pa.float64()),
        ("sigma", pa.float64()),
        ("lower", pa.int32()),
        ("upper", pa.int32()),
        ("evictions", pa.int32()),
        ("recomputed_tokens", pa.int32()),
        ("energy_joules", pa.float64()),  # null without a power model
        ("wasted_joules", pa.float64()),  # the part of it that computed tokens again
        ("energy_source", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""One row per finished request, in order of finishing; times are virtual seconds."""

RowSink = Callable[[pa.RecordBatch], None]

ROWS_AT_ONCE = 1 << 16
"""Rows that are handed on together, unless a sink wants them sooner."""


class LiveRequest:
    """What a simulation knows of a request that has not finished.

    Attributes:
        index: Its number.
        request: The request.
        forecast: The forecast it arrived with.
        dispatched_s: When it was first dispatched; None before.
        first_token_s: When its first token was out; None before.
        evictions: Times it lost its memory.
        recomputed_tokens: Tokens whose KV those losses cost.
        lost_tokens: Tokens of it whose KV was computed on a replica that it has left.
        cost: What it has cost on such replicas.
    """

    __slots__ = (
        "cost",
        "dispatched_s",
        "evictions",
        "first_token_s",
        "forecast",
        "index",
        "lost_tokens",
        "recomputed_tokens",
        "request",
    )

    def __init__(self, index: int, request: Request, forecast: Forecast) -> None:
        self.index = index
        self.request = request
        self.forecast = forecast
        self.dispatched_s: float | None = None
        self.first_token_s: float | None = None
        self.evictions = 0
        self.recomputed_tokens = 0
        self.lost_tokens = 0
        self.cost = Cost()


class RowBuffer:
    """Collects rows and hands them on in batches, so that memory is bounded.

    Args:
        sink: Takes the batches; None: nobody does.
        rows_at_once: Rows of a batch.
        energy_source: What says the energy of the rows; None: nothing does.
    """

    def __init__(
        self, sink: RowSink | None, rows_at_once: int = ROWS_AT_ONCE, *, energy_source: str | None
    ) -> None:
        self._sink = sink
        self._energy_source = energy_source
        self._rows_at_once = rows_at_once
        self._rows: list[tuple[float | int | str | None, ...]] = []

    def add(self, live: LiveRequest, replica: int, finished_s: float) -> None:
        """The request has finished."""
        if self._sink is None:
            return
        request, forecast, metered = live.request, live.forecast, self._energy_source is not None
        self._rows.append(
            (
                live.index,
                int(request.request_class),
                replica,
                request.arrival_s,
                live.dispatched_s,
                live.first_token_s,
                finished_s,
                request.prompt_tokens,
                request.max_tokens,
                request.output_tokens,
                forecast.mu,
                forecast.sigma,
                forecast.lower,
                forecast.upper,
                live.evictions,
                live.recomputed_tokens,
                live.cost.joules if metered else None,
                live.cost.wasted_joules if metered else None,
                self._energy_source,
            )
        )
        if len(self._rows) >= self._rows_at_once:
            self.flush()

    def flush(self) -> None:
        """Hand on what there is."""
        if self._sink is None or not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, ROW_SCHEMA, strict=True)]
        self._rows.clear()
        self._sink(pa.record_batch(arrays, schema=ROW_SCHEMA))
