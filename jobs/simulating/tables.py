"""A comparison as tables: for the terminal and, by the same cells, for the HTML report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rich.table import Table as RichTable

from jobs.simulating.summary import Distribution, Energy, Summary

Figure = Callable[[Summary], float]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a summary, averaged over the seeds.

    Attributes:
        group: What stands over the heading, with the unit.
        name: Heading.
        value: The figure; NaN where there is none.
        digits: Significant digits, or None for a whole number.
        percent: Whether the figure is a share shown in per cent.
        spread: Whether the standard deviation over the seeds stands beside it.
    """

    group: str
    name: str
    value: Figure
    digits: int | None = 3
    percent: bool = False
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Text cells under two rows of headings; the first cell of a row is its name.

    Attributes:
        title: What the table shows.
        groups: Upper headings with the number of columns each spans.
        headings: Lower headings, one per column.
        rows: Cells.
    """

    title: str
    groups: tuple[tuple[str, int], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _percentiles(group: str, of: Callable[[Summary], Distribution]) -> tuple[Column, ...]:
    return (
        Column(group, "mean", lambda s: of(s).mean, spread=True),
        Column(group, "p50", lambda s: of(s).p50),
        Column(group, "p90", lambda s: of(s).p90),
        Column(group, "p99", lambda s: of(s).p99),
    )


LATENCY = (
    *_percentiles("per token (s)", lambda s: s.per_token_latency_s),
    *_percentiles("latency (s)", lambda s: s.latency_s),
    *_percentiles("TTFT (s)", lambda s: s.ttft_s),
)
_UNTIL = Column("", "until N (s)", lambda s: s.until_s)
WORK = (
    Column("finished", "requests/s", lambda s: s.requests_per_s, spread=True),
    Column("finished", "tokens/s", lambda s: s.tokens_per_s, digits=None),
    Column("lost memory", "evictions", lambda s: s.evictions, digits=None),
    Column("lost memory", "recomputed", lambda s: s.recomputed_share, percent=True),
    Column("memory in use", "mean", lambda s: s.mean_memory_share, percent=True),
    Column("memory in use", "peak", lambda s: s.peak_memory_share, percent=True),
    Column("queue", "mean", lambda s: s.mean_waiting),
    Column("queue", "peak", lambda s: s.peak_waiting, digits=None),
    Column("forecasts", "covered", lambda s: s.quality.coverage, percent=True),
    Column("forecasts", "Kendall", lambda s: s.quality.kendall, digits=2),
    Column("forecasts", "Spearman", lambda s: s.quality.spearman, digits=2),
    Column("", "refused", lambda s: s.refused, digits=None),
    Column("", "outside range", lambda s: s.outside_share, percent=True),
)


def _energy(value: Callable[[Energy], float]) -> Figure:
    return lambda s: math.nan if s.energy is None else value(s.energy)


ENERGY = (
    Column("above idle (J)", "per request", _energy(lambda e: e.per_request_joules), spread=True),
    Column("above idle (J)", "per token", _energy(lambda e: e.per_token_joules)),
    Column("with idle (J)", "per token", _energy(lambda e: e.all_per_token_joules), spread=True),
    Column("with idle (J)", "in all", _energy(lambda e: e.metered_joules)),
    Column("share", "wasted", _energy(lambda e: e.wasted_share), percent=True),
    Column("share", "idle", _energy(lambda e: e.idle_share), percent=True),
    Column("mean power", "(W)", _energy(lambda e: e.mean_power_w)),
)
"""Tokens are output tokens; wasted is the share of what is above idle that computed tokens again,
idle the share of all that was drawn."""


def comparison_tables(summaries: Sequence[Summary]) -> list[Table]:
    """Tables per load with one row per policy, in the order given: latency, work and energy."""
    tables = []
    for load in dict.fromkeys(s.load for s in summaries):
        of_load = [s for s in summaries if s.load == load]
        seeds = sorted({s.seed for s in of_load})
        told = f"seed {seeds[0]}"
        if len(seeds) > 1:
            told = f"means over seeds {seeds[0]} to {seeds[-1]}, ± standard deviation"
        work: tuple[Column, ...] = WORK
        samples = of_load[0].until_samples
        if samples is not None:
            until = Column("time until", f"{samples:,} finished (s)", _UNTIL.value)
            work = (*WORK[:2], until, *WORK[2:])
        tables.append(_table(f"Latency, {load}, {told}", LATENCY, of_load))
        tables.append(_table(f"Work and memory, {load}, {told}", work, of_load))
        energy = of_load[0].energy
        if energy is not None:
            tables.append(_table(f"Energy ({energy.source}), {load}, {told}", ENERGY, of_load))
    return tables


def render_table(table: Table) -> RichTable:
    """A table for the terminal."""
    rendered = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
    groups = [name for name, span in table.groups for _ in range(span)]
    for index, (group, heading) in enumerate(zip(groups, table.headings, strict=True)):
        first = index == 0 or groups[index - 1] != group
        rendered.add_column(
            f"{group if first else ''}\n{heading}" if index else f"\n{heading}",
            justify="right" if index else "left",
            no_wrap=True,
        )
    for row in table.rows:
        rendered.add_row(*row)
    return rendered


def number(value: float, digits: int | None = 3) -> str:
    """A figure as people read it: `digits` significant ones, whole from 1,000, a dash for NaN."""
    if not math.isfinite(value):
        return "-"
    if digits is None or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def share(value: float) -> str:
    """A share in per cent, a dash for NaN."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def _table(title: str, columns: Sequence[Column], summaries: Sequence[Summary]) -> Table:
    spans: list[tuple[str, int]] = [("", 1)]
    for column in columns:
        if spans[-1][0] == column.group and column.group:
            spans[-1] = (column.group, spans[-1][1] + 1)
        else:
            spans.append((column.group, 1))
    policies = dict.fromkeys(s.policy for s in summaries)
    return Table(
        title=title,
        groups=tuple(spans),
        headings=("policy", *(column.name for column in columns)),
        rows=tuple(
            (
                name,
                *(_cell(column, [s for s in summaries if s.policy == name]) for column in columns),
            )
            for name in policies
        ),
    )


def _cell(column: Column, over_seeds: Sequence[Summary]) -> str:
    values = [float(column.value(s)) for s in over_seeds]
    mean = fmean(values)
    if column.percent:
        return share(mean)
    text = number(mean, column.digits)
    if column.spread and len(values) > 1 and math.isfinite(mean):
        text += f" ±{number(stdev(values), 2)}"
    return text
