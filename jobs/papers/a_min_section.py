"""The section of the page about intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.papers.line_chart import Line, LineChart
from jobs.papers.markdown import percent, spread, table
from jobs.papers.study import Pairs, Result, Section

FIGURE = "a_min.svg"
DERIVED: Mapping[str, Mapping[str, str]] = {
    "common [1, 1000]": {"A_max": "16.8", "A_min": "2.1 to 2.6"},
    "bins of 100": {"A_max": "1.55", "A_min": "1.09"},
    "o ± 10 %": {"A_max": "1.05", "A_min": "1.01"},
    "o ± 95 %": {"A_max": "1.64", "A_min": "1.17"},
    "o ± 99 %": {"A_max": "1.65", "A_min": "1.20"},
}
"""Ratios to H-SF that an independent implementation of the method gave on such lengths."""

ByKind = Mapping[str, Sequence[Result]]


def write(pairs: Pairs) -> Section:
    """The section."""
    by_kind: dict[str, list[Result]] = {}
    for cell, result in pairs:
        by_kind.setdefault(cell["intervals"], []).append(result)
    text = "\n\n".join(
        (
            _what_was_run(pairs, by_kind),
            _ratios(by_kind),
            f"![Total latency over that of H-SF, by the kind of interval](figures/{FIGURE})",
            _costs(by_kind),
            _reading(by_kind),
        )
    )
    return Section(text, {FIGURE: _chart(by_kind).svg()})


def _what_was_run(pairs: Pairs, by_kind: ByKind) -> str:
    cell = pairs[0][0]
    lengths = [r for kind in DERIVED if kind in by_kind for r in by_kind[kind]]
    means = {
        key: sum(r[key] for r in lengths) / len(lengths)
        for key in ("mean_prompt_tokens", "mean_output_tokens", "median_output_tokens")
    }
    seeds = len(next(iter(by_kind.values())))
    return f"""\
`python -m jobs.papers --study a_min`, seeds 0 to {seeds - 1}. The unit-step model of
arXiv:2508.14544:
one worker with M = {cell["memory_tokens"]:,} tokens, {cell["requests"]:,} requests all at once,
every
step one token for each running request, an evicted request restarts from nothing. Lengths are
log-normal with the figures that arXiv:2502.07115 gives for LMSYS-Chat-1M, outputs cut at 1,000:
drawn
were prompts of {means["mean_prompt_tokens"]:.0f} tokens on average and outputs of
{means["mean_output_tokens"]:.0f} (median {means["median_output_tokens"]:.0f}). *Realtime* and
*stored*
are the two readings of A_min's eviction order; *double* projects a request that has outlived its
lower
bound by as many further steps as it has made, otherwise by one. With two-point lengths (20 tokens
with
probability 0.8, else 400) Promote-l applies as well."""


def _ratios(by_kind: ByKind) -> str:
    arms = _arms(by_kind)[1:]
    rows = []
    for kind, results in by_kind.items():
        cells = [
            spread([r["arms"][a]["ratio"] for r in results]) if a in results[0]["arms"] else ""
            for a in arms
        ]
        derived = DERIVED.get(kind, {})
        rows.append([kind, *cells, derived.get("A_max", ""), derived.get("A_min", "")])
    head = ("interval", *arms, "A_max, other code", "A_min, other code")
    return (
        "Total latency over that of H-SF, which knows every length (mean ± standard deviation over "
        "the seeds); in the last two columns what an independent implementation gave:\n\n"
        + table(head, rows)
    )


def _costs(by_kind: ByKind) -> str:
    arms = [a for a in _arms(by_kind) if a.startswith(("A_min", "Promote"))]
    rows = []
    for kind, results in by_kind.items():
        cells = []
        for arm in arms:
            shown = [r["arms"][arm] for r in results if arm in r["arms"]]
            evictions = sum(s["evictions"] for s in shown) / len(shown) if shown else 0
            wasted = sum(s["wasted_share"] for s in shown) / len(shown) if shown else 0
            cells.append(f"{evictions:,.0f}; {percent(wasted, 0)}" if shown else "")
        rows.append([kind, *cells])
    return (
        "Evictions, and the tokens they threw away over the tokens that were wanted (H-SF and "
        "A_max never evict):\n\n" + table(("interval", *arms), rows)
    )


def _reading(by_kind: ByKind) -> str:
    common, bins = by_kind["common [1, 1000]"], by_kind["bins of 100"]
    narrow, wide = by_kind["o ± 10 %"], by_kind["o ± 99 %"]
    two_point = by_kind["two-point {20, 400}"]
    variants = ("A_min realtime", "A_min stored")
    stored_better = [
        kind
        for kind, results in by_kind.items()
        if _mean(results, "A_min stored") < _mean(results, "A_min realtime")
    ]
    best_common = min(variants, key=lambda a: _mean(common, a))
    best_wide = min(variants, key=lambda a: _mean(wide, a))
    spared = _evictions(common, "A_min realtime, double") / _evictions(common, "A_min realtime")
    slower = _mean(common, "A_min realtime, double") / _mean(common, "A_min realtime")
    return f"""\
The quality of the interval decides. With one interval for all, assuming the upper end (A_max) is
{_mean(common, "A_max"):.1f} times as slow as hindsight, and A_min {_mean(common, best_common):.1f}
times at
best ({best_common.removeprefix("A_min ")}); bins of 100 tokens bring A_min (realtime) to
{_mean(bins, "A_min realtime"):.2f} and
{"" if _mean(narrow, "A_min realtime") < 1.02 else "nearly "}±10 %
to {_mean(narrow, "A_min realtime"):.2f}. With
o ± 99 % it is {_mean(wide, best_wide):.2f} ({best_wide.removeprefix("A_min ")}) against
{_mean(wide, "A_max"):.2f}. The claim that A_min stays near hindsight where A_max does not holds as
far
as the interval says something. The paper does not say which eviction order it means: stored is the
better one for {_listed(stored_better)}, realtime elsewhere. Doubling evicts {percent(spared, 0)} as
often on the common
interval, at {slower:.2f} times the latency. The price is thrown-away work: up to
{percent(max(_wasted(r, a) for r in by_kind.values() for a in variants), 0)} of the wanted tokens
again.
Promote-l comes to {_mean(two_point, "Promote-l"):.2f} on two-point lengths, A_min (realtime) to
{_mean(two_point, "A_min realtime"):.2f} and A_max to {_mean(two_point, "A_max"):.2f}."""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) or "none"


def _chart(by_kind: ByKind) -> LineChart:
    kinds = [kind for kind in by_kind if kind in DERIVED]
    arms = [a for a in _arms({k: by_kind[k] for k in kinds}) if a != "H-SF"]
    return LineChart(
        title="Total latency over that of H-SF",
        x_label="interval of the output length o",
        y_label="ratio (log)",
        positions=kinds,
        lines=[Line(arm, [_mean(by_kind[kind], arm) for kind in kinds]) for arm in arms],
    )


def _arms(by_kind: ByKind) -> list[str]:
    """Names of all arms, in the order of the kind that has most."""
    return max((list(results[0]["arms"]) for results in by_kind.values()), key=len)


def _mean(results: Sequence[Mapping[str, Any]], arm: str, figure: str = "ratio") -> float:
    return sum(float(r["arms"][arm][figure]) for r in results) / len(results)


def _evictions(results: Sequence[Mapping[str, Any]], arm: str) -> float:
    return _mean(results, arm, "evictions")


def _wasted(results: Sequence[Mapping[str, Any]], arm: str) -> float:
    return _mean(results, arm, "wasted_share")
