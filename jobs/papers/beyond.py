"""Beyond both papers: which ordering, packing and eviction do best over a grid of workloads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cluster.virtual_replica import FleetSpec
from jobs.papers.alternatives import GittinsVolume, MedianVolume
from jobs.papers.arms import ARMS, PaperArm, figures, fixed_beta, run_arm
from jobs.papers.castillo import data_folder
from jobs.papers.markdown import percent, table
from jobs.papers.study import Cell, Result, Section, Study
from jobs.simulating.arrivals import AtOnceArrivals, GammaArrivals
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.comparison import measure_capacity
from jobs.simulating.forecasts import NoisyForecast
from jobs.simulating.lengths import Lengths, LognormalTokens, LogTLengths, TraceLengths
from jobs.simulating.traces import TraceFile
from jobs.simulating.workload import WorkloadSpec, build
from policies.bundle import policy
from policies.ordering import Ordering
from replicas.batch_limits import BatchLimits
from replicas.step_time import LinearStepTime

MAX_TOKENS = 2_048
TRACE = "Azure trace"
_TRACE_FILE = Path("traces") / "azure_llm_2023_conversation.csv"
_CAPACITY_REQUESTS = 2_000
_LEVEL = 0.01

WORKLOADS: Mapping[str, Lengths | None] = {
    "short prompts": LogTLengths(prompt=LognormalTokens(60, 45)),
    "long prompts": LogTLengths(prompt=LognormalTokens(1_100, 850)),
    TRACE: None,
    "Llama-3.1-8B": CastilloLengths("meta-llama/Llama-3.1-8B-Instruct"),
    "gemma-3-12b": CastilloLengths("google/gemma-3-12b-it"),
    "Mixtral-8x7B": CastilloLengths("mistralai/Mixtral-8x7B-Instruct-v0.1"),
}

FLEET = FleetSpec(
    replicas=1,
    limits=BatchLimits(
        kv_blocks=1_024, block_size=16, max_num_seqs=256, max_num_batched_tokens=2_048
    ),
    step_time=LinearStepTime(
        base_s=6e-3, per_prefill_token_s=30e-6, per_decode_token_s=20e-6, per_kv_token_s=40e-9
    ),
)


def _ordered(label: str, ordering: Ordering) -> PaperArm:
    return PaperArm(label, replace(policy("tiebreak"), ordering=ordering))


BEYOND: Mapping[str, PaperArm] = {
    "fcfs": ARMS["fcfs"],
    "tie": ARMS["tie"],
    "tie+a_min": ARMS["tie+a_min"],
    "tiebreak": ARMS["tiebreak"],
    "median": PaperArm(
        "tiebreak: 0.5 quantile, shortest lower bound evicted",
        policy("tiebreak", admission_options={"q": 0.5}, eviction="shortest_lower_bound"),
    ),
    "lower_bound": PaperArm(
        "tiebreak: shortest lower bound evicted",
        policy("tiebreak", eviction="shortest_lower_bound"),
    ),
    "sparse": PaperArm("tiebreak: 0.5 quantile", policy("tiebreak", admission_options={"q": 0.5})),
    "dense": PaperArm("tiebreak: 0.1 quantile", policy("tiebreak", admission_options={"q": 0.1})),
    "backfill": PaperArm("tiebreak: backfill 8", policy("tiebreak", backfill=8)),
    "no_tail": PaperArm(
        "tiebreak: no tail term", policy("tiebreak", ordering_options=fixed_beta(0.0))
    ),
    "length": PaperArm("tiebreak: by expected length", policy("tiebreak", ordering="sept")),
    "median_volume": _ordered("tiebreak: by the median's volume", MedianVolume()),
    "gittins": _ordered("tiebreak: Gittins index of the volume", GittinsVolume()),
    "length_oracle": PaperArm(
        "tiebreak: by true length",
        policy("tiebreak", ordering="oracle", ordering_options={"gamma": 1.0}),
    ),
    "h_sf": ARMS["h_sf"],
    "oracle_volume": ARMS["oracle_volume"],
}


def study(
    *,
    requests: int = 1_200,
    seeds: int = 2,
    loads: tuple[float, ...] = (2.0, 4.0),
    accuracies: tuple[float, ...] = (0.4, 0.8),
) -> Study:
    """The study.

    Args:
        requests: Of each run.
        seeds: Workloads of each kind.
        loads: Multiples of the capacity.
        accuracies: R2 of the forecast's mu.
    """
    return Study(
        name="beyond",
        title="Beyond both papers",
        cells=[
            {
                "workload": workload,
                "requests": requests,
                "load": load,
                "r2": r2,
                "seed": seed,
                "arms": list(BEYOND),
            }
            for workload in WORKLOADS
            for load in loads
            for r2 in accuracies
            for seed in range(seeds)
        ]
        if data_folder()
        else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def measure(cell: Cell) -> Result:
    """All arms on the same requests."""
    workload = WorkloadSpec(
        requests=cell["requests"],
        lengths=lengths_of(cell["workload"]),
        arrivals=GammaArrivals(cell["load"] * capacity_per_s(cell["workload"], cell["seed"])),
        max_tokens=MAX_TOKENS,
        seed=cell["seed"],
    )
    noisy = NoisyForecast(r2_mu=cell["r2"])
    arms = {
        name: replace(arm, forecast=noisy) if isinstance(arm.forecast, NoisyForecast) else arm
        for name, arm in BEYOND.items()
        if name in cell["arms"]
    }
    return {"arms": {name: figures(run_arm(arm, workload, FLEET)) for name, arm in arms.items()}}


def lengths_of(workload: str) -> Lengths:
    """The lengths of one of `WORKLOADS`."""
    lengths = WORKLOADS[workload]
    if lengths is not None:
        return lengths
    castillo = data_folder()
    assert castillo is not None, "the study has no cells without data"
    return TraceLengths(TraceFile(str(castillo.parent / _TRACE_FILE)))


@lru_cache(maxsize=32)
def capacity_per_s(workload: str, seed: int) -> float:
    """Requests per second that finish when all wait at once (see `measure_capacity`)."""
    spec = WorkloadSpec(
        requests=_CAPACITY_REQUESTS,
        lengths=lengths_of(workload),
        arrivals=AtOnceArrivals(),
        max_tokens=MAX_TOKENS,
        seed=seed,
    )
    return measure_capacity(build(spec), FLEET).rate_per_s


def write(pairs: Sequence[tuple[Cell, Result]]) -> Section:
    """The section."""
    cell = pairs[0][0]
    seeds = len({c["seed"] for c, _ in pairs})
    limits = FLEET.limits
    text = f"""\
