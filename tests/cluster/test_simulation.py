from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduler import ClusterScheduler, Dispatch, Recall
from cluster.simulation import StalledError
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk, WorkloadError
from policies.bundle import Policy, policy
from policies.gate import MAX_EVICTIONS
from replicas.batch_limits import BatchLimits
from replicas.step_time import UnitStepTime
from tests.cluster.simulated import LINEAR, chunk, fleet, rows_of
from tests.policies.unit_step import Job, Outcome
from tests.policies.unit_step import run as reference

POLICIES = ["fcfs", "sjf", "sept", "tie", "a_max", "a_min", "tie+a_min", "h_sf", "tiebreak"]


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[Job], int]:
    """A unit-step instance that can run, and its memory."""
    memory = draw(st.integers(6, 40))
    jobs = []
    for _ in range(draw(st.integers(1, 12))):
        prompt = draw(st.integers(0, memory - 3))
        output = draw(st.integers(1, memory - prompt))
        lower = draw(st.integers(1, output))
        upper = draw(st.integers(output, memory - prompt))
        jobs.append(Job(prompt, output, lower, upper, draw(st.integers(0, 8))))
    return sorted(jobs, key=lambda job: job.arrival), memory


def unit_step(jobs: list[Job], memory: int, decide: Policy) -> Outcome:
    """The instance through the simulator, in the terms of the reference."""
    prompt = np.array([j.prompt for j in jobs])
    lower, upper = np.array([j.lower for j in jobs]), np.array([j.upper for j in jobs])
    workload = WorkloadChunk(
        arrival_s=np.array([float(j.arrival) for j in jobs]),
        prompt_tokens=prompt,
        max_tokens=memory - prompt,
        output_tokens=np.array([j.output for j in jobs]),
        request_class=np.zeros(len(jobs), np.int64),
        mu=np.log((lower + upper) / 2),
        sigma=np.full(len(jobs), 0.3),
        lower=lower,
        upper=upper,
    )
    limits = BatchLimits(memory, 1, len(jobs), len(jobs) + int(prompt.sum()))
    spec = FleetSpec(1, limits, UnitStepTime(), on_eviction="restart", report_interval_s=0)
    result, rows = rows_of([workload], spec, decide)
    rows = rows.sort_values("request")
    completions = rows.finished_s.astype(int).tolist()
    return Outcome(
        completions=completions,
        starts=[c - j.output for c, j in zip(completions, jobs, strict=True)],
        latency=int((rows.finished_s - rows.arrival_s).sum()),
        evictions=result.evictions,
        wasted_tokens=result.wasted_tokens,
        peak_tokens=result.peak_memory_blocks,
    )


@settings(max_examples=300, deadline=None)
@given(
    instances(),
    st.sampled_from(["h_sf", "a_max", "a_min"]),
    st.sampled_from(["stored", "realtime"]),
    st.sampled_from(["alive", "double"]),
)
def test_unit_step_instances_come_out_as_in_the_reference(
    instance: tuple[list[Job], int], name: str, variant: str, overdue: str
) -> None:
    jobs, memory = instance
    options = (
        {"eviction_options": {"variant": variant}, "admission_options": {"overdue": overdue}}
        if name == "a_min"
        else {}
    )
    decide = policy(name, **options)
    assert unit_step(jobs, memory, decide) == reference(jobs, memory, decide, own_horizon=True)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("rate", [0.0, 30.0])
def test_every_request_finishes_once_within_memory(name: str, rate: float) -> None:
    workload = chunk(300, rate, offline_share=0.3)
    result, rows = rows_of([workload], fleet(replicas=2), name)
    assert sorted(rows.request) == list(range(300))
    assert result.finished == 300
    assert result.refused == 0
    assert result.output_tokens == workload.output_tokens.sum() == rows.output_tokens.sum()
    assert result.evictions == rows.evictions.sum()
    assert (rows.arrival_s <= rows.dispatched_s).all()
    assert (rows.dispatched_s < rows.first_token_s).all()
    assert (rows.first_token_s <= rows.finished_s).all()
    assert rows.finished_s.is_monotonic_increasing
    assert result.makespan_s == rows.finished_s.max()
    assert 0 < result.peak_memory_blocks <= 512
    assert 0 < result.mean_memory_share <= 1
    assert result.timeline.used_blocks.max() <= result.capacity_blocks


