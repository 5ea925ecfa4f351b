"""One knob at a time: what each setting of the policies does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.papers.arms import ARMS, NOISY, PaperArm, figures, fixed_beta, run_arm
from jobs.papers.castillo import model_names
from jobs.papers.fleets import REGIMES, fleet_of, step_time_sentence, step_time_source
from jobs.papers.markdown import percent, spread, table
from jobs.papers.study import Cell, Result, Section, Study
from jobs.papers.tie_online import MAX_TOKENS, capacity_per_s
from jobs.simulating.arrivals import GammaArrivals
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.lengths import Lengths, LogTLengths
from jobs.simulating.workload import WorkloadSpec
from policies.bundle import policy


@dataclass(frozen=True, slots=True)
class Ablation:
    """One knob.

    Attributes:
        title: What it is.
        regime: One of `REGIMES`.
        arms: Its settings, the first being the reference.
    """

    title: str
    regime: str
    arms: tuple[PaperArm, ...]


def _tie(label: str, **options: float) -> PaperArm:
    return PaperArm(label, policy("tie", ordering_options=options))


def _tiebreak(label: str, **options: float) -> PaperArm:
    return PaperArm(label, policy("tiebreak", admission_options=options))


def _a_min(label: str, overdue: str, variant: str) -> PaperArm:
    made = policy(
        "tie+a_min",
        admission_options={"overdue": overdue},
        eviction_options={"variant": variant},
    )
    return PaperArm(label, made)


_UNWIDENED = replace(NOISY, widened=False)

ABLATIONS: Mapping[str, Ablation] = {
    "beta": Ablation(
        "Weight of the tail (TIE's beta)",
        "slots",
        (
            _tie("adaptive, 0.1 to 0.5"),
            _tie("0", **fixed_beta(0.0)),
            _tie("0.1", **fixed_beta(0.1)),
            _tie("0.5", **fixed_beta(0.5)),
            _tie("2", **fixed_beta(2.0)),
        ),
    ),
    "alpha": Ablation(
        "Level of the tail (TIE's alpha)",
        "slots",
        (_tie("0.9"), _tie("0.5", alpha=0.5), _tie("0.99", alpha=0.99)),
    ),
    "tail": Ablation(
        "Family of the forecast",
        "slots",
        (
            ARMS["tie"],
            ARMS["tie_log_normal"],
            PaperArm("TIE, scale without the predictor's error", policy("tie"), _UNWIDENED),
        ),
    ),
    "gamma": Ablation(
        "Ageing (gamma per 30 s)",
        "slots",
        (_tie("0.9"), _tie("none", gamma=1.0), _tie("0.5", gamma=0.5), _tie("0.1", gamma=0.1)),
    ),
    "a_min": Ablation(
        "A_min: overdue requests and eviction order",
        "memory",
        (
            _a_min("alive, realtime", "alive", "realtime"),
            _a_min("double, realtime", "double", "realtime"),
            _a_min("alive, stored", "alive", "stored"),
            _a_min("double, stored", "double", "stored"),
        ),
    ),
    "quantile": Ablation(
        "tiebreak: quantile that the projection assumes",
        "memory",
        tuple(_tiebreak(f"{q}", q=q) for q in (0.2, 0.1, 0.3, 0.4, 0.5, 0.7)),
    ),
    "eviction": Ablation(
        "tiebreak: who gives up memory",
        "memory",
        tuple(
            PaperArm(label, policy("tiebreak", eviction=name))
            for label, name in (
                ("longest remaining", "longest_remaining"),
                ("shortest lower bound", "shortest_lower_bound"),
                ("latest", "latest"),
            )
        ),
    ),
    "horizon": Ablation(
        "tiebreak: steps over which the projection must fit",
        "memory",
        tuple(PaperArm(h, policy("tiebreak", horizon=h)) for h in ("own", "all")),
    ),
    "backfill": Ablation(
        "tiebreak: requests that may overtake a head that fits nowhere",
        "memory",
        tuple(PaperArm(f"{n}", policy("tiebreak", backfill=n)) for n in (0, 4, 16)),
    ),
    "parts": Ablation(
        "tiebreak: its ordering and its admission apart",
        "memory",
        (
            ARMS["tiebreak"],
            PaperArm("order by volume, greedy admission", policy("tie", ordering="kv_volume")),
            PaperArm("order by TIE, its own admission", policy("tiebreak", ordering="tie")),
        ),
    ),
}

_NOTHING = 0.02
_SCATTER = (0.12, 0.3, 0.6)
_SCATTER_ARMS = ("sjf", "sept", "tie", "tie_log_normal")
_SCATTER_LABELS = {arm: ARMS[arm].label for arm in _SCATTER_ARMS}


def study(*, requests: int = 1_500, seeds: int = 2, load: float = 2.0) -> Study:
    """The study: one replica at one load.

    Args:
        requests: Of each run.
        seeds: Workloads of each setting.
        load: Multiple of the capacity.
    """
    shared = {"requests": requests, "load": load, "step_time": step_time_source()}
    cells: list[Cell] = [
        {"knob": name, "settings": [arm.label for arm in a.arms], "seed": seed, **shared}
        for name, a in ABLATIONS.items()
        for seed in range(seeds)
    ]
    cells += [
        {"knob": "scatter", "sigma_median": sigma, "seed": seed, **shared}
        for sigma in _SCATTER
        for seed in range(seeds)
    ]
    return Study(
        name="ablations",
        title="One knob at a time",
        cells=cells if model_names() else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def measure(cell: Cell) -> Result:
    """All settings of one knob on the same requests."""
    if cell["knob"] == "scatter":
        lengths: Lengths = LogTLengths(sigma_median=cell["sigma_median"])
        regime, arms = "slots", tuple(ARMS[name] for name in _SCATTER_ARMS)
    else:
        ablation = ABLATIONS[cell["knob"]]
        lengths, regime, arms = CastilloLengths(), ablation.regime, ablation.arms
    capacity = capacity_per_s(regime, 1, cell["seed"], cell["step_time"])
    workload = WorkloadSpec(
        requests=cell["requests"],
        lengths=lengths,
        arrivals=GammaArrivals(cell["load"] * capacity),
        max_tokens=MAX_TOKENS,
        seed=cell["seed"],
    )
    fleet = fleet_of(regime, 1, cell["step_time"])
    return {"arms": {arm.label: figures(run_arm(arm, workload, fleet)) for arm in arms}}


def write(pairs: Sequence[tuple[Cell, Result]]) -> Section:
    """The section."""
    cell = pairs[0][0]
    seeds = len({c["seed"] for c, _ in pairs})
    by_knob: dict[str, list[Result]] = {}
    for c, r in pairs:
        if c["knob"] != "scatter":
            by_knob.setdefault(c["knob"], []).append(r)
    parts = [
        f"""\
