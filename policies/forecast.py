"""The forecast of one answer's length: a log-t distribution and an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DEGREES_OF_FREEDOM = 3.5
"""nu of the Student-t in `ln X = mu + sigma T`, fixed for all requests (arXiv:2604.00499)."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Length of an answer in tokens, counted from the original prompt.

    `ln X = mu + sigma T` with `T ~ Student-t(DEGREES_OF_FREEDOM)`; every use censors X at the
    request's own `max_tokens`.

    Attributes:
        mu: Location of ln X.
        sigma: Scale of ln X (the t scale, not a standard deviation); 0 is a point mass.
        lower: Lower end of the interval in tokens, at least 1 (A_min's initial estimate).
        upper: Upper end of the interval in tokens, at least `lower` (A_max's estimate).
        source: Who made it: `prior`, `learned`, `oracle`, ...; reported, never interpreted.

    Raises:
        ValueError: A parameter is not finite or out of range.
    """

    mu: float
    sigma: float
    lower: int
    upper: int
    source: str = "prior"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(
                f"forecast needs finite mu and sigma >= 0, got mu={self.mu}, sigma={self.sigma}"
            )
        if not 1 <= self.lower <= self.upper:
            raise ValueError(
                f"forecast needs 1 <= lower <= upper, got lower={self.lower}, upper={self.upper}"
            )

    @classmethod
    def exact(cls, tokens: int, source: str = "oracle") -> Forecast:
        """A point mass at `tokens`."""
        return cls(mu=math.log(tokens), sigma=0.0, lower=tokens, upper=tokens, source=source)

    def at_least(self, tokens: int) -> Forecast:
        """The forecast of a request that is known to reach `tokens`: A_min's learned bound."""
        if tokens <= self.lower:
            return self
        return replace(self, lower=tokens, upper=max(self.upper, tokens))