def test_without_a_queue_latency_is_that_of_the_steps_alone() -> None:
    workload = chunk(20, rate=0.02)
    _, rows = rows_of([workload], fleet(), "fcfs")
    for row in rows.itertuples():
        prefill = LINEAR.base_s + LINEAR.per_prefill_token_s * row.prompt_tokens
        decode = LINEAR.decode_seconds(1, row.prompt_tokens + 1, row.output_tokens - 1)
        assert row.first_token_s - row.arrival_s == pytest.approx(prefill)
        assert row.finished_s - row.arrival_s == pytest.approx(prefill + decode)


def test_first_come_is_first_dispatched() -> None:
    _, rows = rows_of([chunk(300, rate=60.0)], fleet(), "fcfs")
    assert rows.sort_values("request").dispatched_s.is_monotonic_increasing


def test_true_lengths_are_never_evicted_and_beat_arrival_order() -> None:
    workload = chunk(400)
    known, known_rows = rows_of([workload], fleet(), "h_sf")
    _, fcfs_rows = rows_of([workload], fleet(), "fcfs")
    assert known.evictions == 0
    assert known_rows.finished_s.mean() < 0.75 * fcfs_rows.finished_s.mean()


def test_a_restart_wastes_what_was_generated_and_recomputing_does_not() -> None:
    workload = chunk(300)
    recomputed, _ = rows_of([workload], fleet(kv_blocks=160), "fcfs")
    spec = fleet(kv_blocks=160)
    restarts = FleetSpec(1, spec.limits, spec.step_time, on_eviction="restart")
    restarted, _ = rows_of([workload], restarts, "fcfs")
    assert recomputed.evictions > 0
    assert recomputed.wasted_tokens == 0
    assert restarted.wasted_tokens > 0
    assert restarted.makespan_s > recomputed.makespan_s


def test_more_replicas_share_the_work() -> None:
    workload = chunk(400)
    one, _ = rows_of([workload], fleet(replicas=1))
    four, rows = rows_of([workload], fleet(replicas=4))
    assert four.makespan_s < 0.4 * one.makespan_s
    assert (
        rows.groupby("replica")
        .output_tokens.sum()
        .between(0.15 * one.output_tokens, 0.4 * one.output_tokens)
        .all()
    )


def test_equal_runs_are_equal_to_the_last_bit() -> None:
    workload = chunk(300, rate=40.0, offline_share=0.5)
    first, rows = rows_of([workload], fleet(replicas=3))
    second, again = rows_of([workload], fleet(replicas=3))
    pd.testing.assert_frame_equal(rows, again, check_exact=True)
    assert repr(first) == repr(second)


@pytest.mark.parametrize("latency_s", [0.0, 0.02])
@pytest.mark.parametrize("name", POLICIES)
def test_engines_that_are_sent_requests_ahead_finish_all_of_them(
    name: str, latency_s: float
) -> None:
    workload = chunk(200, 40.0, offline_share=0.3)
    spec = replace(fleet(replicas=3, kv_blocks=160), look_ahead=2, dispatch_latency_s=latency_s)
    result, rows = rows_of([workload], spec, name)
    assert sorted(rows.request) == list(range(200))
    assert result.output_tokens == workload.output_tokens.sum() == rows.output_tokens.sum()
    assert result.evictions == rows.evictions.sum()
    assert rows.evictions.max() <= MAX_EVICTIONS
    assert result.wasted_tokens == 0
    assert 0 < result.peak_memory_blocks <= 160
    assert (rows.dispatched_s < rows.first_token_s).all()
    again, same = rows_of([workload], spec, name)
    pd.testing.assert_frame_equal(rows, same, check_exact=True)
    assert repr(result) == repr(again)


