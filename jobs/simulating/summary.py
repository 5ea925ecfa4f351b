"""What one simulated policy came to: exact figures from its rows and its result."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import ConstantInputWarning, kendalltau, spearmanr

from cluster.simulation import SimulationResult
from cluster.virtual_replica import FleetSpec
from jobs.simulating.rows import RowFile
from policies.batch import Floats
from policies.request import RequestClass

RANKED_ROWS = 20_000
"""Rows, drawn evenly, whose forecasts are ranked against their lengths."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and exact percentiles of a value over all finished requests; NaN without any."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of_sorted(cls, values: Floats) -> Distribution:
        """Of ascending values, (n,), the percentiles interpolated linearly."""
        if not len(values):
            return cls(*[math.nan] * 4)
        p50, p90, p99 = sorted_quantiles(values, np.array([0.5, 0.9, 0.99]))
        return cls(float(values.mean()), float(p50), float(p90), float(p99))


@dataclass(frozen=True, slots=True)
class ForecastQuality:
    """How good the forecasts were that the policy was given; NaN where undefined.

    Attributes:
        coverage: Share of answers inside their interval. An answer that reached its cap inside the
            interval is known from below only and does not count.
        kendall: Rank correlation of forecast medians and lengths.
        spearman: The same by Spearman.
        ranked_rows: Rows the correlations were computed on.
    """

    coverage: float
    kendall: float
    spearman: float
    ranked_rows: int


