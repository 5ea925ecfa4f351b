"""The projected-memory scheduler in vLLM's own scheduler loop, without a model."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM")
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from policies.forecast import Forecast
from tests.replicas.gated_engines import (
    MAX_EVICTIONS,
    POLICIES,
    complete,
    engine,
    evictions,
    workloads,
)
from tests.replicas.vllm_scheduler import Engine, Job, Sizes


@pytest.mark.parametrize("scheduler_class", [Scheduler, AsyncScheduler])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_vllms_own_schedulers_run_through_the_harness(
    scheduler_class: type[Scheduler], prefix_caching: bool
) -> None:
    for behind in (0, 1) if scheduler_class is AsyncScheduler else (0,):
        sizes = Sizes(20, max_num_batched_tokens=16, prefix_caching=prefix_caching)
        plain = Engine(scheduler_class, sizes, behind=behind)
        jobs = [
            Job(f"r{i}", 5 + i, 20, 30 if i % 2 else None, shared_tokens=4, arrival_s=float(i))
            for i in range(12)
        ]
        steps = plain.run(jobs)
        assert evictions(steps), "too much memory to be a test"
        for job in jobs:
            complete(job, plain)


def _delayed_beside_a_protected_one() -> tuple[Sizes, list[Job]]:
    """Two protected requests of which the second prefills in more steps than were projected."""
    short = Forecast(0.0, 0.0, 1, 1)
    jobs = [
        Job("first", 26, 31, 31, short, arrival_s=0.0),
        Job("delayed", 14, 23, 24, short, arrival_s=1.0, precedence=1, evictions=1),
        Job("grows", 26, 11, 12, arrival_s=2.0, precedence=1, evictions=5),
    ]
    return Sizes(19, 4, max_num_seqs=2, max_num_batched_tokens=9, max_model_len=57), jobs


@pytest.mark.parametrize("policy", POLICIES)
@given(workload=workloads(), behind=st.integers(0, 1))
@example(workload=_delayed_beside_a_protected_one(), behind=1)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_ends_once_and_is_evicted_no_more_than_allowed(
    policy: str, workload: tuple[Sizes, list[Job]], behind: int
) -> None:
    sizes, jobs = workload
    gated = engine(sizes, policy, behind=behind)
    evicted = evictions(gated.run(jobs))
    for job in jobs:
        complete(job, gated)
        assert evicted[job.request_id] <= max(0, MAX_EVICTIONS - job.evictions)


@given(workload=workloads(), policy=st.sampled_from(list(POLICIES)), behind=st.integers(0, 1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_who_was_never_evicted_starts_in_the_order_of_the_keys(
    workload: tuple[Sizes, list[Job]], policy: str, behind: int
) -> None:
    """An evicted request has a key of its own, which counts what was learnt of it."""
    sizes, jobs = workload
    ranks = {job.request_id: (*job.rank, index) for index, job in enumerate(jobs)}
    unchanged = set(ranks)
    for step in engine(sizes, policy, behind=behind).run(jobs):
        unchanged -= set(step.evicted)
        started = [ranks[i] for i in step.started if i in unchanged]
        assert started == sorted(started)
        left = [ranks[i] for i in step.waiting if i in unchanged]
        assert not started or not left or started[-1] < min(left)


@given(workload=workloads(), arrivals=st.data(), behind=st.integers(0, 1))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_aborts_at_any_moment_leave_nothing_behind(
    workload: tuple[Sizes, list[Job]], arrivals: st.DataObject, behind: int
) -> None:
    sizes, jobs = workload
    gated = engine(sizes, arrivals.draw(st.sampled_from(list(POLICIES))), behind=behind)
    moments = arrivals.draw(
        st.lists(st.integers(0, 30), min_size=len(jobs), max_size=len(jobs)), label="arrivals"
    )
    ends = arrivals.draw(
        st.lists(st.none() | st.integers(0, 40), min_size=len(jobs), max_size=len(jobs)),
        label="aborts",
    )
    for now in range(41):
        for job, moment in zip(jobs, moments, strict=True):
            if moment == now:
                gated.add(job)
        gone = [
            job.request_id
            for job, moment, end in zip(jobs, moments, ends, strict=True)
            if end == now and moment <= now
        ]
        if gone:
            gated.abort(*gone)
        gated.step()
    gated.run()
    for job, moment, end in zip(jobs, moments, ends, strict=True):
        if gated.reasons[job.request_id] == "abort":
            assert end is not None
            assert end >= moment
            assert len(gated.outputs[job.request_id]) <= job.output_tokens
        else:
            complete(job, gated)


@given(workload=workloads(), moments=st.lists(st.integers(0, 30), min_size=1, max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_name_may_come_back_at_once(
    workload: tuple[Sizes, list[Job]], moments: list[int]
) -> None:
    """A request that was taken away from here is given back, further on."""
    sizes, jobs = workload
    gated = engine(sizes)
    for job in jobs:
        gated.add(job)
    for now in range(31):
        for index, moment in enumerate(moments):
            job = jobs[index % len(jobs)]
            if moment == now and job.request_id in gated.scheduler.requests:
                gated.abort(job.request_id)
                gated.add(job)
        gated.step()
    gated.run()
    for job in jobs:
        complete(job, gated)


def test_a_request_that_vllm_holds_back_lets_others_pass() -> None:
    """As while the grammar of a structured output is compiled."""
    for behind in (0, 1):
        gated = engine(Sizes(kv_blocks=20, block_size=4), "fcfs", behind=behind)
        blocked = gated.add(Job("blocked", 6, 5, arrival_s=0.0))
        gone = gated.add(Job("gone", 6, 5, arrival_s=1.0))
        for request in (blocked, gone):
            request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        jobs = [Job("second", 6, 5, arrival_s=2.0), Job("third", 6, 30, arrival_s=3.0)]
        for job in jobs:
            gated.add(job)
        for _ in range(10):
            step = gated.step()
            assert set(step.waiting) == {"blocked", "gone"}
        gated.abort("gone")
        blocked.status = RequestStatus.WAITING
        assert gated.step().started == ("blocked",)
        gated.run()
        for job in (*jobs, Job("blocked", 6, 5)):
            complete(job, gated)


def test_a_prompt_that_exceeds_the_budget_is_prefilled_in_chunks() -> None:
    sizes = Sizes(kv_blocks=64, block_size=4, max_num_batched_tokens=8)
    for behind in (0, 1):
        gated = engine(sizes, behind=behind)
        jobs = [Job(f"r{i}", 100, 10, arrival_s=float(i)) for i in range(3)]
        steps = gated.run(jobs)
        assert max(step.computed_tokens for step in steps) == 8
        assert len(steps) > 3 * 100 // 8
        for job in jobs:
            complete(job, gated)
