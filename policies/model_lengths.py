"""How long one model's answers have been, by the length of the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from policies.batch import Floats, Ints
from policies.fit import Bools, fit
from policies.forecast import DEGREES_OF_FREEDOM, Forecast
from policies.length_histogram import MAX_TOKENS, LengthHistogram, LengthHistogramState
from policies.logt import quantile

DEFAULT_MU = math.log(300)
"""Location for a model that has not answered yet: amid the fitted medians of the 13 instruct models
of CASTILLO, 166 to 438 tokens."""

DEFAULT_SIGMA = 1.0
"""Scale for such a model: above the fitted ones of those 13, 0.24 to 0.86."""

DEFAULT_WORTH = 4.0
"""Answers that the default counts for in the fit of a model."""

MODEL_WORTH = 20.0
"""Answers that the model's fit counts for in the fit of one bucket of prompt lengths."""

REFIT_SHARE = 0.05
"""The fits are renewed when at least this share of the answers they would rest on is new."""

_BUCKETS = MAX_TOKENS.bit_length()
_PSEUDO_T = special.stdtrit(DEGREES_OF_FREEDOM, (np.arange(32) + 0.5) / 32)


@dataclass(slots=True)
class ModelLengthsState:
    """One model's answers as plain values.

    Attributes:
        unfitted: Answers that came after the fits were made.
        mu: Fitted location per bucket.
        sigma: Fitted scale per bucket.
        overall: All answers.
        buckets: Answers by bucket, for those that have any.
    """

    unfitted: int
    mu: list[float]
    sigma: list[float]
    overall: LengthHistogramState
    buckets: dict[int, LengthHistogramState]


class ModelLengths:
    """Log-t fits to the answers of one model, one per bucket of prompt lengths.

    Bucket b holds prompts of 2**b to 2**(b+1) - 1 tokens. A fit is a weighted censored maximum
    likelihood in which the level above takes part as pseudo-samples at equally probable quantiles
    of its own fit: the default with a worth of `DEFAULT_WORTH` answers in the model's fit, and the
    model's fit with `MODEL_WORTH` answers in each bucket's. So a bucket with few answers leans on
    the model, a model with few on the default, and either fades as answers come in. Forgetting
    counts a bucket's own answers: a rare prompt length keeps its history longer.
    """

    def __init__(self) -> None:
        self._overall = LengthHistogram()
        self._buckets: dict[int, LengthHistogram] = {}
        self._mu = np.full(_BUCKETS, DEFAULT_MU)
        self._sigma = np.full(_BUCKETS, DEFAULT_SIGMA)
        self._unfitted = 0

    def observe(
        self,
        prompt_tokens: Ints,
        output_tokens: Ints,
        censored: Bools,
        half_life_samples: float,
    ) -> None:
        """Add answers, the latest last; all arrays (n,), lengths in 1..`MAX_TOKENS`."""
        self._overall.observe(output_tokens, censored, half_life_samples)
        bucket = buckets_of(prompt_tokens)
        for index in np.unique(bucket).tolist():
            part = bucket == index
            histogram = self._buckets.setdefault(index, LengthHistogram())
            histogram.observe(output_tokens[part], censored[part], half_life_samples)
        self._unfitted += len(output_tokens)

    def parameters(self, prompt_tokens: Ints) -> tuple[Floats, Floats]:
        """Location and scale for prompts of these lengths, each (n,)."""
        bucket = buckets_of(prompt_tokens)
        return self._mu[bucket], self._sigma[bucket]

    def forecasts(
        self, prompt_tokens: Ints, max_tokens: Ints, coverage: float = 0.9
    ) -> list[Forecast]:
        """Forecasts for prompts of these lengths.

        Args:
            prompt_tokens: Lengths of the prompts, (n,).
            max_tokens: The requests' own caps, at which intervals end, (n,).
            coverage: Share of answers that an interval should contain; its ends are equally far
                out in probability.
        """
        tail = (1 - coverage) / 2
        mu, sigma = self.parameters(prompt_tokens)
        lower = np.clip(np.floor(quantile(mu, sigma, tail)), 1, max_tokens).astype(np.int64)
        upper = np.clip(np.ceil(quantile(mu, sigma, 1 - tail)), 1, max_tokens).astype(np.int64)
        columns = (mu.tolist(), sigma.tolist(), lower.tolist(), upper.tolist())
        return [Forecast(*row, source="prior") for row in zip(*columns, strict=True)]

    def refresh(self) -> None:
        """Renew the fits if enough answers came since they were made."""
        if not self._unfitted or self._unfitted < REFIT_SHARE * self._overall.weight:
            return
        mu, sigma = _fit([self._overall], DEFAULT_MU, DEFAULT_SIGMA, DEFAULT_WORTH)
        self._mu[:], self._sigma[:] = mu, sigma
        filled = list(self._buckets)
        self._mu[filled], self._sigma[filled] = _fit(
            list(self._buckets.values()), float(mu[0]), float(sigma[0]), MODEL_WORTH
        )
        self._unfitted = 0

    def state(self) -> ModelLengthsState:
        """Everything as plain values."""
        return ModelLengthsState(
            unfitted=self._unfitted,
            mu=self._mu.tolist(),
            sigma=self._sigma.tolist(),
            overall=self._overall.state(),
            buckets={index: lengths.state() for index, lengths in self._buckets.items()},
        )

    @classmethod
    def of(cls, state: ModelLengthsState) -> ModelLengths:
        """The model with this state.

        Raises:
            ValueError: A value is out of range.
        """
        model = cls()
        mu, sigma = np.array(state.mu, np.float64), np.array(state.sigma, np.float64)
        if not (mu.shape == sigma.shape == (_BUCKETS,) and np.isfinite([mu, sigma]).all()):
            raise ValueError(f"mu and sigma must be {_BUCKETS} finite numbers each")
        if sigma.min() <= 0 or state.unfitted < 0:
            raise ValueError(
                f"the smallest sigma is {sigma.min()} and unfitted is {state.unfitted}, must be "
                "> 0 and >= 0"
            )
        if not all(0 <= index < _BUCKETS for index in state.buckets):
            raise ValueError(f"buckets are {sorted(state.buckets)}, must be in 0..{_BUCKETS - 1}")
        model._mu, model._sigma, model._unfitted = mu, sigma, state.unfitted
        model._overall = LengthHistogram.of(state.overall)
        model._buckets = {i: LengthHistogram.of(h) for i, h in state.buckets.items()}
        return model


def buckets_of(prompt_tokens: Ints) -> Ints:
    """The bucket of each prompt length, floor(log2), (n,)."""
    return np.frexp(prompt_tokens)[1].astype(np.int64) - 1


def _fit(
    histograms: Sequence[LengthHistogram], mu: float, sigma: float, worth: float
) -> tuple[Floats, Floats]:
    """Location and scale per histogram, (n,); the log-t leant on counts for `worth` answers."""
    parts = [histogram.samples() for histogram in histograms]
    pseudo = len(_PSEUDO_T)
    shape = len(parts), pseudo + max(len(weight) for _, _, weight in parts)
    lengths, cut, weights = np.ones(shape), np.zeros(shape, np.bool_), np.zeros(shape)
    lengths[:, :pseudo] = np.exp(mu + sigma * _PSEUDO_T)
    weights[:, :pseudo] = worth / pseudo
    for row, (length, was_cut, weight) in enumerate(parts):
        part = slice(pseudo, pseudo + len(weight))
        lengths[row, part], cut[row, part], weights[row, part] = length, was_cut, weight
    return fit(lengths, cut, weights)
