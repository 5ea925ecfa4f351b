"""Admissions: the output length that the memory projection assumes of each request.

To add one, write one class here with a `name`, options as dataclass fields and `estimates`, and
decorate it; another package declares it as an entry point of the group `tiebreak.admissions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from policies import logt
from policies.batch import Floats, Ints, RequestBatch
from policies.compiled import compiled
from policies.registry import InvalidOptionError, Registry, check_choice

_OVERDUE = ("alive", "double")
# exp(ln n) may come out a hair above n; that must not count as another token.
_ROUNDING_TOKENS = 1e-6


class Admission(Protocol):
    """Decides which length the projection assumes."""

    name: ClassVar[str]

    def estimates(self, batch: RequestBatch) -> Ints:
        """Projected total output tokens, (n,).

        Always above `generated_tokens` and at most `max_tokens`.
        """


ADMISSIONS: Registry[Admission] = Registry("admission", "tiebreak.admissions", method="estimates")


@dataclass(frozen=True, slots=True)
class BoundAdmission:
    """Assumes a bound, which a request may outlive.

    Attributes:
        overdue: What is assumed of a request that has reached its estimate: `alive`, one more
            step, never admits beyond memory; `double`, as many more steps as it has made.

    Raises:
        InvalidOptionError: `overdue` is neither.
    """

    overdue: str = "alive"

    def __post_init__(self) -> None:
        check_choice("overdue", self.overdue, _OVERDUE)

    def prolonged(self, estimates: Ints, batch: RequestBatch) -> Ints:
        """`estimates` with the overdue ones replaced, within the limits of the protocol, (n,)."""
        return _prolonged(
            estimates, batch.generated_tokens, batch.max_tokens, self.overdue == "double"
        )


@ADMISSIONS.register
@dataclass(frozen=True, slots=True)
class Greedy:
    """Projects nothing: one more token each, as vLLM's own scheduler does."""

    name: ClassVar[str] = "greedy"

    def estimates(self, batch: RequestBatch) -> Ints:
        """See `Admission.estimates`."""
        return batch.generated_tokens + 1


@ADMISSIONS.register
@dataclass(frozen=True, slots=True)
class AMax(BoundAdmission):
    """A_max: the upper bound (arXiv:2508.14544)."""

    name: ClassVar[str] = "a_max"

    def estimates(self, batch: RequestBatch) -> Ints:
        """See `Admission.estimates`."""
        return self.prolonged(batch.upper, batch)


@ADMISSIONS.register
@dataclass(frozen=True, slots=True)
class AMin(BoundAdmission):
    """A_min: the lower bound, learned ones included (arXiv:2508.14544)."""

    name: ClassVar[str] = "a_min"

    def estimates(self, batch: RequestBatch) -> Ints:
        """See `Admission.estimates`."""
        return self.prolonged(batch.lower, batch)


@ADMISSIONS.register
@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of the forecast, given the tokens generated so far; it is never overdue.

    Attributes:
        q: Probability in (0, 1) that the answer is no longer than assumed. A small one packs
            densely and evicts more; below the default, which was the best of 0.15 to 0.7 over
            prompts, models and loads, evictions cost what the packing gains.

    Raises:
        InvalidOptionError: `q` is out of range.
    """

    name: ClassVar[str] = "quantile"
    q: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise InvalidOptionError(f"q is {self.q}, must be above 0 and below 1")

    def estimates(self, batch: RequestBatch) -> Ints:
        """See `Admission.estimates`."""
        tokens = logt.conditional_quantile(
            batch.mu, batch.sigma, batch.max_tokens, batch.generated_tokens, self.q
        )
        return _whole(tokens, batch.generated_tokens, batch.max_tokens)


@ADMISSIONS.register
@dataclass(frozen=True, slots=True)
class Oracle:
    """The true length; for simulation only (raises `UnknownLengthError`)."""

    name: ClassVar[str] = "oracle"

    def estimates(self, batch: RequestBatch) -> Ints:
        """See `Admission.estimates`."""
        return _within_limits(batch.known_output_tokens(), batch)


def _within_limits(estimates: Ints, batch: RequestBatch) -> Ints:
    least: Ints = np.maximum(estimates, batch.generated_tokens + 1)
    return np.minimum(least, batch.max_tokens, out=least)


@compiled
def _prolonged(estimates: Ints, generated: Ints, cap: Ints, double: bool) -> Ints:
    """`estimates` with the overdue ones replaced, within the limits of the protocol, (n,)."""
    prolonged = np.empty(len(estimates), np.int64)
    for i in range(len(estimates)):
        estimate, done = estimates[i], generated[i]
        if done >= estimate:
            estimate = done + (max(done, 1) if double else 1)
        prolonged[i] = min(estimate, cap[i])
    return prolonged


@compiled
def _whole(tokens: Floats, generated: Ints, cap: Ints) -> Ints:
    """`tokens` rounded up, within the limits of the protocol, (n,)."""
    estimates = np.empty(len(tokens), np.int64)
    for i in range(len(tokens)):
        up = math.ceil(tokens[i] - _ROUNDING_TOKENS)
        estimates[i] = min(max(up, generated[i] + 1), cap[i])
    return estimates
