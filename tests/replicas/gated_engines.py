"""vLLM's scheduler loop with the projected-memory scheduler in it, and loads for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import strategies as st

from policies.forecast import Forecast
from replicas.kv_scheduler import ProjectedMemoryScheduler
from tests.replicas.vllm_scheduler import Engine, Job, Sizes, Step

MAX_EVICTIONS = 2


POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {"name": "fcfs"},
    "tie": {"name": "tie"},
    "a_min": {"name": "a_min"},
    "a_min, stored bounds": {"name": "a_min", "eviction_options": {"variant": "stored"}},
    "a_max": {"name": "a_max"},
    "tiebreak": {"name": "tiebreak"},
    "promote_l": {"name": "promote_l"},
}


def options(policy: str = "a_min", **others: Any) -> dict[str, Any]:
    return {"tiebreak": {**POLICIES[policy], "max_evictions": MAX_EVICTIONS, **others}}


def engine(
    sizes: Sizes | None = None, policy: str = "a_min", *, behind: int = 0, **others: Any
) -> Engine:
    return Engine(ProjectedMemoryScheduler, sizes, options(policy, **others), behind=behind)


def evictions(steps: list[Step]) -> Counter[str]:
    return Counter(i for step in steps for i in step.evicted)


@st.composite
def forecasts(draw: st.DrawFn) -> Forecast | None:
    """None: right; else anything from useless to absurd."""
    if draw(st.booleans()):
        return None
    lower = draw(st.integers(1, 60))
    upper = lower + draw(st.sampled_from([0, 1, 20, 100_000]))
    mu = draw(st.floats(-3, 12))
    return Forecast(mu, draw(st.sampled_from([0.0, 0.01, 0.5, 5.0])), lower, upper)


@st.composite
def workloads(draw: st.DrawFn, most: int = 8) -> tuple[Sizes, list[Job]]:
    """Requests, and a cache that holds between one of them and all."""
    block_size = draw(st.sampled_from([1, 4, 16]))
    shared = draw(st.sampled_from([0, 0, 9]))
    jobs = []
    for index in range(draw(st.integers(1, most))):
        outputs = draw(st.integers(1, 40))
        jobs.append(
            Job(
                f"r{index}",
                shared + draw(st.integers(1, 30)),
                outputs,
                outputs + draw(st.sampled_from([0, 1, 50, 100_000])),
                draw(forecasts()),
                key=draw(st.none() | st.integers(0, 5).map(float)),
                arrival_s=float(index),
                precedence=draw(st.integers(0, 1)),
                evictions=draw(st.sampled_from([0, 0, 0, 1, 5])),
                shared_tokens=shared,
            )
        )
    longest = max(job.prompt_tokens + job.output_tokens for job in jobs)
    blocks = -(-longest // block_size)
    kv_blocks = blocks + draw(st.integers(0, 3 * blocks))
    max_num_seqs = draw(st.integers(1, 8))
    sizes = Sizes(
        kv_blocks,
        block_size,
        max_num_seqs,
        draw(st.sampled_from([max_num_seqs, max_num_seqs + 7, 4096])),
        max_model_len=draw(st.integers(longest, kv_blocks * block_size)),
        prefix_caching=bool(shared) and draw(st.booleans()),
    )
    return sizes, jobs


def complete(job: Job, engine: Engine) -> None:
    assert len(engine.outputs[job.request_id]) == job.output_tokens, job
    assert engine.reasons[job.request_id] in ("stop", "length")
