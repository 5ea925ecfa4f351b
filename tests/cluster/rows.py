"""Rows of requests that never were, for tests of what reads them."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.messages import Submission
from cluster.snapshot import Event
from cluster.statistics.finished_row import FinishedRow
from replicas.protocol import Generation

ROW = FinishedRow(
    request_id="request-1",
    request_class="online",
    tenant="alice",
    job="",
    policy="tiebreak",
    arrival_unix_s=1_790_000_000.0,
    forecast_s=0.25,
    dispatched_s=0.5,
    first_token_s=1.0,
    finished_s=3.0,
    prompt_tokens=40,
    max_tokens=64,
    output_tokens=20,
    finish_reason="stop",
    forecast_mu=3.0,
    forecast_sigma=0.5,
    forecast_lower=10,
    forecast_upper=40,
    forecast_source="learned",
    replica_id="replica-0",
    attempts=1,
    evictions=0,
    recalls=0,
    recomputed_tokens=0,
    energy_joules=12.5,
    wasted_joules=0.0,
    energy_source="model:test",
)

EVENTS = [
    Event(0.0, "arrived"),
    Event(0.25, "forecast", "learned"),
    Event(0.5, "dispatched", "replica-0"),
    Event(1.0, "first token"),
    Event(3.0, "finished", "stop"),
]


def row(**fields: Any) -> FinishedRow:
    """One of a request that waited half a second, with these fields."""
    return msgspec.structs.replace(ROW, **fields)


def submission(name: str = "request-1", client: str = "client-1", trace: str = "") -> Submission:
    """What a client asked for."""
    generation = Generation(name, client, b"")
    return Submission(generation, prompt_tokens=40, max_tokens=64, trace=trace)
