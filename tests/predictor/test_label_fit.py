"""Fits of labels, their reliability, and scipy beside them."""

from __future__ import annotations

import numpy as np
import pytest

from predictor.label_fit import SIGMA_MIN, compare_scipy, fit_labels, split_half
from predictor.labels import Labels
from tests.predictor.training_factories import labels_of, texts


def spread_labels(prompts: int, samples: int, mu_spread: float, seed: int = 0) -> Labels:
    """Labels whose mu varies by `mu_spread` between prompts and ln X by 0.3 within one."""
    rng = np.random.default_rng(seed)
    base = labels_of(texts(prompts), samples=samples)
    mu = 6 + mu_spread * rng.standard_normal((prompts, 1))
    tokens = np.exp(mu + 0.3 * rng.standard_t(3.5, (prompts, samples))).clip(1, 1e6)
    return Labels(base.prompts, tokens.astype(np.int64), base.censored)


def test_counts_of_tied_collapsed_and_cut() -> None:
    labels = labels_of(texts(5), samples=20)
    labels.output_tokens[:] = 0
    labels.output_tokens[0] = 64  # tied: at the floor
    labels.output_tokens[1] = [64] * 17 + [900] * 3  # collapses to what the deviation gives
    labels.output_tokens[2, :4] = [50, 70, 90, 120]
    labels.output_tokens[3, :4] = [50, 70, 100, 100]  # the last two cut
    labels.output_tokens[4, 0] = 30
    labels.censored[3, 2:4] = True
    fitted = fit_labels(labels)
    assert fitted.tied.tolist() == [True, False, False, False, False]
    assert fitted.collapsed.tolist() == [True, True, False, False, True]
    assert fitted.cut.tolist() == [0, 0, 0, 2, 0]
    assert fitted.samples.tolist() == [20, 20, 4, 4, 1]
    assert fitted.sigma[0] == pytest.approx(SIGMA_MIN)
    assert fitted.sigma[1] > 0.5
    blind = Labels(labels.prompts, labels.output_tokens, np.zeros_like(labels.censored))
    assert fitted.mu[3] > fit_labels(blind).mu[3]
    assert fitted.sigma[3] > fit_labels(blind).sigma[3]


def test_reliability_is_that_of_the_full_number_of_samples() -> None:
    """Against fits to other samples of the same prompts, whose correlation is the reliability."""
    rng = np.random.default_rng(3)
    truth = 6 + 0.25 * rng.standard_normal((3000, 1))
    base = labels_of(texts(3000), samples=8)

    def drawn() -> Labels:
        tokens = np.exp(truth + 0.6 * rng.standard_t(3.5, (3000, 8))).clip(1, 1e6)
        return Labels(base.prompts, tokens.astype(np.int64), base.censored)

    one, other = drawn(), drawn()
    expected = np.corrcoef(fit_labels(one).mu, fit_labels(other).mu)[0, 1]
    assert split_half(one).mu == pytest.approx(expected, abs=0.04)
    assert split_half(one, seed=0) == split_half(one, seed=0)
    assert split_half(one, seed=0) != split_half(one, seed=1)


def test_prompts_that_differ_more_are_more_reliable() -> None:
    low, high = (split_half(spread_labels(800, 6, spread)).mu for spread in (0.05, 1.0))
    assert low < 0.5 < 0.9 < high <= 1


def test_reliability_needs_several_samples_of_several_prompts() -> None:
    for labels in (labels_of(texts(50), samples=3), labels_of(texts(2), samples=8)):
        found = split_half(labels)
        assert np.isnan(found.mu)
        assert np.isnan(found.sigma)
    mixed = labels_of(texts(50), samples=6)
    mixed.output_tokens[:30, 2:] = 0
    assert split_half(mixed).prompts == 20


def test_scipy_finds_the_same_one_prompt_at_a_time() -> None:
    labels = labels_of(texts(300), samples=8, cap=150)
    labels.output_tokens[:30] = 77  # ties
    labels.censored[:30] = False
    labels.output_tokens[30:40, 5:] = 0  # ragged
    labels.censored[30:40, 5:] = False
    found = compare_scipy(labels, 120)
    assert found.prompts == 120
    assert found.mu_difference < 0.01
    assert found.sigma_difference < 0.01
    assert found.scipy_better == 0
    assert found.ratio == pytest.approx(found.scipy_s / found.fit_s)
    assert compare_scipy(labels.take(range(10)), 50).prompts == 10
    with pytest.raises(ValueError, match="prompts is 0"):
        compare_scipy(labels, 0)
