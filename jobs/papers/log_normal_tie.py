"""TIE's score under a log-normal instead of a log-t, censored at the cap like the original."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import special

from policies.batch import Floats, RequestBatch
from policies.forecast import DEGREES_OF_FREEDOM
from policies.ordering import QueueState, TailOrdering

STD_OF_SCALE = math.sqrt(DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2))
"""Standard deviation of ln X over the t scale sigma."""

_SIGMA_MIN = 1e-9


@dataclass(frozen=True, slots=True)
class LogNormalTie(TailOrdering):
    """`E[X~] + beta CVaR_alpha[X~]` for a log-normal X with the forecast's mean and spread of ln X.

    The published comparison (arXiv:2604.00499) scored the log-normal without censoring at the cap;
    this one censors both alike, so that only the tail differs.
    """

    name: ClassVar[str] = "log_normal_tie"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Tail-inflated length in tokens, (n,)."""
        mean, tail = log_normal_moments(
            batch.mu, STD_OF_SCALE * batch.sigma, batch.max_tokens.astype(np.float64), self.alpha
        )
        return mean + self.beta(queue) * tail


def log_normal_moments(mu: Floats, std: Floats, cap: Floats, alpha: float) -> tuple[Floats, Floats]:
    """`E[X~]` and `CVaR_alpha[X~]` of `X~ = min(X, cap)` with ln X normal, each (n,).

    Args:
        mu: Mean of ln X, (n,).
        std: Standard deviation of ln X, at least 0, (n,).
        cap: Cap in tokens, (n,).
        alpha: Level of the tail, in (0, 1).
    """
    std = np.maximum(std, _SIGMA_MIN)
    end, var = (np.log(cap) - mu) / std, float(special.ndtri(alpha))
    beyond = cap * special.ndtr(-end)
    # Below the cap the mean is e^(mu + std^2 / 2) times a normal probability shifted by std; its
    # logarithm is summed first, because the factors alone may overflow.
    log_mean = mu + std**2 / 2
    body = np.exp(log_mean + special.log_ndtr(end - std))
    below_var = np.exp(log_mean + special.log_ndtr(var - std))
    tail = np.where(end > var, (body - below_var + beyond) / (1 - alpha), cap)
    return body + beyond, tail
