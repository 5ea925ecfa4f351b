"""What the projected-memory scheduler admits and evicts, by the memory that there is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM")
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from policies.forecast import Forecast
from tests.replicas.gated_engines import POLICIES, complete, engine, evictions, workloads
from tests.replicas.vllm_scheduler import Job, Sizes


def test_one_request_that_fills_the_whole_cache_runs() -> None:
    sizes = Sizes(kv_blocks=10, block_size=4, max_model_len=40)
    for behind in (0, 1):
        for policy in POLICIES:
            gated = engine(sizes, policy, behind=behind)
            jobs = [Job("a", 8, 32), Job("b", 30, 10, arrival_s=1.0)]
            steps = gated.run(jobs)
            for job in jobs:
                complete(job, gated)
            assert not evictions(steps)


@given(workload=workloads(), behind=st.integers(0, 1))
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_exact_forecasts_evict_nobody(workload: tuple[Sizes, list[Job]], behind: int) -> None:
    """Invariant I2, where a prompt is prefilled in one step: chunks of it take steps of their own,
    which the projection does not know.
    """
    sizes, jobs = workload
    sizes = replace(sizes, max_num_batched_tokens=4096)
    exact = [replace(job, forecast=None) for job in jobs]
    assert not evictions(engine(sizes, behind=behind).run(exact))


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("cap", [None, 90])
def test_exact_forecasts_evict_nobody_whatever_the_memory(behind: int, cap: int | None) -> None:
    """One step behind, `large` holds its memory in a step in which `long` grows once more."""
    for kv_blocks in range(24, 60):
        sizes = Sizes(kv_blocks, block_size=1)
        exact = Forecast.exact
        steps = engine(sizes, behind=behind).run(
            [
                Job("large", 20, 3, cap, exact(3)),
                Job("long", 1, 10, cap, exact(10), arrival_s=1.0),
                Job("longer", 2, 20, cap, exact(20), arrival_s=2.0),
            ]
        )
        assert not evictions(steps), kv_blocks


def test_what_an_eviction_taught_counts_in_the_order_and_in_the_projection() -> None:
    """The bound of `long` is 1 until it is evicted; then what it has reached."""
    sizes = Sizes(kv_blocks=12, block_size=1)
    gated = engine(sizes)
    gated.add(Job("long", 2, 8, 9, Forecast(0.0, 0.0, 1, 9), key=0.0))
    gated.add(Job("sure", 2, 8, 9, Forecast.exact(8), key=math.log(8), arrival_s=1.0))
    while not evictions(gated.steps):
        gated.step()
    assert gated.steps[-1].evicted == ("long",)
    reached = len(gated.outputs["long"])
    assert reached > 2
    gated.add(Job("short", 2, 2, 9, Forecast.exact(2), key=math.log(2), arrival_s=2.0))
    gated.run()
    starts = [i for step in gated.steps for i in step.started]
    assert starts == ["long", "sure", "short", "long"]
    assert evictions(gated.steps) == {"long": 1}


def test_a_shared_prefix_is_counted_once() -> None:
    """16 blocks that all share, and in the end 3 of each one's own."""
    jobs = [Job(f"r{i}", 64 + 4, 7, arrival_s=float(i), shared_tokens=64) for i in range(8)]
    for behind in (0, 1):
        for kv_blocks in range(16 + 3, 16 + 3 * 10):
            sizes = Sizes(kv_blocks, prefix_caching=True)
            steps = engine(sizes, behind=behind).run(jobs)
            assert not evictions(steps)
            most = max(len(step.running) for step in steps)
            assert most >= min(len(jobs), (kv_blocks - 16) // 3)
            apart = engine(replace(sizes, prefix_caching=False), behind=behind)
            assert max(len(step.running) for step in apart.run(jobs)) <= kv_blocks // 17


@given(workload=workloads(), policy=st.sampled_from(list(POLICIES)), behind=st.integers(0, 1))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_vllm_itself_never_has_to_preempt(
    workload: tuple[Sizes, list[Job]], policy: str, behind: int
) -> None:
    """It would take its own choice; all have gone that must before it schedules."""
    sizes, jobs = workload
    gated = engine(sizes, policy, behind=behind)
    own = Scheduler.schedule

    def schedule(scheduler: Scheduler, throttle_prefills: bool = False) -> SchedulerOutput:
        before = [r.num_preemptions for r in jobs_there]
        planned = own(scheduler, throttle_prefills)
        assert [r.num_preemptions for r in jobs_there] == before
        return planned

    jobs_there = [gated.add(job) for job in jobs]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Scheduler, "schedule", schedule)
        gated.run()


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_reset_of_the_prefix_cache_starts_running_requests_again(
    behind: int, prefix_caching: bool
) -> None:
    sizes = Sizes(kv_blocks=40, block_size=4, prefix_caching=prefix_caching)
    gated = engine(sizes, behind=behind)
    jobs = [Job(f"r{i}", 10, 20, 30, shared_tokens=4, arrival_s=float(i)) for i in range(6)]
    for job in jobs:
        gated.add(job)
    for _ in range(3):
        for _ in range(4):
            gated.step()
        ran = gated.running
        assert ran
        assert gated.scheduler.reset_prefix_cache(reset_running_requests=True)
        gated.check()
        assert not gated.running
        assert gated.free_blocks == sizes.kv_blocks
    gated.run()
    for job in jobs:
        complete(job, gated)
