"""Every study on tiny inputs, from its cells to its section."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from jobs.papers import a_min_table, ablations, beyond, goodness_of_fit, tie_offline, tie_online
from jobs.papers.alternatives import GittinsVolume, MedianVolume
from jobs.papers.arms import ARMS
from jobs.papers.castillo import data_folder
from jobs.papers.goodness_of_fit import leave_one_out, measure_lengths
from jobs.papers.length_families import FAMILIES
from jobs.papers.log_normal_tie import log_normal_moments
from jobs.papers.ranking import RankForecast
from jobs.papers.study import Section, Study
from jobs.simulating.truth import Truth
from policies.bundle import policy
from policies.ordering import QueueState
from tests.policies.factories import make_batch

needs_castillo = pytest.mark.skipif(
    data_folder() is None, reason="CASTILLO is not in $TIEBREAK_DATA"
)


@pytest.fixture
def quick_capacity(monkeypatch):
    """Capacity from a few requests: these tests are about the sections, not about their figures."""
    monkeypatch.setattr(tie_online, "CAPACITY_REQUESTS", 40)
    tie_online.capacity_per_s.cache_clear()
    yield
    tie_online.capacity_per_s.cache_clear()


def section(study: Study) -> Section:
    return study.write([(cell, study.measure(cell)) for cell in study.cells])


def test_a_min_section_comes_from_the_unit_step_model():
    made = section(a_min_table.study(requests=60, memory_tokens=1_600, seeds=1))
    assert "M = 1,600 tokens, 60 requests" in made.text
    assert "| two-point {20, 400} |" in made.text
    assert set(made.figures) == {"a_min.svg"}


def test_intervals_hold_the_length_and_hindsight_is_the_measure():
    for cell in a_min_table.study(requests=200, seeds=1).cells:
        instance = a_min_table.make_instance(cell)
        assert all(r.lower <= r.output_tokens <= r.upper for r in instance.requests)
        arms = a_min_table.measure(cell)["arms"]
        assert arms["H-SF"] == {"ratio": 1.0, "evictions": 0, "wasted_share": 0.0}
        assert arms["A_max"]["evictions"] == 0


def castillo_like(rows: int = 30) -> np.ndarray:
    rng = np.random.default_rng(1)
    drawn = np.rint(np.exp(5 + 0.2 * rng.standard_t(3.5, (rows, 10)))).clip(1)
    drawn[0] = 77  # ten identical lengths
    drawn[1, 3] = 15_001  # cut
    return drawn


def test_goodness_of_fit_counts_cut_and_identical_groups():
    cell = {"seed": 0, "bootstrap_prompts": 10, "held_out_prompts": 8, "replications": 19}
    result = measure_lengths(castillo_like(), cell)
    assert (result["prompts"], result["cut_samples"], result["whole"]) == (30, 1, 29)
    assert (result["identical"], result["bootstrapped"], result["held_out"]) == (1, 10, 8)
    for f in result["families"].values():
        assert f["naive"] == f["naive_distinct"]  # ten identical lengths fail in every family
    assert result["families"]["log_t"]["excess"] == 0.0
    assert result["families"]["exponential"]["naive"] < result["families"]["log_t"]["naive"]


def test_held_out_sample_is_not_in_its_own_fit():
    groups = castillo_like()[2:6]
    far = groups.copy()
    far[:, 0] = 5_000
    score, _ = leave_one_out(FAMILIES["log_normal"], groups[:, 1:])
    with_far, _ = leave_one_out(FAMILIES["log_normal"], far)
    assert (with_far > score + 0.5).all()


@needs_castillo
def test_goodness_of_fit_section():
    study = goodness_of_fit.study(
        bootstrap_prompts=4, held_out_prompts=4, groups=4, replications=19
    )
    models = [c for c in study.cells if c["part"] == "model"][:2]
    rest = [c for c in study.cells if c["part"] != "model"]
    made = section(replace(study, cells=[*models, *rest]))
    assert made.text.count("| log-t, nu = 3.5 |") == 2
    assert not made.figures


@needs_castillo
def test_online_section_compares_all_arms_at_a_load(quick_capacity):
    made = section(
        tie_online.study(requests=30, seeds=1, loads=(2.0,), larger_replicas=2, larger_requests=30)
    )
    assert len(made.figures) == 3
    for arm in ARMS.values():
        assert f"| {arm.label} |" in made.text


@needs_castillo
def test_offline_section_states_the_time_until_enough():
    made = section(tie_offline.study(requests=60, until=20, memory_requests=30))
    assert "20 of 60" in made.text
    assert "10 of 30" in made.text


@needs_castillo
def test_ablations_have_a_table_for_each_knob(quick_capacity):
    made = section(ablations.study(requests=20, seeds=1))
    for ablation in ablations.ABLATIONS.values():
        assert f"### {ablation.title}" in made.text
        for arm in ablation.arms:
            assert f"| {arm.label} |" in made.text


@pytest.mark.parametrize("cap", [50.0, 400.0, 1e6])
@pytest.mark.parametrize("std", [0.05, 0.5, 1.5])
def test_log_normal_moments_agree_with_quadrature(cap, std):
    mu, alpha = np.array([5.0]), 0.9
    mean, tail = log_normal_moments(mu, np.array([std]), np.array([cap]), alpha)

    grid = (np.arange(400_000) + 0.5) / 400_000
    lengths = np.minimum(np.exp(5.0 + std * stats.norm.ppf(grid)), cap)
    expected = lengths.mean()
    upper = lengths[grid > alpha].mean() * (1 - alpha)
    assert mean[0] == pytest.approx(expected, rel=1e-3)
    assert tail[0] == pytest.approx(upper / (1 - alpha), rel=3e-3)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.64, 0.9])
def test_ranking_has_the_kendall_correlation_it_claims(tau):
    rng = np.random.default_rng(0)

    def truth(count):
        lengths = np.rint(np.exp(5.7 + rng.standard_normal(count))).astype(np.int64).clip(1, 4096)
        return Truth(np.full(count, 10), np.full(count, 4096), lengths, None, None)

    forecaster = RankForecast(tau).learn(truth(4_000))
    asked = truth(3_000)
    mu, sigma = forecaster(asked, rng)
    assert not sigma.any()
    assert stats.kendalltau(mu, asked.output_tokens).statistic == pytest.approx(tau, abs=0.04)


@needs_castillo
def test_beyond_measures_every_arm_on_every_workload(monkeypatch):
    monkeypatch.setattr(beyond, "_CAPACITY_REQUESTS", 40)
    beyond.capacity_per_s.cache_clear()
    made = section(beyond.study(requests=40, seeds=1, loads=(2.0,), accuracies=(0.8,)))
    for arm in beyond.BEYOND.values():
        assert f"| {arm.label} |" in made.text
    for workload in beyond.WORKLOADS:
        assert f"| {workload} |" in made.text
    beyond.capacity_per_s.cache_clear()


def test_alternative_orderings_prefer_the_smaller_volume():
    batch = make_batch(
        prompt_tokens=[100, 1000, 100], mu=np.log([50.0, 50.0, 500.0]), sigma=[0.2, 0.2, 0.2]
    )
    for ordering in (MedianVolume(), GittinsVolume()):
        keys = ordering.keys(batch, QueueState(waiting=3, slots=1))
        assert np.argsort(keys).tolist() == [0, 1, 2]


def test_the_gittins_index_prefers_who_may_well_be_short():
    batch = make_batch(mu=np.log([100.0, 100.0]), sigma=[0.05, 1.0])
    assert np.argsort(GittinsVolume().scores(batch, QueueState(2, 1))).tolist() == [1, 0]
    assert np.argsort(policy("tiebreak").ordering.keys(batch, QueueState(2, 1))).tolist() == [0, 1]