`python -m jobs.papers --study ablations`, seeds 0 to {seeds - 1}; one replica at load
{cell["load"]:g},
{cell["requests"]:,} requests per run, otherwise as under load above. The first line of each table
is the
default. {step_time_sentence(cell["step_time"])}"""
    ]
    for knob, results in by_knob.items():
        ablation = ABLATIONS[knob]
        parts += [f"### {ablation.title} ({REGIMES[ablation.regime].label})", _table(results)]
    parts += ["### Scatter of answers to one prompt (slots bind)", _scatter(pairs)]
    parts.append(_reading(by_knob))
    return Section("\n\n".join(parts))


def _table(results: Sequence[Result]) -> str:
    rows = []
    for label in results[0]["arms"]:
        runs = [r["arms"][label] for r in results]
        rows.append(
            [
                label,
                spread([x["per_token_mean_s"] for x in runs], 3),
                f"{_mean(runs, 'per_token_p90_s'):.3f}",
                f"{_mean(runs, 'latency_mean_s'):.1f}",
                f"{_mean(runs, 'latency_p99_s'):.0f}",
                f"{_mean(runs, 'evictions'):,.0f}",
                percent(_mean(runs, "recomputed_share")),
            ]
        )
    head = (
        "setting",
        "s/token, mean",
        "p90",
        "latency, s",
        "p99",
        "evictions",
        "recomputed",
    )
    return table(head, rows)


def _scatter(pairs: Sequence[tuple[Cell, Result]]) -> str:
    by_sigma: dict[float, list[Result]] = {}
    for c, r in pairs:
        if c["knob"] == "scatter":
            by_sigma.setdefault(c["sigma_median"], []).append(r)
    rows = []
    for sigma, results in by_sigma.items():
        ratios = []
        for arm in _SCATTER_ARMS:
            own = _mean([r["arms"][_SCATTER_LABELS[arm]] for r in results], "per_token_mean_s")
            tie = _mean([r["arms"][_SCATTER_LABELS["tie"]] for r in results], "per_token_mean_s")
            ratios.append(f"{own / tie:.3f}")
        rows.append([f"{sigma:g}", *ratios])
    head = ("median sigma", *(_SCATTER_LABELS[a] for a in _SCATTER_ARMS))
    return f"""\
Lengths drawn from a log-t per request, mu normal over the requests, ln sigma normal about the
median below;
{_SCATTER[0]:g} is what CASTILLO has. Arrivals as above, so that longer answers are more load. Mean
per-token latency over that of TIE:

{table(head, rows)}

A number below 1 is faster than TIE. At the widest scatter tried the order by the median is at
{rows[-1][1]} and the order by the mean at {rows[-1][2]}."""


def _reading(by_knob: Mapping[str, Sequence[Result]]) -> str:
    sentences = []
    for knob, results in by_knob.items():
        labels = list(results[0]["arms"])
        means = {
            label: _mean([r["arms"][label] for r in results], "per_token_mean_s")
            for label in labels
        }
        best, worst = min(means, key=lambda n: means[n]), max(means, key=lambda n: means[n])
        apart = means[worst] / means[best] - 1
        if apart < _NOTHING:
            sentences.append(f"*{ABLATIONS[knob].title}*: no difference of {_NOTHING:.0%} or more.")
            continue
        sentences.append(
            f"*{ABLATIONS[knob].title}*: best is {best}, worst {worst}, {apart:.0%} apart; the "
            f"default is {means[labels[0]] / means[best] - 1:.0%} above the best."
        )
    return "By mean per-token latency. " + " ".join(sentences)


def _mean(runs: Sequence[Mapping[str, float]], figure: str) -> float:
    return sum(run[figure] for run in runs) / len(runs)
