"""Requests with their forecasts as columns, so that a policy decides over arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.forecast import Forecast
from policies.request import Request

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class UnknownLengthError(ValueError):
    """A policy that needs true output lengths met a request without one."""


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """n requests in columns of shape (n,).

    Attributes:
        prompt_tokens: Prompt lengths.
        max_tokens: Caps on output tokens.
        generated_tokens: Output tokens that exist already.
        arrival_s: Arrival times in seconds.
        mu: Location of ln X.
        sigma: Scale of ln X.
        lower: Lower bound on the output length; for a request that was evicted, the learned one.
        upper: Upper bound on the output length.
        output_tokens: True output lengths, 0 where unknown; for oracle policies only.
    """

    prompt_tokens: Ints
    max_tokens: Ints
    generated_tokens: Ints
    arrival_s: Floats
    mu: Floats
    sigma: Floats
    lower: Ints
    upper: Ints
    output_tokens: Ints

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @classmethod
    def of(cls, requests: Sequence[Request], forecasts: Sequence[Forecast]) -> RequestBatch:
        """Columns of `requests` and their `forecasts`, in the given order."""
        # Two matrices, because an array costs more than the few numbers in it.
        ints = np.array(
            [
                [r.prompt_tokens for r in requests],
                [r.max_tokens for r in requests],
                [r.generated_tokens for r in requests],
                [f.lower for f in forecasts],
                [f.upper for f in forecasts],
                [r.output_tokens or 0 for r in requests],
            ],
            np.int64,
        )
        floats = np.array(
            [
                [r.arrival_s for r in requests],
                [f.mu for f in forecasts],
                [f.sigma for f in forecasts],
            ],
            np.float64,
        )
        prompt_tokens, max_tokens, generated_tokens, lower, upper, output_tokens = ints
        arrival_s, mu, sigma = floats
        return cls(
            prompt_tokens,
            max_tokens,
            generated_tokens,
            arrival_s,
            mu,
            sigma,
            lower,
            upper,
            output_tokens,
        )

    def known_output_tokens(self) -> Ints:
        """The true output lengths, (n,).

        Raises:
            UnknownLengthError: Some request has none, as in production.
        """
        unknown = int((self.output_tokens < 1).sum())
        if unknown:
            raise UnknownLengthError(
                f"{unknown} of {len(self)} requests have no true output length; oracle policies "
                "are for simulation only: choose another ordering and admission, or set "
                "Request.output_tokens"
            )
        return self.output_tokens
