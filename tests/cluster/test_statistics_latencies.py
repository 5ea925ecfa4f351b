"""Percentiles by group and window, against the exact ones, in memory that does not grow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from ddsketch import DDSketch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.snapshot import LatencyView
from cluster.statistics.finished_row import FinishedRow
from cluster.statistics.group_names import GroupNames
from cluster.statistics.latency_groups import SHARES, LatencyGroups
from cluster.statistics.sketch_grid import BINS as SKETCH_BINS
from cluster.statistics.sketch_grid import LARGEST, RELATIVE_ERROR, SMALLEST, bins, percentiles


def row(
    latency_s: float = 1.0,
    *,
    tenant: str = "acme",
    replica: str = "a",
    request_class: str = "online",
    tokens: int = 10,
    reason: str = "stop",
    joules: float | None = None,
) -> FinishedRow:
    return FinishedRow(
        request_id="r", request_class=request_class, tenant=tenant, job="", policy="tie",
        arrival_unix_s=0.0, forecast_s=None, dispatched_s=latency_s / 4,
        first_token_s=latency_s / 2, finished_s=latency_s, prompt_tokens=5, max_tokens=50,
        output_tokens=tokens, finish_reason=reason, forecast_mu=None, forecast_sigma=None,
        forecast_lower=None, forecast_upper=None, forecast_source="", replica_id=replica,
        attempts=1, evictions=0, recalls=0, recomputed_tokens=0, energy_joules=joules,
        wasted_joules=None, energy_source="none",
    )  # fmt: skip


def groups(tenants: int = 3, replicas: int = 3) -> LatencyGroups:
    return LatencyGroups("tie", tenants, replicas)


def view(
    taken: list[LatencyView], by: str = "all", name: str = "all", window_s: int = 0
) -> LatencyView | None:
    found = [v for v in taken if (v.by, v.name, v.window_s) == (by, name, window_s)]
    assert len(found) <= 1
    return found[0] if found else None


@given(st.lists(st.floats(SMALLEST, LARGEST), min_size=1, max_size=200))
def test_percentiles_are_those_of_a_ddsketch(values: list[float]) -> None:
    counts = np.bincount(bins(np.array(values)), minlength=SKETCH_BINS)
    found = percentiles(counts, SHARES)
    sketch = DDSketch(RELATIVE_ERROR)
    for value in values:
        sketch.add(value)
    ranked = sorted(values)
    for share, value in zip(SHARES, found, strict=True):
        assert value == pytest.approx(sketch.get_quantile_value(share), rel=1e-9)
        exact = ranked[int(share * (len(values) - 1))]
        assert value == pytest.approx(exact, rel=1.001 * RELATIVE_ERROR)


def test_no_time_at_all_is_a_value_and_a_year_is_a_long_one() -> None:
    counts = np.bincount(bins(np.array([0.0, SMALLEST / 2, 1e9])), minlength=SKETCH_BINS)
    zero, most = percentiles(counts, (0.5, 1.0))
    assert zero == 0.0
    assert most == pytest.approx(LARGEST, rel=2 * RELATIVE_ERROR)
    assert percentiles(np.zeros(SKETCH_BINS, np.int64), (0.5,)).tolist() == [0.0]


def test_groups_and_measures_are_kept_apart() -> None:
    kept = groups()
    for second in range(100):
        kept.add(row(1.0, tenant="acme", joules=2.0), second * 0.01)
        kept.add(row(8.0, tenant="bolt", replica="b", request_class="offline"), second * 0.01)
    taken = kept.views(1.0)
    everything = view(taken)
    assert everything is not None
    assert (everything.requests, everything.output_tokens) == (200, 2000)
    assert everything.energy_joules == 200.0
    assert everything.measures["latency_s"].mean == pytest.approx(4.5)
    assert everything.measures["latency_s"].p50 == pytest.approx(1.0, rel=RELATIVE_ERROR)
    assert everything.measures["latency_s"].p90 == pytest.approx(8.0, rel=RELATIVE_ERROR)
    for by, name in (("class", "offline"), ("tenant", "bolt"), ("replica", "b")):
        one = view(taken, by, name)
        assert one is not None
        assert one.requests == 100
        assert one.measures["queue_s"].p50 == pytest.approx(2.0, rel=RELATIVE_ERROR)
        assert one.measures["ttft_s"].p99 == pytest.approx(4.0, rel=RELATIVE_ERROR)
        assert one.measures["per_token_latency_s"].mean == pytest.approx(0.8)
    policy = view(taken, "policy", "tie")
    assert policy is not None
    assert policy.measures == everything.measures


@settings(max_examples=30)
@given(st.lists(st.floats(0, 2000), max_size=40), st.floats(0, 1000))
def test_a_window_holds_what_ended_in_it_and_little_more(
    ends_s: list[float], later_s: float
) -> None:
    kept = groups()
    ends_s = sorted(ends_s)
    for end_s in ends_s:
        kept.add(row(), end_s)
    now = (ends_s[-1] if ends_s else 0.0) + later_s
    taken = kept.views(now)
    for window_s in (60, 300, 900):
        found = view(taken, window_s=window_s)
        requests = found.requests if found else 0
        assert requests >= sum(end_s > now - window_s for end_s in ends_s)
        assert requests <= sum(end_s > now - 1.2 * window_s for end_s in ends_s)
        assert found is None or found.measures["latency_s"].count == requests
    since_start = view(taken)
    assert (since_start.requests if since_start else 0) == len(ends_s)


def test_what_was_not_answered_counts_but_has_no_latency() -> None:
    kept = groups()
    kept.add(row(reason="abort", joules=3.0), 0.0)
    kept.add(row(reason="error", replica="", tokens=0), 0.0)
    everything = view(kept.views(0.0))
    assert everything is not None
    assert (everything.requests, everything.energy_joules) == (2, 3.0)
    assert everything.measures["latency_s"].count == 0
    assert view(kept.views(0.0), "replica", "") is None


def test_energy_per_token_is_told_of_the_requests_that_were_metered() -> None:
    kept = groups()
    kept.add(row(tokens=10, joules=5.0), 0.0)
    kept.add(row(tokens=90), 0.0)
    whole = view(kept.views(0.0))
    assert whole is not None
    assert (whole.output_tokens, whole.metered_tokens, whole.energy_joules) == (100, 10, 5.0)


def test_more_tenants_than_places_are_added_up() -> None:
    kept = groups(tenants=2)
    for tenant in ("a", "b", "c", "d", "a", "other"):
        kept.add(row(tenant=tenant), 0.0)
    taken = kept.views(0.0)
    counted = {v.name: v.requests for v in taken if (v.by, v.window_s) == ("tenant", 0)}
    assert counted == {"a": 2, "b": 1, "other": 3}


def test_a_place_that_is_idle_goes_to_who_needs_it_and_its_past_to_the_rest() -> None:
    kept = groups(replicas=2)
    for replica in ("a", "b", "b"):
        kept.add(row(replica=replica), 0.0)
    kept.add(row(replica="b"), 1000.0)
    kept.add(row(replica="c"), 2000.0)
    taken = kept.views(2000.0)
    counted = {v.name: v.requests for v in taken if (v.by, v.window_s) == ("replica", 0)}
    assert counted == {"other": 1, "b": 3, "c": 1}
    now = {v.name: v.requests for v in taken if (v.by, v.window_s) == ("replica", 60)}
    assert now == {"c": 1}


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0, 30)), max_size=80))
def test_no_two_names_share_a_place_but_the_rest(uses: list[tuple[int, float]]) -> None:
    names = GroupNames(first=4, most=3, idle_s=20.0)
    now = 0.0
    for number, pause_s in uses:
        now += pause_s
        before = dict(names)
        place, is_taken = names.place(f"n{number}", now)
        after = dict(names)
        assert 4 <= place <= 7
        assert len(set(after.values())) == len(after) <= 4
        assert is_taken == (place in before.values() and f"n{number}" not in before and place > 4)


def test_memory_does_not_grow_with_requests_or_tenants() -> None:
    kept = groups(tenants=5, replicas=5)

    def play(first: int, count: int) -> None:
        for number in range(first, first + count):
            kept.add(row(1 + number % 90, tenant=f"t{number}", replica=f"r{number}"), number)
        kept.views(first + count)

    play(0, 2000)
    tracemalloc.start()
    play(2000, 4_000)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 100_000
