"""A histogram of answer lengths with forgetting, small enough to keep one per kind of prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from policies.batch import Floats, Ints
from policies.fit import Bools

MAX_TOKENS = 1 << 24
"""Longest prompt, answer or cap that is believed; anything above is a mistake of the caller."""

BINS_PER_OCTAVE = 8
_BINS_PER_LOG = BINS_PER_OCTAVE / math.log(2)
_BINS = BINS_PER_OCTAVE * (MAX_TOKENS.bit_length() - 1) + 1
_FORGOTTEN = 1e-9  # weights below are dropped: their quotients lose precision


@dataclass(slots=True)
class LengthHistogramState:
    """A histogram as plain values: (bin, weight, weighted sum of ln length) of each filled bin.

    Attributes:
        ended: Answers that ended by themselves.
        cut: Answers that a cap ended.
    """

    ended: list[tuple[int, float, float]] = field(default_factory=list)
    cut: list[tuple[int, float, float]] = field(default_factory=list)


class LengthHistogram:
    """Weights of observed lengths in logarithmic bins, lengths that a cap cut apart.

    A bin spans a ratio of 2**(1/8) and is represented by the geometric mean of what fell into it,
    so lengths up to 11 tokens are kept exactly and a longer one moves by less than 9 %, without
    bias in its logarithm. Each new observation multiplies the weight of all older ones by
    `2**(-1 / half_life_samples)`.
    """

    def __init__(self) -> None:
        self._weight: Floats = np.zeros((2, _BINS))
        self._log_sum: Floats = np.zeros((2, _BINS))

    @property
    def weight(self) -> float:
        """Observations that the histogram is worth, at most `1.44 half_life_samples` + 1."""
        return float(self._weight.sum())

    def observe(self, tokens: Ints, censored: Bools, half_life_samples: float) -> None:
        """Add lengths, the latest last.

        Args:
            tokens: Lengths in 1..`MAX_TOKENS`, (n,).
            censored: Whether a cap ended the answer, (n,).
            half_life_samples: Observations after which one counts half.
        """
        count = len(tokens)
        weight = np.exp2(-np.arange(count - 1, -1, -1) / half_life_samples)
        log_tokens = np.log(tokens)
        where = (
            censored.astype(np.int64),
            np.rint(log_tokens * _BINS_PER_LOG).astype(np.int64),
        )
        for stored, added in (
            (self._weight, weight),
            (self._log_sum, weight * log_tokens),
        ):
            stored *= 2.0 ** (-count / half_life_samples)
            np.add.at(stored, where, added)
        forgotten = self._weight < _FORGOTTEN
        self._weight[forgotten] = self._log_sum[forgotten] = 0.0

    def samples(self) -> tuple[Floats, Bools, Floats]:
        """The histogram as weighted samples: lengths, whether they were cut, weights, each (k,)."""
        row, column = np.nonzero(self._weight)
        weight = self._weight[row, column]
        return np.exp(self._log_sum[row, column] / weight), row == 1, weight

    def state(self) -> LengthHistogramState:
        """The contents as plain values."""
        ended, cut = (
            [(int(i), float(weight[i]), float(log_sum[i])) for i in np.flatnonzero(weight)]
            for weight, log_sum in zip(self._weight, self._log_sum, strict=True)
        )
        return LengthHistogramState(ended, cut)

    @classmethod
    def of(cls, state: LengthHistogramState) -> LengthHistogram:
        """The histogram with these contents.

        Raises:
            ValueError: A bin or a weight is out of range, or a sum does not belong to its bin.
        """
        histogram = cls()
        for row, entries in enumerate((state.ended, state.cut)):
            if entries:
                histogram._restore(row, *np.array(entries, np.float64).T)
        return histogram

    def _restore(self, row: int, index: Floats, weight: Floats, log_sum: Floats) -> None:
        good = (index >= 0) & (index < _BINS) & np.isfinite(weight) & (weight >= _FORGOTTEN)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            offset = log_sum / weight * _BINS_PER_LOG - index
        good &= np.abs(offset) <= 0.5 + 1e-6
        if not good.all():
            bad = int(np.argmin(good))
            raise ValueError(
                f"bin {index[bad]:.0f} holds weight {weight[bad]} and log sum {log_sum[bad]}: a "
                f"bin is in 0..{_BINS - 1}, a weight finite and > 0, and the mean inside the bin"
            )
        where = index.astype(np.int64)
        self._weight[row, where] = weight
        self._log_sum[row, where] = log_sum
