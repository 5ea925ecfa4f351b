"""The intervals in which output lengths are forecast to lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from cluster.workload import WorkloadError
from jobs.simulating.forecasts import check_coverage
from jobs.simulating.truth import Truth
from policies.batch import Floats, Ints
from policies.logt import quantile

_ROUNDING = 1e-9  # keeps exp(ln n) at n


class Interval(Protocol):
    """A way to make intervals."""

    def bounds(self, truth: Truth, mu: Floats, sigma: Floats) -> tuple[Ints, Ints]:
        """Lower and upper ends in tokens, 1 <= lower <= upper <= max_tokens, each (n,).

        Args:
            truth: What is true of the requests.
            mu: Forecast location of ln X, (n,).
            sigma: Forecast scale of ln X, (n,).
        """


@dataclass(frozen=True, slots=True)
class QuantileInterval:
    """The central interval of the forecast.

    Attributes:
        coverage: Its probability, in (0, 1).

    Raises:
        WorkloadError: The coverage is out of range.
    """

    coverage: float = 0.9

    def __post_init__(self) -> None:
        check_coverage(self.coverage)

    def bounds(self, truth: Truth, mu: Floats, sigma: Floats) -> tuple[Ints, Ints]:
        """Quantiles at equal probabilities from either end, rounded outwards."""
        tail = (1 - self.coverage) / 2
        return _within(truth, quantile(mu, sigma, tail), quantile(mu, sigma, 1 - tail))


@dataclass(frozen=True, slots=True)
class CommonInterval:
    """One interval for all requests (arXiv:2508.14544).

    Attributes:
        upper_tokens: Upper end, at least `lower_tokens`; None is each request's `max_tokens`.
        lower_tokens: Lower end, at least 1.

    Raises:
        WorkloadError: An end is out of range.
    """

    upper_tokens: int | None = None
    lower_tokens: int = 1

    def __post_init__(self) -> None:
        upper_tokens = self.lower_tokens if self.upper_tokens is None else self.upper_tokens
        if not 1 <= self.lower_tokens <= upper_tokens:
            raise WorkloadError(
                f"the common interval is [{self.lower_tokens}, {self.upper_tokens}], must have "
                "1 <= lower <= upper"
            )

    def bounds(self, truth: Truth, mu: Floats, sigma: Floats) -> tuple[Ints, Ints]:
        """The same for each, cut at its `max_tokens`."""
        upper = truth.max_tokens if self.upper_tokens is None else self.upper_tokens
        return _within(truth, self.lower_tokens, upper)


@dataclass(frozen=True, slots=True)
class BinInterval:
    """The bin of a fixed width that holds the true length: a perfect classifier's interval.

    arXiv:2508.14544 predicts such bins; bin b is `[b width + 1, (b + 1) width]`.

    Attributes:
        width_tokens: At least 1.

    Raises:
        WorkloadError: The width is below 1.
    """

    width_tokens: int

    def __post_init__(self) -> None:
        if self.width_tokens < 1:
            raise WorkloadError(f"bins are {self.width_tokens} tokens wide, must be >= 1")

    def bounds(self, truth: Truth, mu: Floats, sigma: Floats) -> tuple[Ints, Ints]:
        """The ends of each true length's bin."""
        start = (truth.output_tokens - 1) // self.width_tokens * self.width_tokens
        return _within(truth, start + 1, start + self.width_tokens)


@dataclass(frozen=True, slots=True)
class RelativeInterval:
    """`[(1 - x) o, (1 + x) o]` around each true length o (arXiv:2508.14544), rounded inwards.

    Lengths are whole, so the whole numbers within hold the truth as surely, and a lower end that is
    rounded down would make short answers alike.

    Attributes:
        x: Half-width as a share of the true length, in [0, 1].

    Raises:
        WorkloadError: x is out of range.
    """

    x: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and 0 <= self.x <= 1):
            raise WorkloadError(
                f"x of the intervals around the truth is {self.x}, must be in 0 to 1"
            )

    def bounds(self, truth: Truth, mu: Floats, sigma: Floats) -> tuple[Ints, Ints]:
        """The ends around each true length."""
        length = truth.output_tokens
        low = np.ceil((1 - self.x) * length * (1 - _ROUNDING))
        high = np.floor((1 + self.x) * length * (1 + _ROUNDING))
        return _within(truth, low, high)


def _within(truth: Truth, lower: ArrayLike, upper: ArrayLike) -> tuple[Ints, Ints]:
    """Whole tokens in 1..max_tokens, rounded outwards."""
    low = np.clip(np.floor(np.multiply(lower, 1 + _ROUNDING)), 1, truth.max_tokens)
    high = np.clip(np.ceil(np.multiply(upper, 1 - _ROUNDING)), low, truth.max_tokens)
    return low.astype(np.int64), high.astype(np.int64)
