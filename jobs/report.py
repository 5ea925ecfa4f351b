"""What a job's output says: lengths, latencies, forecasts, waste and energy, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from ddsketch import DDSketch
from rich.console import Group, RenderableType
from rich.table import Table
from scipy.stats import kendalltau

from jobs.generate_job import RunResult
from jobs.job_energy import RowEnergy, cluster_energy

PERCENTILES = (0.5, 0.9, 0.99)
SKETCH_ERROR = 0.005
"""Relative error of a percentile."""

RANKED_ROWS = 20_000
"""Rows whose forecasts are ranked against their lengths: the first ones that finished."""

COLUMNS = [
    "prompt_tokens",
    "output_tokens",
    "finish_reason",
    "queue_s",
    "ttft_s",
    "latency_s",
    "evictions",
    "recomputed_tokens",
    "attempts",
    "forecast_mu",
    "forecast_lower",
    "forecast_upper",
    "forecast_source",
    "energy_joules",
    "wasted_joules",
    "energy_source",
]
"""Columns of the results that a report reads."""


class OutputReport:
    """Sums and percentile sketches over all result rows of a job, runs before this one included."""

    def __init__(self) -> None:
        self.rows = 0
        self.totals: dict[str, int] = dict.fromkeys(
            ("prompt_tokens", "output_tokens", "evictions", "recomputed_tokens"), 0
        )
        self.finish_reasons: dict[str, int] = {}
        self.forecast_sources: dict[str, int] = {}
        self.retried = 0
        self.energy = RowEnergy()
        self._sketches = {
            name: DDSketch(SKETCH_ERROR)
            for name in ("queue_s", "ttft_s", "latency_s", "per_token_latency_s", "output_tokens")
        }
        self._forecasts = 0
        self._covered = 0
        self._ranked: list[pd.DataFrame] = []

    def add(self, rows: pd.DataFrame) -> None:
        """Take in result rows with `COLUMNS`."""
        self.rows += len(rows)
        for name in self.totals:
            self.totals[name] += int(rows[name].sum())
        self.retried += int((rows["attempts"] > 1).sum())
        _count(self.finish_reasons, rows["finish_reason"])
        _count(self.forecast_sources, rows["forecast_source"].dropna())
        self.energy.add(rows)
        answered = rows[rows["output_tokens"] > 0]
        per_token = answered["latency_s"] / answered["output_tokens"]
        for name, sketch in self._sketches.items():
            values = per_token if name == "per_token_latency_s" else rows[name].dropna()
            for value in values.to_numpy(np.float64):
                sketch.add(float(value))
        self._add_forecasts(rows.dropna(subset=["forecast_mu"]))

    def _add_forecasts(self, rows: pd.DataFrame) -> None:
        # An answer cut off at its cap is known from below only, so it says nothing of coverage
        # unless it has left the interval already.
        length = rows["output_tokens"]
        known = rows[(rows["finish_reason"] != "length") | (length > rows["forecast_upper"])]
        inside = known["output_tokens"].between(known["forecast_lower"], known["forecast_upper"])
        self._forecasts += len(known)
        self._covered += int(inside.sum())
        room = RANKED_ROWS - sum(len(r) for r in self._ranked)
        if room > 0:
            self._ranked.append(rows[["forecast_mu", "output_tokens"]].head(room))

    def percentile(self, name: str, q: float) -> float:
        """Percentile of one of the sketched columns; NaN without values."""
        value = self._sketches[name].get_quantile_value(q)
        return float("nan") if value is None else float(value)

    def mean(self, name: str) -> float:
        """Mean of one of the sketched columns; NaN without values."""
        sketch = self._sketches[name]
        return sketch.sum / sketch.count if sketch.count else float("nan")

    @property
    def coverage(self) -> float:
        """Share of answers inside their forecast's interval; NaN without forecasts."""
        return self._covered / self._forecasts if self._forecasts else float("nan")

    @property
    def rank_correlation(self) -> float:
        """Kendall's tau between the forecast medians and the lengths; NaN where undefined."""
        if not self._ranked:
            return float("nan")
        rows = pd.concat(self._ranked)
        return float(kendalltau(rows["forecast_mu"], rows["output_tokens"]).statistic)

    def as_dict(self, run: RunResult) -> dict[str, Any]:
        """The whole report for machines; NaN and what was not measured are null."""
        report: dict[str, Any] = _without_nan(
            {
                "rows": self.rows,
                "totals": self.totals,
                "finish_reasons": self.finish_reasons,
                "retried_rows": self.retried,
                "distributions": {name: self._distribution(name) for name in self._sketches},
                "forecast": {
                    "sources": self.forecast_sources,
                    "coverage": self.coverage,
                    "rank_correlation": self.rank_correlation,
                },
                "cluster": {
                    "policy": run.after.policy,
                    "model": run.after.model,
                    "replicas": len(run.after.replicas),
                },
                "run": {
                    "rows": run.progress.finished,
                    "errors": run.progress.errors,
                    "output_tokens": run.progress.output_tokens,
                    "wall_s": run.wall_s,
                    "interrupted": run.interrupted,
                    "paused": run.paused,
                    "recalls": run.after.recalls - run.before.recalls,
                },
                "energy": {
                    "rows": self.energy.as_dict(),
                    "cluster": cluster_energy(run.before, run.after).as_dict(),
                },
            }
        )
        return report

    def _distribution(self, name: str) -> dict[str, float]:
        percentiles = {f"p{q * 100:g}": self.percentile(name, q) for q in PERCENTILES}
        return {"mean": self.mean(name), **percentiles}


