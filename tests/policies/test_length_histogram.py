import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.length_histogram import MAX_TOKENS, LengthHistogram, LengthHistogramState


def filled(tokens: list[int], censored: list[bool], half_life: float = 1e12) -> LengthHistogram:
    histogram = LengthHistogram()
    histogram.observe(np.array(tokens), np.array(censored, np.bool_), half_life)
    return histogram


lengths = st.lists(st.tuples(st.integers(1, MAX_TOKENS), st.booleans()), min_size=1, max_size=50)


@given(lengths)
def test_samples_keep_counts_and_mean_logarithm_of_each_kind(
    answers: list[tuple[int, bool]],
) -> None:
    tokens, censored = (list(column) for column in zip(*answers, strict=True))
    length, cut, weight = filled(tokens, censored).samples()
    for kind in (False, True):
        logs = [np.log(t) for t, c in answers if c is kind]
        assert weight[cut == kind].sum() == pytest.approx(len(logs))
        assert (weight * np.log(length))[cut == kind].sum() == pytest.approx(sum(logs))


@given(st.integers(1, MAX_TOKENS), st.integers(1, MAX_TOKENS))
def test_a_length_moves_by_less_than_nine_percent(one: int, other: int) -> None:
    length, _, weight = filled([one, other], [False, False]).samples()
    moved = np.sort(np.repeat(length, np.rint(weight).astype(int))) / sorted([one, other])
    assert np.abs(np.log(moved)).max() < np.log(1.09)


def test_short_lengths_are_exact() -> None:
    tokens = list(range(1, 12))
    length, _, weight = filled(tokens, [False] * 11).samples()
    np.testing.assert_allclose(length, tokens)
    np.testing.assert_allclose(weight, 1.0)


def test_an_observation_counts_half_after_the_half_life() -> None:
    histogram = filled([1000], [False], half_life=10)
    for _ in range(10):
        histogram.observe(np.array([10]), np.array([False]), 10)
    length, _, weight = histogram.samples()
    np.testing.assert_allclose(length, [10, 1000])
    assert weight[1] == pytest.approx(0.5)


def test_one_batch_forgets_like_its_observations_one_by_one() -> None:
    tokens = [3, 700, 9, 3, 41, 700]
    together = filled(tokens, [False] * 6, half_life=2)
    one_by_one = LengthHistogram()
    for length in tokens:
        one_by_one.observe(np.array([length]), np.array([False]), 2)
    for joint, single in zip(together.samples(), one_by_one.samples(), strict=True):
        np.testing.assert_allclose(joint, single)


def test_the_weight_is_bounded_by_the_half_life() -> None:
    histogram = filled([5] * 10_000, [False] * 10_000, half_life=100)
    assert histogram.weight == pytest.approx(100 / np.log(2), rel=0.01)


def test_what_is_long_forgotten_is_gone() -> None:
    histogram = filled([1000], [False], half_life=1)
    histogram.observe(np.full(60, 10), np.zeros(60, np.bool_), 1)
    assert len(histogram.samples()[0]) == 1


@given(lengths)
def test_the_state_restores_the_histogram(answers: list[tuple[int, bool]]) -> None:
    tokens, censored = (list(column) for column in zip(*answers, strict=True))
    histogram = filled(tokens, censored, half_life=7)
    restored = LengthHistogram.of(histogram.state())
    for new, old in zip(restored.samples(), histogram.samples(), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    "entry",
    [
        (-1, 1.0, 0.0),
        (10_000, 1.0, 866.0),
        (8, 0.0, 0.0),
        (8, -1.0, -0.7),
        (8, float("nan"), 0.7),
        (8, 1.0, float("nan")),
        (8, 1.0, 5.0),
    ],
)
def test_a_state_with_values_out_of_range_is_refused(entry: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="a bin is in 0"):
        LengthHistogram.of(LengthHistogramState(ended=[(0, 1.0, 0.0), entry]))