`python -m jobs.papers --study beyond`, seeds 0 to {seeds - 1}. One replica with
{limits.kv_tokens:,} KV tokens and
{limits.max_num_seqs} slots, declared step times ({FLEET.step_time}); {cell["requests"]:,} requests
per run, max_tokens {MAX_TOKENS:,}. Every arm runs with the same settings on every workload: short
and long prompts with log-t lengths, the Azure conversation trace, and the answers of three models
of CASTILLO; loads {_listed(pairs, "load")}; forecasts with R2 {_listed(pairs, "r2")} of mu (of the
logarithm of the length itself for the trace, which has no distributions). *tiebreak* orders by the
tail-inflated KV volume to come, packs by the 0.2 quantile of each length given the tokens so far,
and evicts the longest median remaining length; the arms below it change one thing.

Over those of H-SF, geometric mean over the {len(pairs) // seeds} cells; *worst* is the cell in
which an arm does worst:

{_arms_table(pairs)}

Mean latency of tiebreak over that of H-SF, and of tiebreak over the order by true length with the
same packing:

{_cells_table(pairs)}

{_reading(pairs)}"""
    return Section(text)


def _arms_table(pairs: Sequence[tuple[Cell, Result]]) -> str:
    rows = []
    for name in pairs[0][0]["arms"]:
        ratios = list(_ratios(pairs, name, "h_sf", "latency_mean_s"))
        rows.append(
            [
                BEYOND[name].label,
                f"{_geometric(ratios):.3f}",
                f"{max(ratios):.2f}",
                f"{_geometric(_ratios(pairs, name, 'h_sf', 'per_token_mean_s')):.3f}",
                f"{_geometric(_ratios(pairs, name, 'h_sf', 'latency_p99_s')):.3f}",
                f"{_geometric(_ratios(pairs, name, 'h_sf', 'makespan_s')):.3f}",
                percent(sum(r["arms"][name]["recomputed_share"] for _, r in pairs) / len(pairs)),
            ]
        )
    head = ("arm", "latency", "worst", "s/token", "p99 latency", "makespan", "recomputed")
    return table(head, rows)


def _cells_table(pairs: Sequence[tuple[Cell, Result]]) -> str:
    settings = list(dict.fromkeys((c["load"], c["r2"]) for c, _ in pairs))
    rows = []
    for workload in dict.fromkeys(c["workload"] for c, _ in pairs):
        row = [workload]
        for setting in settings:
            own = [
                (c, r)
                for c, r in pairs
                if (c["workload"], c["load"], c["r2"]) == (workload, *setting)
            ]
            over = [
                _geometric(_ratios(own, "tiebreak", other, "latency_mean_s"))
                for other in ("h_sf", "length_oracle")
            ]
            row.append(" / ".join(f"{ratio:.2f}" for ratio in over))
        rows.append(row)
    return table(("workload", *(f"load {load:g}, R2 {r2:g}" for load, r2 in settings)), rows)


def _reading(pairs: Sequence[tuple[Cell, Result]]) -> str:
    means = {
        name: _geometric(_ratios(pairs, name, "h_sf", "latency_mean_s"))
        for name in pairs[0][0]["arms"]
    }
    own = means["tiebreak"]
    prefix = "tiebreak: "
    variants = {
        BEYOND[name].label.removeprefix(prefix): mean / own - 1
        for name, mean in means.items()
        if BEYOND[name].label.startswith(prefix) and name != "length_oracle"
    }
    lost = sorted((by, label) for label, by in variants.items() if by >= _LEVEL)
    level = [label for label, by in variants.items() if -_LEVEL < by < _LEVEL]
    better = [f"{label} ({by:+.1%})" for label, by in variants.items() if by <= -_LEVEL]
    per_token = _geometric(_ratios(pairs, "fcfs", "tiebreak", "per_token_mean_s"))
    return f"""\
tiebreak takes {1 - own / means["tie"]:.0%} off TIE's mean latency and
{1 - own / means["tie+a_min"]:.0%} off that of TIE + A_min, and FCFS has {per_token:.1f} times its
per-token latency (geometric means). Changes that made its latency worse:
{"; ".join(f"{label} ({by:+.1%})" for by, label in reversed(lost)) or "none"}. Within
{_LEVEL:.0%}: {", ".join(level) or "none"}. Better: {", ".join(better) or "none"}. Hindsight by KV
volume is at {means["oracle_volume"] / own:.2f} times its latency: what better forecasts could still
bring. Tried as well, and not kept in the code: evicting running requests for a waiting one that is
several times smaller made latency worse at every threshold, because each displacement computes the
victim's KV again."""


def _ratios(
    pairs: Sequence[tuple[Cell, Result]], arm: str, over: str, figure: str
) -> Iterator[float]:
    for _, result in pairs:
        yield result["arms"][arm][figure] / result["arms"][over][figure]


def _geometric(values: Iterator[float] | Sequence[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _listed(pairs: Sequence[tuple[Cell, Result]], name: str) -> str:
    return " and ".join(f"{value:g}" for value in dict.fromkeys(c[name] for c, _ in pairs))
