"""The published test vectors and invariants of A_max, A_min and H-SF (arXiv:2508.14544)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Policy, policy, policy_names
from tests.policies.unit_step import Job, run


def a_min(variant: str, overdue: str) -> Policy:
    return policy(
        "a_min", eviction_options={"variant": variant}, admission_options={"overdue": overdue}
    )


VARIANTS = [(v, o) for v in ("stored", "realtime") for o in ("alive", "double")]
V1 = [Job(1, o, 1, 4) for o in (4, 1, 2, 1)]
V2 = [Job(1, o, 2, 5) for o in (5, 2, 2, 3, 2)]
V3 = [Job(0, o, 1, 3) for o in (3, 3, 1, 1, 1, 2)]


def generated_jobs(count: int) -> list[Job]:
    """A workload from a linear congruential generator, with intervals of 50 tokens."""
    state = 42

    def draw() -> int:
        nonlocal state
        state = (1103515245 * state + 12345) % 2**31
        return state >> 8

    jobs = []
    for _ in range(count):
        prompt, output = 5 + draw() % 40, 1 + draw() % 60
        if draw() % 10 == 0:
            output *= 5
        low = 50 * ((output - 1) // 50)
        jobs.append(Job(prompt, output, low + 1, low + 50))
    return jobs


def test_v1() -> None:
    assert run(V1, 8, policy("h_sf")).latency == 8
    a_max = run(V1, 8, policy("a_max"))
    assert (a_max.latency, a_max.completions) == (18, [4, 3, 5, 6])
    for variant in VARIANTS:
        assert run(V1, 8, a_min(*variant)).latency == 8


def test_v2() -> None:
    h_sf = run(V2, 9, policy("h_sf"))
    assert (h_sf.latency, h_sf.completions) == (18, [7, 2, 2, 5, 2])
    a_max = run(V2, 9, policy("a_max"))
    assert (a_max.latency, a_max.completions) == (39, [5, 5, 7, 10, 12])
    alive = run(V2, 9, a_min("stored", "alive"))
    assert (alive.latency, alive.completions) == (21, [8, 2, 2, 5, 4])
    assert (alive.evictions, alive.wasted_tokens) == (1, 3)
    realtime = run(V2, 9, a_min("realtime", "alive"))
    assert (realtime.latency, realtime.completions) == (20, [5, 2, 2, 7, 4])
    assert realtime.wasted_tokens == 1
    double = run(V2, 9, a_min("stored", "double"))
    assert (double.latency, double.completions) == (25, [10, 2, 2, 5, 6])


def test_v3() -> None:
    assert run(V3, 6, policy("h_sf")).latency == 11
    a_max = run(V3, 6, policy("a_max"))
    assert (a_max.latency, a_max.completions) == (25, [3, 3, 4, 4, 5, 6])
    for variant in VARIANTS:
        assert run(V3, 6, a_min(*variant)).latency == 11


@pytest.mark.parametrize("own_horizon", [False, True])
@pytest.mark.parametrize(
    ("made", "summary"),
    [
        (policy("h_sf"), (22980, 0, 0, 670)),
        (policy("a_max"), (32892, 0, 0, 759)),
        (a_min("stored", "alive"), (30278, 95, 2420, 693)),
        (a_min("realtime", "alive"), (24953, 91, 969, 631)),
    ],
    ids=["h_sf", "a_max", "stored+alive", "realtime+alive"],
)
def test_generated_workload(
    made: Policy, summary: tuple[int, int, int, int], own_horizon: bool
) -> None:
    """Latency, evictions, tokens wasted, makespan; memory-safe rules need no horizon."""
    assert run(generated_jobs(200), 1500, made, own_horizon).summary == summary


def test_generated_workload_with_doubled_estimates() -> None:
    """Doubling projects running requests beyond memory: here the horizon of the test matters."""
    made = run(generated_jobs(200), 1500, a_min("stored", "double"), own_horizon=True)
    assert made.summary == (28866, 68, 2100, 658)


@st.composite
def instances(draw: st.DrawFn, exact: bool = False) -> tuple[list[Job], int]:
    jobs = []
    for _ in range(draw(st.integers(1, 9))):
        output = draw(st.integers(1, 8))
        lower = output if exact else draw(st.integers(1, output))
        upper = output if exact else draw(st.integers(output, 12))
        jobs.append(Job(draw(st.integers(0, 5)), output, lower, upper, draw(st.integers(0, 6))))
    least = max(j.prompt + j.output for j in jobs)
    return jobs, draw(st.integers(least, least + 20))


POLICIES = {name: policy(name) for name in policy_names()} | {
    f"a_min {variant} {overdue}": a_min(variant, overdue) for variant, overdue in VARIANTS
}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60)
@given(instance=instances(), own_horizon=st.booleans())
def test_memory_holds_and_every_request_completes(
    name: str, instance: tuple[list[Job], int], own_horizon: bool
) -> None:
    """I2 with any lengths, since overflow is resolved, and no request is left behind."""
    jobs, memory = instance
    outcome = run(jobs, memory, POLICIES[name], own_horizon)
    assert outcome.peak_tokens <= memory
    spans = zip(jobs, outcome.starts, outcome.completions, strict=True)
    assert all(job.arrival <= start and done - start == job.output for job, start, done in spans)


@pytest.mark.parametrize("name", ["h_sf", "a_max"])
@given(instance=instances())
def test_policies_that_never_underestimate_never_evict(
    name: str, instance: tuple[list[Job], int]
) -> None:
    jobs, memory = instance
    assert run(jobs, memory, POLICIES[name]).evictions == 0


@given(instance=instances(exact=True))
def test_exact_intervals_make_all_three_equal(instance: tuple[list[Job], int]) -> None:
    jobs, memory = instance
    benchmark = run(jobs, memory, policy("h_sf"))
    assert run(jobs, memory, policy("a_max")) == benchmark
    for variant in VARIANTS:
        assert run(jobs, memory, a_min(*variant)) == benchmark
