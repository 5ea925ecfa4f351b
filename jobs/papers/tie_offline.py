"""A batch that is there from the start: when is enough of it done (arXiv:2604.00499, section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.papers.arms import ARMS, figures, run_arm
from jobs.papers.castillo import model_names
from jobs.papers.fleets import REGIMES, fleet_of, step_time_sentence, step_time_source
from jobs.papers.markdown import percent, table
from jobs.papers.study import Cell, Result, Section, Study
from jobs.papers.tie_online import MAX_TOKENS
from jobs.simulating.arrivals import AtOnceArrivals
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.workload import WorkloadSpec

PUBLISHED_S: Mapping[str, float] = {"fcfs": 229.0, "ltr": 139.5, "tie": 98.0}
"""Seconds until 3,000 of 10,000 Alpaca prompts were answered (arXiv:2604.00499)."""

_MEMORY_ARMS = ("fcfs", "ltr", "sjf", "tie", "tie+a_min", "tiebreak", "h_sf", "oracle_volume")


def study(
    *, requests: int = 10_000, until: int = 3_000, memory_requests: int = 3_000, seed: int = 0
) -> Study:
    """The study; where memory binds both numbers are smaller, in proportion.

    Args:
        requests: That wait at the start.
        until: Finished requests whose time is asked.
        memory_requests: That wait at the start where memory binds.
        seed: Of the requests.
    """
    sizes = {
        "slots": (requests, until),
        "memory": (memory_requests, memory_requests * until // requests),
    }
    arms = {"slots": tuple(ARMS), "memory": _MEMORY_ARMS}
    cells: list[Cell] = [
        {
            "regime": regime,
            "requests": count,
            "until": wanted,
            "arm": arm,
            "seed": seed,
            "step_time": step_time_source(),
        }
        for regime, (count, wanted) in sizes.items()
        for arm in arms[regime]
    ]
    return Study(
        name="tie_offline",
        title="Who goes next, in a batch",
        cells=cells if model_names() else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def measure(cell: Cell) -> Result:
    """One arm on the batch."""
    workload = WorkloadSpec(
        requests=cell["requests"],
        lengths=CastilloLengths(),
        arrivals=AtOnceArrivals(),
        max_tokens=MAX_TOKENS,
        seed=cell["seed"],
    )
    fleet = fleet_of(cell["regime"], 1, cell["step_time"])
    return figures(run_arm(ARMS[cell["arm"]], workload, fleet, until=cell["until"]))


def write(pairs: Sequence[tuple[Cell, Result]]) -> Section:
    """The section."""
    first = pairs[0][0]
    regimes: dict[str, dict[str, Result]] = {}
    sizes: dict[str, Cell] = {}
    for cell, result in pairs:
        regimes.setdefault(cell["regime"], {})[cell["arm"]] = result
        sizes[cell["regime"]] = cell
    parts = [
        f"""\
`python -m jobs.papers --study tie_offline`, seed {first["seed"]}. Requests as above, all there at
the
start, on one replica, and the time until the first part of them has finished: a job that wants
enough samples, not particular ones. {step_time_sentence(first["step_time"])}"""
    ]
    for regime, results in regimes.items():
        cell = sizes[regime]
        parts.append(
            f"### {REGIMES[regime].label.capitalize()}: {cell['until']:,} of {cell['requests']:,}"
        )
        parts.append(_table(results, cell["until"]))
    parts.append(_reading(regimes))
    return Section("\n\n".join(parts))


def _table(results: Mapping[str, Result], until: int) -> str:
    rows = [
        [
            ARMS[arm].label,
            f"{r['until_s']:.1f}",
            f"{results['fcfs']['until_s'] / r['until_s']:.2f}",
            f"{PUBLISHED_S['fcfs'] / PUBLISHED_S[arm]:.2f}" if arm in PUBLISHED_S else "",
            f"{r['makespan_s']:.1f}",
            f"{r['evictions']:,}",
            percent(r["recomputed_share"], 0),
        ]
        for arm, r in results.items()
    ]
    head = (
        "arm",
        f"s until {until:,}",
        "times faster than FCFS",
        "paper",
        "s until all",
        "evictions",
        "recomputed",
    )
    return table(head, rows)


def _reading(regimes: Mapping[str, Mapping[str, Result]]) -> str:
    slots, memory = regimes["slots"], regimes["memory"]
    gain = slots["fcfs"]["until_s"] / slots["tie"]["until_s"]
    over_ltr = slots["ltr"]["until_s"] / slots["tie"]["until_s"]
    published = PUBLISHED_S["fcfs"] / PUBLISHED_S["tie"]
    order = "more" if gain >= published else "less"
    slowest = {name: _slowest(results) for name, results in regimes.items()}
    longest = {
        name: results[slowest[name]]["makespan_s"] / results["fcfs"]["makespan_s"]
        for name, results in regimes.items()
    }
    return f"""\
With forecasts of the published accuracy TIE has the wanted part {gain:.2f} times sooner than FCFS,
{order} than
the paper's {published:.2f}; against the ranking with tau 0.64 the factor is {over_ltr:.2f} (paper:
{PUBLISHED_S["ltr"] / PUBLISHED_S["tie"]:.2f}), with the reservation made above about unequal
knowledge.
SJF by
the same forecasts needs {slots["sjf"]["until_s"] / slots["tie"]["until_s"]:.2f} times the time of
TIE,
SEPT {slots["sept"]["until_s"] / slots["tie"]["until_s"]:.2f} times. Where memory binds, tiebreak
needs
{memory["tiebreak"]["until_s"] / memory["tie"]["until_s"]:.2f} times the time of TIE and TIE + A_min
{memory["tie+a_min"]["until_s"] / memory["tie"]["until_s"]:.2f} times. The whole
batch takes at most {longest["slots"]:.2f} times as long as under FCFS where slots bind
({ARMS[slowest["slots"]].label}) and {longest["memory"]:.2f} times where memory binds
({ARMS[slowest["memory"]].label})."""


def _slowest(results: Mapping[str, Result]) -> str:
    """The arm that finishes the whole batch last."""
    return max(results, key=lambda arm: float(results[arm]["makespan_s"]))