@dataclass(frozen=True, slots=True)
class Energy:
    """Modelled energy until the last request finished; NaN where undefined.

    Attributes:
        source: The power model's name.
        metered_joules: All that the replicas drew.
        request_joules: Booked to requests: what was drawn above idle.
        per_request_joules: Those over the finished requests.
        per_token_joules: Those over their output tokens.
        all_per_token_joules: All that was drawn, over their output tokens.
        wasted_share: Part of `request_joules` that computed tokens again.
        idle_share: Part of `metered_joules` that goes without work.
        mean_power_w: Of all replicas together.
    """

    source: str
    metered_joules: float
    request_joules: float
    per_request_joules: float
    per_token_joules: float
    all_per_token_joules: float
    wasted_share: float
    idle_share: float
    mean_power_w: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one policy under one load. Seconds are virtual.

    Attributes:
        policy: Arm of the comparison: a policy, with what was changed of it.
        forecast: Where its forecasts come from.
        load: Offered load, as the tables name it.
        load_multiple: Offered load over capacity; None where capacity was not measured.
        rate_per_s: Requests offered per second; None when all arrive at once.
        seed: Seed of the requests.
        step_time: Name of the step-time model.
        outside_share: Share of the busy time in steps that the step-time model does not cover.
        replicas: Replicas.
        finished: Requests that finished.
        refused: Requests larger than any replica.
        makespan_s: When the last one finished.
        latency_s: Arrival to last token.
        per_token_latency_s: Latency over output tokens.
        ttft_s: Arrival to first token.
        latency_by_class_s: Latency of each service class, where there is more than one.
        until_samples: The number asked for; None where none was, or fewer finished.
        until_s: When that many had finished.
        requests_per_s: Finished requests over the makespan.
        tokens_per_s: Their output tokens over the makespan.
        evictions: Times a request lost its memory.
        recomputed_tokens: Tokens computed again.
        recomputed_share: Those over the prompt and output tokens of the finished requests.
        wasted_tokens: Output tokens that restarts threw away.
        mean_memory_share: KV blocks in use over capacity, averaged over time.
        peak_memory_share: The most one replica had in use, over its capacity.
        mean_waiting: Queue length averaged over time.
        peak_waiting: Longest queue.
        quality: Of the forecasts.
        energy: None without a power model.
    """

    policy: str
    forecast: str
    load: str
    load_multiple: float | None
    rate_per_s: float | None
    seed: int
    step_time: str
    outside_share: float
    replicas: int
    finished: int
    refused: int
    makespan_s: float
    latency_s: Distribution
    per_token_latency_s: Distribution
    ttft_s: Distribution
    latency_by_class_s: dict[str, Distribution]
    until_samples: int | None
    until_s: float
    requests_per_s: float
    tokens_per_s: float
    evictions: int
    recomputed_tokens: int
    recomputed_share: float
    wasted_tokens: int
    mean_memory_share: float
    peak_memory_share: float
    mean_waiting: float
    peak_waiting: int
    quality: ForecastQuality
    energy: Energy | None = None

    def as_dict(self) -> dict[str, Any]:
        """For machines; NaN is None."""
        without: dict[str, Any] = without_nan(asdict(self))
        return without


@dataclass(frozen=True, slots=True)
class Offered:
    """What an arm was given to do.

    Attributes:
        forecast: Where the forecasts come from.
        load: Offered load, as the tables name it.
        load_multiple: Over capacity; None where that was not measured.
        rate_per_s: Requests per second; None when all arrive at once.
        seed: Of the requests.
    """

    forecast: str
    load: str
    load_multiple: float | None
    rate_per_s: float | None
    seed: int


def summarise(
    result: SimulationResult,
    rows: RowFile,
    fleet: FleetSpec,
    offered: Offered,
    per_token_s: Floats,
    until: int | None,
) -> Summary:
    """The figures of one simulation.

    Args:
        result: What `simulate` returned.
        rows: The rows it wrote.
        fleet: What it simulated.
        offered: What it was given to do.
        per_token_s: `per_token_latency_s(rows)`, ascending, (n,).
        until: Number of samples whose time is wanted.
    """
    makespan_s = result.makespan_s
    work = result.prompt_tokens + result.output_tokens
    enough = until is not None and until <= rows.rows
    return Summary(
        policy=result.policy,
        forecast=offered.forecast,
        load=offered.load,
        load_multiple=offered.load_multiple,
        rate_per_s=offered.rate_per_s,
        seed=offered.seed,
        step_time=result.step_time,
        outside_share=result.uncovered_share,
        replicas=result.replicas,
        finished=result.finished,
        refused=result.refused,
        makespan_s=makespan_s,
        latency_s=_distribution(rows, "finished_s"),
        per_token_latency_s=Distribution.of_sorted(per_token_s),
        ttft_s=_distribution(rows, "first_token_s"),
        latency_by_class_s=_by_class(rows),
        until_samples=until if enough else None,
        until_s=time_until(rows, until) if enough and until else math.nan,
        requests_per_s=_ratio(result.finished, makespan_s),
        tokens_per_s=_ratio(result.output_tokens, makespan_s),
        evictions=result.evictions,
        recomputed_tokens=result.recomputed_tokens,
        recomputed_share=_ratio(result.recomputed_tokens, work),
        wasted_tokens=result.wasted_tokens,
        mean_memory_share=result.mean_memory_share,
        peak_memory_share=result.peak_memory_blocks / fleet.limits.kv_blocks,
        mean_waiting=result.mean_waiting,
        peak_waiting=result.peak_waiting,
        quality=forecast_quality(rows, offered.seed),
        energy=_energy(result),
    )


def _energy(result: SimulationResult) -> Energy | None:
    totals = result.energy
    if totals is None:
        return None
    return Energy(
        source=totals.source,
        metered_joules=totals.metered_joules,
        request_joules=totals.request_joules,
        per_request_joules=_ratio(totals.request_joules, result.finished),
        per_token_joules=_ratio(totals.request_joules, result.output_tokens),
        all_per_token_joules=_ratio(totals.metered_joules, result.output_tokens),
        wasted_share=_ratio(totals.wasted_joules, totals.request_joules),
        idle_share=_ratio(totals.idle_joules, totals.metered_joules),
        mean_power_w=_ratio(totals.metered_joules, result.makespan_s),
    )


def per_token_latency_s(rows: RowFile) -> Floats:
    """Latency over output tokens of all finished requests, ascending, (n,)."""
    values = rows.values(
        ("finished_s", "arrival_s", "output_tokens"), lambda end, start, n: (end - start) / n
    )
    values.sort()
    return values


def time_until(rows: RowFile, samples: int) -> float:
    """When `samples` requests had finished, in seconds; at least 1 and at most all."""
    finished_s = rows.values(("finished_s",), lambda end: end)
    finished_s.partition(samples - 1)
    return float(finished_s[samples - 1])


def forecast_quality(rows: RowFile, seed: int) -> ForecastQuality:
    """Coverage over all rows, rank correlations over a sample of them."""
    known = inside = 0
    for length, cap, lower, upper in rows.batches(
        ("output_tokens", "max_tokens", "lower", "upper")
    ):
        counts = (length < cap) | (length > upper)
        known += int(counts.sum())
        inside += int((counts & (lower <= length) & (length <= upper)).sum())
    mu, length = rows.sample(("mu", "output_tokens"), RANKED_ROWS, seed)
    kendall = spearman = math.nan
    if len(mu) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)  # then they are NaN, as they must
            kendall = float(kendalltau(mu, length).statistic)
            spearman = float(spearmanr(mu, length).statistic)
    return ForecastQuality(_ratio(inside, known), kendall, spearman, len(mu))


def sorted_quantiles(values: Floats, q: Floats) -> Floats:
    """Quantiles `q`, (k,), of ascending values, (n,) with n >= 1, by linear interpolation."""
    at = q * (len(values) - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, len(values) - 1)
    quantiles: Floats = values[low] + (at - low) * (values[high] - values[low])
    return quantiles


def without_nan(value: Any) -> Any:
    """`value` with every float that JSON cannot write replaced by None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _distribution(rows: RowFile, end: str) -> Distribution:
    values = rows.values((end, "arrival_s"), lambda ended, started: ended - started)
    values.sort()
    return Distribution.of_sorted(values)


def _by_class(rows: RowFile) -> dict[str, Distribution]:
    parts: dict[int, list[Floats]] = {}
    for kind, end, start in rows.batches(("request_class", "finished_s", "arrival_s")):
        for value in np.unique(kind):
            parts.setdefault(int(value), []).append((end - start)[kind == value])
    if len(parts) < 2:
        return {}
    return {
        RequestClass(value).name.lower(): Distribution.of_sorted(np.sort(np.concatenate(own)))
        for value, own in sorted(parts.items())
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