def test_requests_that_wait_in_a_virtual_engine_go_on_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided: list[Dispatch | Recall] = []
    decide = ClusterScheduler.decide

    def watched(self: ClusterScheduler, now: float) -> list[Dispatch | Recall]:
        actions = decide(self, now)
        decided.extend(actions)
        return actions

    monkeypatch.setattr(ClusterScheduler, "decide", watched)
    spec = replace(fleet(replicas=3, kv_blocks=160), look_ahead=2, dispatch_latency_s=0.02)
    rows_of([chunk(300)], spec, "a_min")
    recalls = [action for action in decided if isinstance(action, Recall)]
    attempts = {a.request.request_id: a.attempt for a in decided if isinstance(a, Dispatch)}
    assert len(recalls) > 10
    assert max(attempts.values()) > 1
    went_on = sum(attempt - 1 for attempt in attempts.values())
    assert 0.8 * len(recalls) <= went_on <= len(recalls), "but for those that had finished"


def test_chunks_are_as_good_as_one() -> None:
    whole = chunk(200, rate=30.0)
    names = [name for name in WorkloadChunk.__slots__ if name != "number"]
    parts = [
        WorkloadChunk(**{name: getattr(whole, name)[part] for name in names})
        for part in (slice(0, 0), slice(0, 70), slice(70, 200))
    ]
    _, rows = rows_of([whole], fleet())
    _, in_parts = rows_of(parts, fleet())
    pd.testing.assert_frame_equal(rows, in_parts, check_exact=True)


def test_requests_that_fit_nowhere_are_refused_and_counted() -> None:
    result, rows = rows_of([chunk(50)], fleet(kv_blocks=90))
    too_large = chunk(50).prompt_tokens + 1024 > 90 * 16
    assert result.refused == too_large.sum() > 0
    assert len(rows) == 50 - result.refused


def test_online_requests_stand_before_offline_ones() -> None:
    _, rows = rows_of([chunk(400, offline_share=0.5)], fleet())
    wait = rows.dispatched_s.groupby(rows.request_class).max()
    assert wait[0] < wait[1]


def test_chunks_out_of_order_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"request 5 arrives at .* before the one before it"):
        rows_of([chunk(5, rate=1.0, start_s=100.0), chunk(5, rate=1.0)], fleet())


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt_tokens", -1, "request 0 of the workload: prompt_tokens is -1, must be >= 0"),
        ("output_tokens", 0, "output_tokens is 0, must be >= 1"),
        ("output_tokens", 5000, "output_tokens is 5000, must be <= max_tokens"),
        ("sigma", -0.5, "sigma is -0.5, must be finite and >= 0"),
        ("upper", 0, "upper is 0, must be >= lower"),
        ("arrival_s", np.nan, "arrival_s is nan, must be finite"),
    ],
)
def test_columns_are_checked(column: str, value: float, message: str) -> None:
    good = chunk(3)
    columns = asdict(good)
    columns[column][0] = value
    with pytest.raises(WorkloadError, match=message):
        WorkloadChunk(**columns)


def test_a_policy_that_dispatches_nothing_is_reported() -> None:
    decide = policy("fcfs")

    class Nobody:
        name = "nobody"

        def estimates(self, batch):  # type: ignore[no-untyped-def]
            return np.full(len(batch), 10**6)

    stuck = Policy("stuck", decide.ordering, Nobody(), decide.eviction)  # type: ignore[arg-type]
    with pytest.raises(StalledError, match=r"3 requests wait .* policy 'stuck' dispatches none"):
        rows_of([chunk(3)], fleet(), stuck)
