"""Finished requests as facts, tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from jobs.finished.row_summary import GROUPINGS, RowSummary, summaries
from jobs.simulating.tables import Table, number, share

_FIRST_REAL_UNIX_S = 1e9
"""Arrivals before this are a simulation's, which counts from 0."""

_Cell = Callable[[RowSummary], str]

_LATENCY: tuple[tuple[str, str, _Cell], ...] = (
    ("", "requests", lambda s: f"{s.requests:,}"),
    ("latency (s)", "mean", lambda s: number(s.latency_s.mean)),
    ("latency (s)", "p50", lambda s: number(s.latency_s.p50)),
    ("latency (s)", "p99", lambda s: number(s.latency_s.p99)),
    ("per token (s)", "mean", lambda s: number(s.per_token_latency_s.mean)),
    ("per token (s)", "p99", lambda s: number(s.per_token_latency_s.p99)),
    ("TTFT (s)", "p50", lambda s: number(s.ttft_s.p50)),
    ("TTFT (s)", "p99", lambda s: number(s.ttft_s.p99)),
    ("queue (s)", "p50", lambda s: number(s.queue_s.p50)),
    ("queue (s)", "p99", lambda s: number(s.queue_s.p99)),
)

_WORK: tuple[tuple[str, str, _Cell], ...] = (
    ("tokens", "prompt", lambda s: f"{s.prompt_tokens:,}"),
    ("tokens", "output", lambda s: f"{s.output_tokens:,}"),
    ("lost memory", "evictions", lambda s: f"{s.evictions:,}"),
    ("lost memory", "recomputed", lambda s: share(s.recomputed_share)),
    ("forecasts", "covered", lambda s: share(s.forecast.coverage)),
    ("forecasts", "Kendall", lambda s: number(s.forecast.kendall, 2)),
)

_ENERGY: tuple[tuple[str, str, _Cell], ...] = (
    ("energy (J)", "per request", lambda s: number(s.energy.per_request)),
    ("energy (J)", "per token", lambda s: number(s.energy.per_output_token)),
    ("energy (J)", "wasted", lambda s: share(s.energy.wasted_share)),
)

TERMS = {
    "per token": "Time from arrival to the last token, divided by the output tokens.",
    "TTFT": "Time from arrival to the first token.",
    "recomputed": "Tokens computed again, over the prompt and output tokens.",
    "covered": "Answers inside their forecast's interval. One that was cut off at its cap inside "
    "the interval is not counted.",
    "Kendall": "Rank correlation of the forecast medians with the lengths.",
    "energy": "What was attributed to requests; what the hardware takes without work is not in it. "
    "Wasted: the part that computed tokens again.",
}


class RowReport:
    """A report on rows.

    Args:
        rows: As of `read_rows`.
        source: Where they come from.
        by: Groupings to tell them apart by; None: those in which there is more than one group.
    """

    def __init__(self, rows: pd.DataFrame, source: Path, by: Sequence[str] | None = None) -> None:
        self._source = source
        self.rows = rows
        self.all = RowSummary.of("all", "all", rows)
        found = {name: list(summaries(rows, name)) for name in by or GROUPINGS}
        self.groups = {name: own for name, own in found.items() if by or len(own) > 1}

    def facts(self) -> dict[str, str]:
        """What was read, by name."""
        reasons = ", ".join(f"{n:,} {r}" for r, n in self.all.finish_reasons.items())
        policies = ", ".join(sorted(set(self.rows["policy"])))
        return {
            "rows": f"{self._source}: {self.all.requests:,} requests ({reasons})",
            "policy": policies,
            "period": self._period(),
            "forecasts": self._forecasts(),
            "energy": self._energy(),
        }

    def tables(self) -> list[Table]:
        """All requests, then each grouping."""
        groups = {"all": [self.all], **self.groups}
        return [table for by, own in groups.items() for table in _tables(by, own)]

    def as_dict(self) -> dict[str, Any]:
        """For machines; NaN is null."""
        begin_s, end_s = self._span()
        report: dict[str, Any] = _without_nan(
            {
                "source": str(self._source),
                "begin_unix_s": begin_s,
                "end_unix_s": end_s,
                "all": asdict(self.all),
                "groups": {by: [asdict(s) for s in own] for by, own in self.groups.items()},
            }
        )
        return report

    def _span(self) -> tuple[float, float]:
        ends = self.rows["arrival_unix_s"] + self.rows["finished_s"]
        return float(self.rows["arrival_unix_s"].min()), float(ends.max())

    def _period(self) -> str:
        begin_s, end_s = self._span()
        span_s = end_s - begin_s
        if begin_s < _FIRST_REAL_UNIX_S:
            return f"{number(span_s)} s of virtual time"
        rate = self.all.output_tokens / span_s if span_s > 0 else math.nan
        begin = datetime.fromtimestamp(begin_s, UTC)
        return (
            f"{number(span_s)} s from {begin:%Y-%m-%d %H:%M:%S} UTC on: {number(rate)} output "
            "tokens/s"
        )

    def _forecasts(self) -> str:
        quality = self.all.forecast
        if not quality.forecasts:
            return "none"
        return (
            f"{share(quality.coverage)} of answers inside the interval, rank correlation (Kendall) "
            f"{number(quality.kendall, 2)}, half of the lengths within a factor "
            f"{number(quality.median_error)} of the median"
        )

    def _energy(self) -> str:
        energy = self.all.energy
        if not energy.measured:
            return "not measured"
        return (
            f"{number(energy.joules, None)} J for {energy.measured:,} requests ({energy.source}): "
            f"{number(energy.per_request)} J per request, {number(energy.per_output_token)} J per "
            f"output token, {share(energy.wasted_share)} wasted by computing tokens again"
        )


def _tables(by: str, own: Sequence[RowSummary]) -> list[Table]:
    title = "All requests" if by == "all" else f"By {by}"
    columns = _WORK + (_ENERGY if any(s.energy.measured for s in own) else ())
    return [_table(title, by, _LATENCY, own), _table(f"{title}: work", by, columns, own)]


def _table(
    title: str, by: str, columns: Sequence[tuple[str, str, _Cell]], own: Sequence[RowSummary]
) -> Table:
    spans: list[tuple[str, int]] = [("", 1)]
    for group, _, _ in columns:
        if group and spans[-1][0] == group:
            spans[-1] = group, spans[-1][1] + 1
        else:
            spans.append((group, 1))
    return Table(
        title=title,
        groups=tuple(spans),
        headings=("" if by == "all" else by, *(name for _, name, _ in columns)),
        rows=tuple((s.name, *(cell(s) for _, _, cell in columns)) for s in own),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
