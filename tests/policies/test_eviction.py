from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import InvalidOptionError, choose_victims, learned_lower
from policies.eviction import NEVER, Latest, LongestRemaining, Promotion, ShortestLowerBound
from tests.policies.factories import make_batch

STARTED = np.array([3.0, 9.0, 5.0])


def test_latest_evicts_the_most_recently_started() -> None:
    keys = Latest().keys(make_batch(lower=[1, 2, 3]), STARTED)
    np.testing.assert_array_equal(np.argsort(keys), [1, 2, 0])


def test_shortest_lower_bound_counts_generated_tokens_in_real_time() -> None:
    batch = make_batch(lower=[10, 20, 30], generated_tokens=[25, 5, 31])
    np.testing.assert_array_equal(ShortestLowerBound().keys(batch, STARTED), [25, 20, 31])
    stored = ShortestLowerBound(variant="stored")
    np.testing.assert_array_equal(stored.keys(batch, STARTED), [10, 20, 30])


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match=r"'realtme'.*did you mean 'realtime'"):
        ShortestLowerBound(variant="realtme")


def test_victims_are_the_shortest_prefix_that_frees_enough() -> None:
    keys, sizes = np.array([5.0, 1.0, 3.0, 1.0]), np.array([10, 4, 7, 2])
    assert choose_victims(keys, sizes, 0).tolist() == []
    assert choose_victims(keys, sizes, -3).tolist() == []
    assert choose_victims(keys, sizes, 4).tolist() == [1]
    assert choose_victims(keys, sizes, 5).tolist() == [1, 3]
    assert choose_victims(keys, sizes, 7).tolist() == [1, 3, 2]
    assert choose_victims(keys, sizes, 99).tolist() == [1, 3, 2, 0]


@given(
    running=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=12),
    excess=st.integers(-5, 700),
)
def test_no_smaller_prefix_would_free_enough(running: list[tuple[int, int]], excess: int) -> None:
    keys = np.array([k for k, _ in running], np.float64)
    sizes = np.array([s for _, s in running], np.int64)
    victims = choose_victims(keys, sizes, excess).tolist()
    assert victims == sorted(range(len(running)), key=lambda i: (keys[i], i))[: len(victims)]
    if excess <= sizes.sum():
        assert sizes[victims].sum() >= excess
    else:
        assert len(victims) == len(running)
    if victims:
        assert sizes[victims[:-1]].sum() < excess


def test_a_lower_bound_learns_what_was_generated_up_to_the_cap() -> None:
    lower, generated, caps = np.array([5, 50, 5]), np.array([20, 20, 99]), np.array([80, 80, 80])
    np.testing.assert_array_equal(learned_lower(lower, generated, caps), [20, 50, 80])


def test_who_has_most_to_come_is_evicted_first() -> None:
    batch = make_batch(
        mu=np.log([100.0, 100.0, 100.0, 400.0]),
        sigma=[0.3, 0.3, 0.3, 0.3],
        generated_tokens=[10, 90, 800, 10],
        max_tokens=[1000] * 4,
    )
    keys = LongestRemaining().keys(batch, np.zeros(4))
    # The last is the longest; the one that has outlived its forecast may go on for long as well.
    assert np.argsort(keys).tolist() == [3, 2, 0, 1]


def test_promotion_evicts_at_the_lower_bound_and_then_knows_the_upper() -> None:
    batch = make_batch(lower=[5, 8], upper=[20, 8], generated_tokens=[5, 3], max_tokens=[15, 30])
    promotion = Promotion()
    assert promotion.deadlines(batch).tolist() == [5, NEVER]
    assert promotion.learned(batch).tolist() == [15, 8]
    assert not promotion.memory_only
    assert (Latest().deadlines(batch) == NEVER).all()
