from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import MemoryProfile, peak_blocks

Running = list[tuple[int, int]]

block_sizes = st.sampled_from([1, 2, 3, 5, 16, 32])
running_requests = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 60)), max_size=12)


def columns(running: Running) -> tuple[np.ndarray, np.ndarray]:
    """Tokens held and steps remaining, each (n,)."""
    return np.array(running, np.int64).reshape(-1, 2).T  # type: ignore[return-value]


def usage_at(running: Running, step: int, block_size: int) -> int:
    return sum(-(-(held + step) // block_size) for held, left in running if left >= step)


def profile_of(running: Running, now: int, block_size: int) -> MemoryProfile:
    held, remaining = columns(running)
    return MemoryProfile(held - now, now + remaining, block_size)


@given(running=running_requests, block_size=block_sizes)
def test_peak_is_the_largest_usage_of_any_step(running: Running, block_size: int) -> None:
    expected = max((usage_at(running, k, block_size) for k in range(1, 61)), default=0)
    assert peak_blocks(*columns(running), block_size) == (expected if running else 0)


@given(running=running_requests)
def test_peak_in_tokens_equals_the_closed_form(running: Running) -> None:
    ordered = sorted(running, key=lambda r: -r[1])
    sums = np.cumsum([h for h, _ in ordered])
    closed = [ordered[k][1] * (k + 1) + int(sums[k]) for k in range(len(ordered))]
    assert peak_blocks(*columns(running), 1) == max(closed, default=0)


@given(running=running_requests, held=st.integers(0, 99), block_size=block_sizes)
def test_a_request_that_makes_no_step_holds_nothing(
    running: Running, held: int, block_size: int
) -> None:
    with_idle = columns([*running, (held, 0)])
    assert peak_blocks(*with_idle, block_size) == peak_blocks(*columns(running), block_size)


@given(running=running_requests, now=st.integers(0, 10_000), block_size=block_sizes)
def test_profile_lists_usage_at_every_completion(
    running: Running, now: int, block_size: int
) -> None:
    profile = profile_of(running, now, block_size)
    assert profile.times.tolist() == sorted({now + left for _, left in running})
    assert profile.usage.tolist() == [
        usage_at(running, t - now, block_size) for t in profile.times.tolist()
    ]
    assert profile.peak == peak_blocks(*columns(running), block_size)
    if running:
        assert profile.usage[profile.times == profile.peak_time] == profile.peak
        assert (profile.usage[profile.times < profile.peak_time] < profile.peak).all()


@given(
    running=running_requests,
    now=st.integers(0, 1000),
    elapsed=st.integers(0, 70),
    held=st.integers(0, 80),
    remaining=st.integers(1, 70),
    block_size=block_sizes,
)
def test_peak_with_a_candidate_is_exact_at_every_step(
    running: Running, now: int, elapsed: int, held: int, remaining: int, block_size: int
) -> None:
    profile = profile_of(running, now, block_size)

    def usage(step: int) -> int:
        own = step - elapsed
        candidate = -(-(held + own) // block_size) if own <= remaining else 0
        return usage_at(running, step, block_size) + candidate

    during = max(usage(elapsed + k) for k in range(1, remaining + 1))
    assert profile.peak_during(now + elapsed, held, remaining) == during
    ever = max(usage(elapsed + k) for k in range(1, 140))
    assert profile.peak_with(now + elapsed, held, remaining) == ever


@given(running=running_requests, candidate=st.tuples(st.integers(0, 80), st.integers(1, 60)))
def test_peak_with_a_candidate_equals_the_peak_once_it_runs(
    running: Running, candidate: tuple[int, int]
) -> None:
    profile = profile_of(running, 50, 16)
    assert profile.peak_with(50, *candidate) == profile_of([*running, candidate], 50, 16).peak


def test_an_empty_replica_has_room_for_the_candidate_alone() -> None:
    profile = MemoryProfile(np.array([]), np.array([]), 16)
    assert (profile.peak, profile.peak_time, len(profile.times)) == (0, 0, 0)
    assert profile.peak_with(7, 10, 6) == 1
    assert profile.peak_with(7, 10, 7) == 2


def test_a_short_candidate_is_not_blamed_for_a_later_peak() -> None:
    profile = profile_of([(10, 100)], 0, 1)
    assert profile.peak_with(0, 5, 3) == 110
    assert profile.peak_during(0, 5, 3) == 13 + 8


@pytest.mark.parametrize(("finish", "block_size"), [([5, 6], 16), ([5], 0)])
def test_profile_refuses_bad_input(finish: list[int], block_size: int) -> None:
    with pytest.raises(ValueError, match="block_size"):
        MemoryProfile(np.array([1]), np.array(finish), block_size)


@given(running_requests, block_sizes)
def test_usage_at_a_clock_counts_who_still_runs(running: Running, block_size: int) -> None:
    profile = profile_of(running, 0, block_size)
    clocks = np.arange(1, 62)
    expected = [usage_at(running, clock, block_size) for clock in clocks.tolist()]
    assert profile.usage_at(clocks).tolist() == expected
    assert profile.peak == max(expected)
