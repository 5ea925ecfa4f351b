"""What a group of finished requests adds up to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from jobs.finished.row_table import ANSWERED

GROUPINGS = ("policy", "class", "tenant", "job", "replica")
"""What rows can be told apart by."""

_COLUMNS = {
    "policy": "policy",
    "class": "request_class",
    "tenant": "tenant",
    "job": "job",
    "replica": "replica_id",
}

MOST_GROUPS = 30
"""Groups with figures of their own, those with the most requests; the others are one."""

RANKED_ROWS = 100_000
"""Rows that a rank correlation rests on at most, spread evenly over all."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles; all NaN without values."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: pd.Series[float]) -> Spread:
        """Of the values that there are."""
        known = values.to_numpy(np.float64)
        known = known[~np.isnan(known)]
        if not len(known):
            return cls(math.nan, math.nan, math.nan, math.nan)
        return cls(float(known.mean()), *np.percentile(known, [50, 90, 99]).tolist())


@dataclass(frozen=True, slots=True)
class ForecastQuality:
    """How good the forecasts were that requests were scheduled by.

    Attributes:
        forecasts: Answers that had one.
        coverage: Share of the answers inside their interval. One that its cap ended inside it is
            not counted: it is known from below only.
        kendall: Rank correlation of the medians with the lengths.
        median_error: Median of the factor by which the length is off the forecast's median.
    """

    forecasts: int
    coverage: float
    kendall: float
    median_error: float

    @classmethod
    def of(cls, answers: pd.DataFrame) -> ForecastQuality:
        """Of answered requests."""
        known = answers.dropna(subset=["forecast_mu"])
        known = known[known["output_tokens"] > 0]
        length = known["output_tokens"]
        told = (known["finish_reason"] != "length") | (length > known["forecast_upper"])
        inside = length.between(known["forecast_lower"], known["forecast_upper"])[told]
        off = np.abs(np.log(length.to_numpy(np.float64)) - known["forecast_mu"].to_numpy())
        ranked = known.iloc[:: max(1, -(-len(known) // RANKED_ROWS))]
        kendall = math.nan
        if ranked["forecast_mu"].nunique() > 1 and ranked["output_tokens"].nunique() > 1:
            kendall = kendalltau(ranked["forecast_mu"], ranked["output_tokens"]).statistic
        return cls(
            forecasts=len(known),
            coverage=float(inside.mean()) if len(inside) else math.nan,
            kendall=float(kendall),
            median_error=float(np.exp(np.median(off))) if len(known) else math.nan,
        )


@dataclass(frozen=True, slots=True)
class EnergyUse:
    """What requests cost, as far as it was measured.

    Attributes:
        source: The meters' names; `none`: nothing was measured.
        measured: Requests of which it is known.
        joules: Attributed to them.
        wasted_joules: The part that computed tokens again.
        per_request: Joules for each that was measured.
        per_output_token: Joules for each of their output tokens.
    """

    source: str
    measured: int
    joules: float
    wasted_joules: float
    per_request: float
    per_output_token: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> EnergyUse:
        """Of requests, however they ended."""
        known = rows.dropna(subset=["energy_joules"])
        joules = float(known["energy_joules"].sum())
        tokens = int(known["output_tokens"].sum())
        return cls(
            source=", ".join(sorted(set(known["energy_source"]))) or "none",
            measured=len(known),
            joules=joules if len(known) else math.nan,
            wasted_joules=float(known["wasted_joules"].sum()) if len(known) else math.nan,
            per_request=joules / len(known) if len(known) else math.nan,
            per_output_token=joules / tokens if tokens else math.nan,
        )

    @property
    def wasted_share(self) -> float:
        """Of the joules; NaN without any."""
        return self.wasted_joules / self.joules if self.joules else math.nan


@dataclass(frozen=True, slots=True)
class RowSummary:
    """A group of requests.

    Durations are seconds since arrival, of answered requests whose arrival is known.

    Attributes:
        by: What the group shares, one of `GROUPINGS`, or `all`.
        name: Its value.
        requests: All that ended.
        finish_reasons: How many, by reason.
        prompt_tokens: Of all.
        output_tokens: Of all.
        queue_s: Until the first dispatch.
        ttft_s: Until the first token.
        latency_s: Until the end.
        per_token_latency_s: The same by output token.
        evictions: Of all.
        recalls: Of all.
        recomputed_tokens: Of all.
        forecast: How good the forecasts were.
        energy: What it cost.
    """

    by: str
    name: str
    requests: int
    finish_reasons: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    queue_s: Spread
    ttft_s: Spread
    latency_s: Spread
    per_token_latency_s: Spread
    evictions: int
    recalls: int
    recomputed_tokens: int
    forecast: ForecastQuality
    energy: EnergyUse

    @classmethod
    def of(cls, by: str, name: str, rows: pd.DataFrame) -> RowSummary:
        """Of these rows."""
        answers = rows[rows["finish_reason"].isin(ANSWERED)]
        # A restarted controller does not know when requests that ran had arrived.
        timed = answers.dropna(subset=["dispatched_s"])
        reasons = rows["finish_reason"].value_counts()
        tokens = timed["output_tokens"].where(timed["output_tokens"] > 0)
        return cls(
            by=by,
            name=name,
            requests=len(rows),
            finish_reasons={str(k): int(v) for k, v in reasons.items()},
            prompt_tokens=int(rows["prompt_tokens"].sum()),
            output_tokens=int(rows["output_tokens"].sum()),
            queue_s=Spread.of(timed["dispatched_s"]),
            ttft_s=Spread.of(timed["first_token_s"]),
            latency_s=Spread.of(timed["finished_s"]),
            per_token_latency_s=Spread.of(timed["finished_s"] / tokens),
            evictions=int(rows["evictions"].sum()),
            recalls=int(rows["recalls"].sum()),
            recomputed_tokens=int(rows["recomputed_tokens"].sum()),
            forecast=ForecastQuality.of(answers),
            energy=EnergyUse.of(rows),
        )

    @property
    def recomputed_share(self) -> float:
        """Tokens computed again over prompt and output tokens; NaN without any."""
        useful = self.prompt_tokens + self.output_tokens
        return self.recomputed_tokens / useful if useful else math.nan


def summaries(rows: pd.DataFrame, by: str) -> Iterator[RowSummary]:
    """A summary of each group, the largest first.

    Args:
        rows: As of `read_rows`.
        by: One of `GROUPINGS`.
    """
    names = rows[_COLUMNS[by]].replace("", "(none)")
    counts = names.value_counts()
    for name in counts.index[:MOST_GROUPS]:
        yield RowSummary.of(by, str(name), rows[names == name])
    rest = counts.index[MOST_GROUPS:]
    if len(rest):
        yield RowSummary.of(by, f"{len(rest):,} others", rows[names.isin(rest)])
