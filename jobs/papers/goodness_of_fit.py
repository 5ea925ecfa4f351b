"""Which family of distributions describes the lengths of one prompt's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.papers.castillo import SAMPLES, model_names, read_lengths
from jobs.papers.goodness_of_fit_section import write
from jobs.papers.kolmogorov import bootstrap_passes, ks_statistics, naive_passes, whole_tokens
from jobs.papers.length_families import (
    FAMILIES,
    LOG_SCALE_MIN,
    Family,
    token_scores,
)
from jobs.papers.study import Cell, Result, Study
from jobs.simulating.castillo import RUN_CAP_TOKENS
from policies import logt
from policies.batch import Floats
from policies.fit import Bools, fit

TRUTHS: Mapping[str, tuple[float, ...]] = {
    "log_t": (np.log(300.0), 0.15),
    "log_normal": (np.log(300.0), 0.2),
    "gamma": (300.0 / 25, 25.0),
    "exponential": (300.0, 1.0),
}
"""Distributions whose lengths the tests are tried on: about 300 tokens, spread as in CASTILLO."""

TESTED = ("log_t", "log_normal", "gamma", "exponential")
_CENSORED_UP_TO = 5  # of ten: more leave too few lengths to fit
_CELL_HALF = 0.5


def study(
    *,
    bootstrap_prompts: int = 400,
    held_out_prompts: int = 1_000,
    groups: int = 1_000,
    replications: int = 199,
    seed: int = 0,
) -> Study:
    """The study; sizes are per model of CASTILLO.

    Args:
        bootstrap_prompts: Prompts whose test is corrected by the bootstrap.
        held_out_prompts: Prompts whose samples are left out in turn.
        groups: Simulated prompts per true distribution.
        replications: Bootstrap samples per prompt.
        seed: Of the choice of prompts and of all draws.
    """
    models: list[Cell] = [
        {
            "part": "model",
            "model": name,
            "bootstrap_prompts": bootstrap_prompts,
            "held_out_prompts": held_out_prompts,
            "replications": replications,
            "seed": seed,
        }
        for name in model_names()
    ]
    truths: list[Cell] = [
        {
            "part": "truth",
            "truth": truth,
            "samples": samples,
            "groups": groups,
            "replications": replications,
            "seed": seed,
        }
        for samples in (SAMPLES, 2 * SAMPLES, 10 * SAMPLES)
        for truth in TRUTHS
    ]
    return Study(
        name="goodness_of_fit",
        title="Does the log-t fit?",
        cells=[*models, *truths, {"part": "censored"}] if models else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def measure(cell: Cell) -> Result:
    """Measure one cell."""
    if cell["part"] == "model":
        return _measure_model(cell)
    if cell["part"] == "truth":
        return _measure_truth(cell)
    return _measure_censored()


def _measure_model(cell: Cell) -> Result:
    lengths, _ = read_lengths(cell["model"])
    return measure_lengths(lengths.astype(np.float64), cell)


def measure_lengths(lengths: Floats, cell: Cell) -> Result:
    """KS tests and held-out scores of every family on lengths (n, k) of one model."""
    rng = np.random.default_rng(cell["seed"])
    cut = lengths >= RUN_CAP_TOKENS
    whole = lengths[~cut.any(axis=1)]
    identical = (whole == whole[:, :1]).all(axis=1)
    chosen = rng.permutation(len(whole))
    tested, held_out = chosen[: cell["bootstrap_prompts"]], chosen[: cell["held_out_prompts"]]
    families: dict[str, Any] = {}
    reference: Floats | None = None
    for family in (FAMILIES["log_t"], *(f for n, f in FAMILIES.items() if n != "log_t")):
        parameters = family.fit(whole)
        statistics = ks_statistics(family, parameters, whole)
        passes = naive_passes(statistics, whole.shape[1])
        corrected = bootstrap_passes(
            family,
            parameters[tested],
            statistics[tested],
            whole.shape[1],
            cell["replications"],
            rng,
        )
        log_score, log_crps = leave_one_out(family, whole[held_out])
        reference = log_score if reference is None else reference
        families[family.name] = {
            "naive": int(passes.sum()),
            "naive_distinct": int(passes[~identical].sum()),
            "bootstrap": int(corrected.sum()),
            "log_score": float(log_score.sum()),
            "log_crps": float(log_crps.sum()),
            "excess": float((log_score - reference).sum()),
            "excess_squares": float(((log_score - reference) ** 2).sum()),
        }
    return {
        "prompts": len(lengths),
        "samples": lengths.size,
        "cut_samples": int(cut.sum()),
        "whole": len(whole),
        "identical": int(identical.sum()),
        "bootstrapped": len(tested),
        "held_out": len(held_out),
        "families": families,
    }


def leave_one_out(family: Family, lengths: Floats) -> tuple[Floats, Floats]:
    """Scores of each group's samples, each under the fit to all others; means per group, (n,).

    Returns:
        -ln of the probability of the token that came, and the CRPS of ln X.
    """
    count = lengths.shape[1]
    others = np.array([[j for j in range(count) if j != i] for i in range(count)])
    rest = lengths[:, others].reshape(-1, count - 1)
    scores = token_scores(family, family.fit(rest), lengths.reshape(-1))
    return (
        scores.log_score.reshape(-1, count).mean(axis=1),
        scores.log_crps.reshape(-1, count).mean(axis=1),
    )


def _measure_truth(cell: Cell) -> Result:
    """How often each family passes on lengths that are known to come from one of them."""
    rng = np.random.default_rng([cell["seed"], cell["samples"]])
    parameters = np.tile(TRUTHS[cell["truth"]], (cell["groups"], 1))
    lengths = whole_tokens(FAMILIES[cell["truth"]].draw(parameters, cell["samples"], rng))
    passes: dict[str, Any] = {}
    for name in TESTED:
        family = FAMILIES[name]
        fitted = family.fit(lengths)
        statistics = ks_statistics(family, fitted, lengths)
        corrected = bootstrap_passes(
            family, fitted, statistics, cell["samples"], cell["replications"], rng
        )
        passes[name] = {
            "naive": float(naive_passes(statistics, cell["samples"]).mean()),
            "bootstrap": float(corrected.mean()),
        }
    return {"passes": passes}


def _measure_censored() -> Result:
    """Held-out scores where samples were cut: cut lengths as lengths, and as lower bounds."""
    lengths, _ = read_lengths()
    tokens = lengths.astype(np.float64)
    count = (tokens >= RUN_CAP_TOKENS).sum(axis=1)
    tokens = tokens[(count > 0) & (count <= _CENSORED_UP_TO)]
    cut = tokens >= RUN_CAP_TOKENS
    return {
        "prompts": len(tokens),
        "with_cut": int((count > 0).sum()),
        "as_lengths": float(_censored_score(tokens, cut, np.zeros_like(cut)).mean()),
        "as_bounds": float(_censored_score(tokens, cut, cut).mean()),
    }


def _censored_score(tokens: Floats, cut: Bools, told: Bools) -> Floats:
    """-ln of the probability of each held-out sample, a cut one being "at least the cap", (n k,).

    Args:
        tokens: Samples, (n, k).
        cut: Which were cut, (n, k).
        told: Which the fit takes as cut, (n, k).
    """
    count = tokens.shape[1]
    others = np.array([[j for j in range(count) if j != i] for i in range(count)])
    rest = tokens[:, others].reshape(-1, count - 1)
    mu, sigma = fit(rest, told[:, others].reshape(-1, count - 1), sigma_min=LOG_SCALE_MIN)
    out, ended = tokens.reshape(-1), ~cut.reshape(-1)
    above = logt.survival(mu, sigma, np.where(ended, out - _CELL_HALF, RUN_CAP_TOKENS))
    beyond = np.where(ended, logt.survival(mu, sigma, out + _CELL_HALF), 0.0)
    below = logt.cdf(mu, sigma, out + _CELL_HALF) - logt.cdf(mu, sigma, out - _CELL_HALF)
    mass = np.where(ended & (above > _CELL_HALF), below, above - beyond)
    score: Floats = -np.log(np.maximum(mass, 1e-12))
    return score
