"""A_max and A_min against hindsight under five kinds of intervals (arXiv:2508.14544, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.papers.a_min_section import write
from jobs.papers.study import Cell, Result, Study
from jobs.simulating.instance import InstanceOptions, run_instance
from jobs.simulating.instance_file import Instance, InstanceRequest
from jobs.simulating.intervals import (
    BinInterval,
    CommonInterval,
    Interval,
    RelativeInterval,
)
from jobs.simulating.lengths import LognormalLengths
from jobs.simulating.truth import Truth
from policies.batch import Ints

LONGEST_TOKENS = 1_000
"""Upper end of the common interval, and so the longest output."""

INTERVALS: dict[str, Interval] = {
    "common [1, 1000]": CommonInterval(LONGEST_TOKENS),
    "bins of 100": BinInterval(100),
    "o ± 10 %": RelativeInterval(0.1),
    "o ± 95 %": RelativeInterval(0.95),
    "o ± 99 %": RelativeInterval(0.99),
}
"""Intervals of output lengths o."""

ARMS: dict[str, InstanceOptions] = {
    "H-SF": InstanceOptions("h_sf"),
    "A_max": InstanceOptions("a_max"),
    "A_min realtime": InstanceOptions("a_min"),
    "A_min stored": InstanceOptions("a_min", eviction_key="stored"),
    "A_min realtime, double": InstanceOptions("a_min", overdue="double"),
    "A_min stored, double": InstanceOptions("a_min", eviction_key="stored", overdue="double"),
}
TWO_POINT = "two-point {20, 400}"
_TWO_POINT_TOKENS = (20, 400)
_TWO_POINT_ARMS = {**ARMS, "Promote-l": InstanceOptions("promote_l")}


def study(*, requests: int = 2_000, memory_tokens: int = 16_492, seeds: int = 5) -> Study:
    """The study.

    Args:
        requests: Of each instance; all arrive at once.
        memory_tokens: KV budget of the one worker.
        seeds: Instances of each kind.
    """
    return Study(
        name="a_min",
        title="Intervals: A_max, A_min and hindsight",
        cells=[
            {
                "intervals": kind,
                "requests": requests,
                "memory_tokens": memory_tokens,
                "seed": seed,
            }
            for kind in (*INTERVALS, TWO_POINT)
            for seed in range(seeds)
        ],
        measure=measure,
        write=write,
    )


def measure(cell: Cell) -> Result:
    """All arms on one instance."""
    instance = make_instance(cell)
    arms = _TWO_POINT_ARMS if cell["intervals"] == TWO_POINT else ARMS
    useful = sum(r.output_tokens for r in instance.requests)
    result: Result = {
        "mean_prompt_tokens": float(np.mean([r.prompt_tokens for r in instance.requests])),
        "mean_output_tokens": useful / len(instance.requests),
        "median_output_tokens": float(np.median([r.output_tokens for r in instance.requests])),
    }
    outcomes = {name: run_instance(instance, options) for name, options in arms.items()}
    result["arms"] = {
        name: {
            "ratio": outcome.total_latency / outcomes["H-SF"].total_latency,
            "evictions": outcome.evictions,
            "wasted_share": outcome.wasted_tokens / useful,
        }
        for name, outcome in outcomes.items()
    }
    return result


def make_instance(cell: Cell) -> Instance:
    """The instance of a cell: log-normal prompts and outputs, all at once.

    Two-point outputs are the short length with probability 0.8.
    """
    rng = np.random.default_rng(cell["seed"])
    drawn = LognormalLengths().draw(0, cell["requests"], rng)
    prompts = np.minimum(drawn.prompt_tokens, LONGEST_TOKENS)
    outputs = np.minimum(drawn.output_tokens, LONGEST_TOKENS)
    if cell["intervals"] == TWO_POINT:
        outputs = rng.choice(_TWO_POINT_TOKENS, cell["requests"], p=(0.8, 0.2)).astype(np.int64)
        lower, upper = (np.full_like(outputs, end) for end in _TWO_POINT_TOKENS)
    else:
        fits = cell["memory_tokens"] - prompts
        truth = Truth(prompts, fits, outputs, None, None)
        lower, upper = INTERVALS[cell["intervals"]].bounds(truth, *truth.target())
    return Instance(cell["memory_tokens"], _requests(prompts, outputs, lower, upper))


def _requests(
    prompts: Ints, outputs: Ints, lower: Ints, upper: Ints
) -> tuple[InstanceRequest, ...]:
    columns: Sequence[Ints] = (prompts, outputs, lower, upper)
    return tuple(
        InstanceRequest(s, o, low, high, arrival=0, predicted=o)
        for s, o, low, high in zip(*(c.tolist() for c in columns), strict=True)
    )
