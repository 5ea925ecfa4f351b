"""Kolmogorov-Smirnov tests of many small samples at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import stats

from jobs.papers.length_families import Family
from policies.batch import Floats
from policies.fit import Bools

LEVEL = 0.05
_CHUNK = 100
"""Prompts whose simulated samples are refitted together."""


def ks_statistics(family: Family, parameters: Floats, lengths: Floats) -> Floats:
    """Largest distance between the empirical and the fitted CDF of each group, (n,).

    Args:
        family: The family.
        parameters: Of each group, (n, p).
        lengths: The groups, (n, k).
    """
    ordered = np.sort(lengths, axis=1)
    fitted = family.cdf(parameters, ordered)
    count = lengths.shape[1]
    ranks = np.arange(1, count + 1) / count
    above, below = ranks - fitted, fitted - (ranks - 1 / count)
    distance: Floats = np.maximum(above.max(axis=1), below.max(axis=1))
    return distance


def naive_passes(statistics: Floats, samples: int) -> Bools:
    """Whether each group passes as if its parameters had been known beforehand, (n,).

    This is the test behind published pass rates. It is too kind: parameters estimated from the same
    samples bring the fitted CDF nearer to them than the true one is (Lilliefors 1967).
    """
    passes: Bools = stats.kstwo.sf(statistics, samples) > LEVEL
    return passes


def bootstrap_passes(
    family: Family,
    parameters: Floats,
    statistics: Floats,
    samples: int,
    replications: int,
    rng: np.random.Generator,
) -> Bools:
    """Whether each group passes its own parametric bootstrap, (n,).

    Samples drawn from the fitted distribution are rounded to whole tokens as lengths are, refitted,
    and their statistics compared with the group's own, so that a true family passes with
    probability 0.95 (Lilliefors 1967; Stute, Gonzalez Manteiga and Presedo Quindimil 1993).

    Args:
        family: The family.
        parameters: Fitted to each group, (n, p).
        statistics: Of each group, (n,).
        samples: Lengths in a group.
        replications: Simulated samples per group.
        rng: Source of the draws.
    """
    parts = [
        (larger + 1) / (replications + 1) > LEVEL
        for larger in _exceedances(family, parameters, statistics, samples, replications, rng)
    ]
    return np.concatenate(parts)


def _exceedances(
    family: Family,
    parameters: Floats,
    statistics: Floats,
    samples: int,
    replications: int,
    rng: np.random.Generator,
) -> Iterator[Floats]:
    """Simulated statistics at least as large as the observed, chunk by chunk."""
    for start in range(0, len(parameters), _CHUNK):
        own = parameters[start : start + _CHUNK]
        drawn = whole_tokens(family.draw(np.repeat(own, replications, axis=0), samples, rng))
        simulated = ks_statistics(family, family.fit(drawn), drawn).reshape(len(own), -1)
        observed = statistics[start : start + _CHUNK, None]
        yield (simulated >= observed).sum(axis=1).astype(np.float64)


def whole_tokens(lengths: Floats) -> Floats:
    """Lengths rounded to whole tokens, at least 1."""
    rounded: Floats = np.maximum(np.rint(lengths), 1.0)
    return rounded
