"""The scheduler inside vLLM and the simulated engine take the same decisions at the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM")

from policies.forecast import Forecast
from policies.gate_options import gate_of
from policies.ledger import Replica
from policies.request import Request
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.kv_scheduler import ProjectedMemoryScheduler
from replicas.protocol import EngineTerms
from replicas.step_time import LinearStepTime
from tests.replicas.vllm_scheduler import Engine, Job, Sizes

POLICIES: list[dict[str, Any]] = [
    {"name": "fcfs"},
    {"name": "tie"},
    {"name": "a_min"},
    {"name": "a_min", "eviction_options": {"variant": "stored"}},
    {"name": "a_max"},
    {"name": "tie+a_min"},
    {"name": "promote_l"},
    {"name": "tiebreak"},
    {"name": "tiebreak", "horizon": "all", "max_evictions": 1},
]


@dataclass(frozen=True)
class Changes:
    """What happened in one step, each in no order."""

    started: frozenset[str]
    evicted: frozenset[str]
    finished: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.started or self.evicted or self.finished)


Arrivals = Sequence[tuple[int, Job]]
"""Steps before which jobs come, ascending, and the jobs."""


def in_vllm(sizes: Sizes, options: dict[str, Any], arrivals: Arrivals) -> list[Changes]:
    """What vLLM does in each step, under our scheduler."""
    engine = Engine(ProjectedMemoryScheduler, sizes, {"tiebreak": options})
    coming = list(arrivals)
    while coming or engine.scheduler.has_unfinished_requests():
        while coming and coming[0][0] <= len(engine.steps):
            engine.add(coming.pop(0)[1])
        engine.step()
    return [
        Changes(frozenset(s.started), frozenset(s.evicted), frozenset(s.finished))
        for s in engine.steps
    ]


def in_simulation(sizes: Sizes, options: dict[str, Any], arrivals: Arrivals) -> list[Changes]:
    """What the simulated engine's batch does in each step."""
    replica = Replica(
        "engine", sizes.kv_blocks, sizes.block_size, sizes.max_num_seqs, sizes.max_model_len
    )
    limits = BatchLimits(
        sizes.kv_blocks, sizes.block_size, sizes.max_num_seqs, sizes.max_num_batched_tokens
    )
    step_time = LinearStepTime(1.0, 0.0, 0.0, 0.0)
    batch = ContinuousBatch(limits, step_time, gate=gate_of(options, replica))
    coming, steps, now = list(arrivals), [], 0.0
    while coming or batch.has_work:
        while coming and coming[0][0] <= len(steps):
            add(batch, coming.pop(0)[1])
        before = set(batch.held_blocks())
        result = batch.step(now)
        now = max(now, result.stretch.ends_s)
        evicted = frozenset(e.request_id for e in result.evicted)
        finished = frozenset(result.stretch.finished)
        held = finished.union(batch.held_blocks())
        steps.append(Changes(frozenset(held - (before - evicted)), evicted, finished))
    return steps


def add(batch: ContinuousBatch, job: Job) -> None:
    known, earlier = job.known, job.generated_tokens
    batch.add(
        job.request_id,
        job.prompt_tokens,
        job.output_tokens,
        request=Request(
            job.request_id,
            job.prompt_tokens - earlier,
            job.cap + earlier,
            arrival_s=job.arrival_s,
            generated_tokens=earlier,
        ),
        forecast=known,
        terms=EngineTerms(
            mu=known.mu,
            sigma=known.sigma,
            lower=known.lower,
            upper=known.upper,
            key=job.rank[1],
            arrival_s=job.arrival_s,
            precedence=job.precedence,
            evictions=job.evictions,
        ),
    )


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Sizes, list[tuple[int, Job]]]:
    block_size = draw(st.sampled_from([1, 4, 16]))
    arrivals: list[tuple[int, Job]] = []
    step = 0
    for index in range(draw(st.integers(1, 8))):
        step += draw(st.integers(0, 6))
        earlier = draw(st.sampled_from([0, 0, 5]))
        outputs = draw(st.integers(1, 40))
        lower = draw(st.integers(1, 60))
        wrong = Forecast(
            draw(st.floats(0, 5)),
            draw(st.sampled_from([0.0, 0.3, 2.0])),
            lower,
            lower + draw(st.sampled_from([0, 1, 40])),
        )
        job = Job(
            f"r{index}",
            earlier + draw(st.integers(1, 30)),
            outputs,
            outputs + draw(st.integers(0, 20)),
            draw(st.none() | st.just(wrong.at_least(earlier))),
            key=draw(st.none() | st.integers(0, 3).map(float)),
            arrival_s=float(step),
            precedence=draw(st.integers(0, 1)),
            evictions=draw(st.sampled_from([0, 0, 0, 2, 5])),
            generated_tokens=earlier,
        )
        arrivals.append((step, job))
    longest = max(job.prompt_tokens + job.cap for _, job in arrivals)
    blocks = -(-longest // block_size)
    max_num_seqs = draw(st.integers(1, 6))
    sizes = Sizes(
        blocks + draw(st.integers(0, 2 * blocks)),
        block_size,
        max_num_seqs,
        max_num_seqs + draw(st.sampled_from([0, 5, 4096])),
        max_model_len=blocks * block_size,
    )
    return sizes, arrivals


@pytest.mark.parametrize("options", POLICIES, ids=str)
@given(workload=workloads())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_vllm_and_the_simulation_decide_alike(
    options: dict[str, Any], workload: tuple[Sizes, list[tuple[int, Job]]]
) -> None:
    sizes, arrivals = workload
    assert in_simulation(sizes, options, arrivals) == in_vllm(sizes, options, arrivals)


def trace(seed: int, count: int) -> list[tuple[int, Job]]:
    """Requests of log-t lengths with their forecasts, a few of which come in each step."""
    rng = np.random.default_rng(seed)
    arrivals = []
    step = 0
    for index in range(count):
        step += int(rng.geometric(0.4)) - 1
        mu, sigma = float(rng.normal(3.4, 0.7)), float(rng.uniform(0.2, 0.6))
        lower, upper = (max(1, int(np.exp(mu + z * sigma))) for z in (-2, 2))
        output = int(np.exp(mu + sigma * rng.standard_t(3.5)).clip(1, 250))
        job = Job(
            f"r{index}",
            int(rng.integers(1, 120)),
            output,
            256,
            Forecast(mu, sigma, lower, upper),
            arrival_s=float(step),
            precedence=int(rng.integers(0, 2)),
        )
        arrivals.append((step, job))
    return arrivals


@pytest.mark.parametrize("options", POLICIES, ids=str)
def test_a_long_trace_under_pressure_is_decided_alike(options: dict[str, Any]) -> None:
    sizes = Sizes(60, 8, 12, 128, max_model_len=480)
    arrivals = trace(seed=7, count=120)
    simulated = in_simulation(sizes, options, arrivals)
    assert simulated == in_vllm(sizes, options, arrivals)
    assert sum(len(step.finished) for step in simulated) == len(arrivals)
    cautious = options["name"] == "a_max"
    assert cautious or any(step.evicted for step in simulated), "too much memory to be a test"