def render(report: OutputReport, run: RunResult) -> RenderableType:
    """The report for people."""
    return Group(_summary(report, run), _latencies(report))


def _summary(report: OutputReport, run: RunResult) -> Table:
    table = Table(title="Job", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    cluster, totals = run.after, report.totals
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(report.finish_reasons.items()))
    lengths = (f"p{q * 100:g} {report.percentile('output_tokens', q):.0f}" for q in PERCENTILES)
    engines = ", ".join(sorted({r.engine for r in cluster.replicas if r.engine}))
    table.add_row("model", cluster.model)
    table.add_row("policy", f"{cluster.policy} on {len(cluster.replicas)} replicas ({engines})")
    table.add_row(
        "rows",
        f"{report.rows:,} finished ({reasons}), {run.progress.errors:,} errors in this run, "
        f"{report.retried:,} took more than one attempt",
    )
    table.add_row(
        "tokens", f"{totals['prompt_tokens']:,} prompt, {totals['output_tokens']:,} output"
    )
    table.add_row("answer lengths", f"{', '.join(lengths)} tokens")
    table.add_row("this run", _throughput(run))
    table.add_row("evictions", _evictions(totals, run.after.recalls - run.before.recalls))
    table.add_row("forecasts", _forecasts(report))
    table.add_row("energy of the rows", report.energy.told())
    table.add_row("energy in this run", cluster_energy(run.before, run.after).told())
    return table


def _evictions(totals: dict[str, int], recalls: int) -> str:
    useful = max(1, totals["output_tokens"] + totals["prompt_tokens"])
    recomputed = totals["recomputed_tokens"]
    share = 100 * recomputed / useful
    return (
        f"{totals['evictions']:,}; {recomputed:,} tokens computed again ({share:.1f} % of all); "
        f"{recalls:,} recalls to another replica in this run"
    )


def _throughput(run: RunResult) -> str:
    tokens = run.progress.output_tokens
    rate = tokens / run.wall_s if run.wall_s > 0 else 0.0
    rows = run.progress.finished
    return f"{rows:,} rows, {tokens:,} tokens in {run.wall_s:.1f} s: {rate:,.0f} tokens/s"


def _forecasts(report: OutputReport) -> str:
    if not report.forecast_sources:
        return "none"
    count = sum(report.forecast_sources.values())
    sources = ", ".join(
        f"{100 * rows / count:.0f} % {source}"
        for source, rows in sorted(report.forecast_sources.items())
    )
    return (
        f"{sources}; {100 * report.coverage:.0f} % of answers inside the interval, "
        f"rank correlation (Kendall) {report.rank_correlation:.2f}"
    )


def _latencies(report: OutputReport) -> Table:
    table = Table(title="Seconds from submission", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in ("mean", *(f"p{q * 100:g}" for q in PERCENTILES)):
        table.add_column(name, justify="right")
    for name, label in (
        ("latency_s", "latency"),
        ("per_token_latency_s", "latency per output token"),
        ("ttft_s", "time to first token"),
        ("queue_s", "in the queue"),
    ):
        values = [report.mean(name), *(report.percentile(name, q) for q in PERCENTILES)]
        table.add_row(label, *(f"{value:.3f}" for value in values))
    return table


def _count(counts: dict[str, int], values: Iterable[str]) -> None:
    for value, n in pd.Series(values, dtype=object).value_counts().items():
        counts[str(value)] = counts.get(str(value), 0) + int(n)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
