"""Finished answers beside what a network and the prior had forecast of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from policies.batch import Floats
from policies.fit import Bools
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.length_histogram import MAX_TOKENS
from predictor.drift import log_likelihood, residuals

COLUMNS = 8
_RANK_T: Floats = np.asarray(special.stdtrit(NU, (np.arange(64) + 0.5) / 64), np.float64)


@dataclass(frozen=True, slots=True)
class Evidence:
    """n finished answers, oldest first.

    Attributes:
        columns: Location and scale of ln X as the network gave them, those of the prior, the
            length in tokens, whether something cut the answer (0 or 1), the cap, and whether the
            interval held it (0, 1, NaN where nobody knows), (8, n).
    """

    columns: Floats

    @classmethod
    def of(cls, *columns: ArrayLike) -> Evidence:
        """Answers of which nobody knows yet whether the interval held them.

        Args:
            *columns: The first seven of `columns`, each (n,); a cap of 0 is not known.

        Raises:
            ValueError: Shapes differ or a value is out of range.
        """
        shapes = {np.shape(column) for column in columns}
        if len(shapes) > 1 or len(np.shape(columns[0])) != 1:
            raise ValueError(f"outcomes need one value per request in each column, got {shapes}")
        rows = np.full((COLUMNS, len(np.asarray(columns[0]))), math.nan)
        rows[:-1] = columns
        rows[6] = np.where(rows[6] == 0, MAX_TOKENS, rows[6])
        _check(rows)
        return cls(rows)

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    @property
    def learned(self) -> tuple[Floats, Floats]:
        """Location and scale as the network gave them, each (n,)."""
        return self.columns[0], self.columns[1]

    @property
    def prior(self) -> tuple[Floats, Floats]:
        """Location and scale as the prior gave them, each (n,)."""
        return self.columns[2], self.columns[3]

    @property
    def tokens(self) -> Floats:
        """Lengths, (n,)."""
        tokens: Floats = self.columns[4]
        return tokens

    @property
    def cut(self) -> Bools:
        """Whether something cut the answer, (n,)."""
        cut: Bools = self.columns[5] > 0
        return cut

    @property
    def cap(self) -> Floats:
        """Caps, (n,)."""
        cap: Floats = self.columns[6]
        return cap

    @property
    def inside(self) -> Floats:
        """Whether the interval held the answer, (n,): 0, 1 or NaN."""
        inside: Floats = self.columns[7]
        return inside

    def latest(self, count: int) -> Evidence:
        """The last `count`."""
        return Evidence(self.columns[:, -count:])

    def parts(self, size: int) -> list[Evidence]:
        """Views of `size` answers each, in order; the last may have fewer."""
        return [
            Evidence(self.columns[:, start : start + size]) for start in range(0, len(self), size)
        ]

    def followed_by(self, other: Evidence) -> Evidence:
        """The answers of both."""
        return Evidence(np.concatenate((self.columns, other.columns), axis=1))

    def log_likelihood(self, mu: Floats, sigma: Floats) -> Floats:
        """Log-likelihood in nats of each answer, forecast thus, (n,), but for a common term."""
        return log_likelihood(residuals(self.tokens, mu, sigma), sigma, self.cut)

    def rank(self, mu: Floats, sigma: Floats) -> float:
        """Kendall's tau-b between E[min(X, cap)], forecast thus, and the lengths; NaN: no value."""
        if len(self) < 2:
            return math.nan
        exponent = np.minimum(mu[:, None] + sigma[:, None] * _RANK_T, np.log(self.cap)[:, None])
        return float(stats.kendalltau(np.exp(exponent).mean(axis=1), self.tokens).statistic)

    def coverage(self) -> float:
        """Share of answers that the interval held; NaN: none is known."""
        known = self.inside[~np.isnan(self.inside)]
        return float(known.mean()) if len(known) else math.nan

    def state(self) -> list[list[float]]:
        """Plain values that JSON can hold."""
        rows: list[list[float]] = np.nan_to_num(self.columns, nan=-1.0).tolist()
        return rows

    @classmethod
    def from_state(cls, rows: Sequence[Sequence[float]]) -> Evidence:
        """What `state` was taken of.

        Raises:
            ValueError: It is not intact.
        """
        columns = np.array(rows, np.float64)
        if columns.ndim != 2 or len(columns) != COLUMNS:
            raise ValueError(f"outcomes have shape {columns.shape}, must have {COLUMNS} columns")
        columns[-1, columns[-1] < 0] = math.nan
        _check(columns)
        return cls(columns)


def _check(columns: Floats) -> None:
    mu, sigma, prior_mu, prior_sigma, tokens, _, cap, _ = columns
    with np.errstate(invalid="ignore"):
        sized = (tokens >= 1) & (tokens <= MAX_TOKENS) & (cap >= 1) & (cap <= MAX_TOKENS)
        good = np.isfinite(columns[:-1]).all(axis=0) & sized & (sigma > 0) & (prior_sigma > 0)
    if not good.all():
        bad = int(np.argmin(good))
        raise ValueError(
            f"outcome {bad} has {tokens[bad]} tokens with a cap of {cap[bad]}, forecast by mu "
            f"{mu[bad]} and sigma {sigma[bad]}, by the prior {prior_mu[bad]} and "
            f"{prior_sigma[bad]}: sizes must be in 1..{MAX_TOKENS} (a cap of 0: not known), mu "
            "finite, sigma finite and above 0"
        )
