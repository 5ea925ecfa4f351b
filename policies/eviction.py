"""Evictions: who gives up memory first, and what is learnt of it.

To add one, write one class here with a `name`, options as dataclass fields and `keys`, and decorate
it; another package declares it as an entry point of the group `tiebreak.evictions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np

from policies import logt
from policies.batch import Floats, Ints, RequestBatch
from policies.forecast import Forecast
from policies.registry import Registry, check_choice
from policies.request import Request

_VARIANTS = ("realtime", "stored")

NEVER = int(np.iinfo(np.int64).max // 2)
"""Output tokens that no request reaches."""


class Eviction(Protocol):
    """Decides who is evicted first, who is evicted in any case, and what is learnt of it.

    Attributes:
        memory_only: Whether `deadlines` is `NEVER` for all, so that nobody need ask.
    """

    name: ClassVar[str]
    memory_only: ClassVar[bool]

    def keys(self, batch: RequestBatch, started: Floats) -> Floats:
        """Keys of running requests, (n,); the smallest is the first victim.

        Args:
            batch: The running requests.
            started: When each was (re)started, on any one clock, (n,).
        """

    def deadlines(self, batch: RequestBatch) -> Ints:
        """Output tokens at which a request that still runs is evicted whatever the memory, (n,).

        `NEVER` where only a lack of memory evicts.
        """

    def learned(self, batch: RequestBatch) -> Ints:
        """Lower bounds of requests that are evicted now, at most `max_tokens`, (n,)."""


class MemoryEviction:
    """The part of an `Eviction` that evicts for lack of memory only."""

    __slots__ = ()
    memory_only: ClassVar[bool] = True

    def deadlines(self, batch: RequestBatch) -> Ints:
        """See `Eviction.deadlines`."""
        return np.full(len(batch), NEVER)

    def learned(self, batch: RequestBatch) -> Ints:
        """See `Eviction.learned`: a request is at least as long as what it has generated."""
        return learned_lower(batch.lower, batch.generated_tokens, batch.max_tokens)


EVICTIONS: Registry[Eviction] = Registry("eviction", "tiebreak.evictions", method="keys")


@EVICTIONS.register
@dataclass(frozen=True, slots=True)
class Latest(MemoryEviction):
    """Most recently started first, as vLLM preempts."""

    name: ClassVar[str] = "latest"

    def keys(self, batch: RequestBatch, started: Floats) -> Floats:
        """See `Eviction.keys`."""
        return -started


@EVICTIONS.register
@dataclass(frozen=True, slots=True)
class ShortestLowerBound(MemoryEviction):
    """A_min's ordered eviction: the smallest lower bound first (arXiv:2508.14544).

    Attributes:
        variant: `realtime` counts the tokens generated since as part of the bound; `stored` takes
            the bound as it was learnt, which suits requests that all share one interval.

    Raises:
        InvalidOptionError: `variant` is neither.
    """

    name: ClassVar[str] = "shortest_lower_bound"
    variant: str = "realtime"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, _VARIANTS)

    def keys(self, batch: RequestBatch, started: Floats) -> Floats:
        """See `Eviction.keys`."""
        if self.variant == "stored":
            return batch.lower.astype(np.float64)
        return np.maximum(batch.lower, batch.generated_tokens).astype(np.float64)


@EVICTIONS.register
@dataclass(frozen=True, slots=True)
class LongestRemaining(MemoryEviction):
    """The longest remaining length first: the conditional median, given the tokens generated.

    Among requests that are all to be finished, the one with most left to do costs least when it is
    put off, and it gives way to several short ones. A request that turned out long is found by its
    own forecast, conditioned on what it has generated.
    """

    name: ClassVar[str] = "longest_remaining"

    def keys(self, batch: RequestBatch, started: Floats) -> Floats:
        """See `Eviction.keys`."""
        median = logt.conditional_quantile(
            batch.mu, batch.sigma, batch.max_tokens, batch.generated_tokens, 0.5
        )
        return batch.generated_tokens - median


@EVICTIONS.register
@dataclass(frozen=True, slots=True)
class Promotion(MemoryEviction):
    """Promote-l: who outlives the lower bound is taken for the upper one (arXiv:2508.14544).

    For lengths that are one of two values: a request that has generated `lower` tokens and goes on
    is evicted at once and is from then on known to be `upper` long.
    """

    name: ClassVar[str] = "promotion"
    memory_only: ClassVar[bool] = False

    def keys(self, batch: RequestBatch, started: Floats) -> Floats:
        """See `Eviction.keys`."""
        return batch.lower.astype(np.float64)

    def deadlines(self, batch: RequestBatch) -> Ints:
        """See `Eviction.deadlines`."""
        return np.where(batch.lower < batch.upper, batch.lower, NEVER)

    def learned(self, batch: RequestBatch) -> Ints:
        """See `Eviction.learned`."""
        return np.minimum(batch.upper, batch.max_tokens)


def after_eviction(
    eviction: Eviction, request: Request, forecast: Forecast, tokens: int
) -> tuple[Request, Forecast]:
    """A request and its forecast once it was evicted at `tokens` output tokens, below its cap."""
    reached = replace(request, generated_tokens=tokens)
    (lower,) = eviction.learned(RequestBatch.of([reached], [forecast]))
    return reached, forecast.at_least(int(lower))


def choose_victims(keys: Floats, sizes: Ints, excess: int) -> Ints:
    """The fewest requests, taken in ascending key, that free at least `excess`.

    Args:
        keys: Eviction keys, (n,); ties go by index.
        sizes: What evicting each would free, at least 0, in the unit of `excess`, (n,).
        excess: How much must be freed; 0 or less frees nothing.

    Returns:
        Indices in order of eviction; all n when even that frees too little.
    """
    if excess <= 0:
        return np.empty(0, np.int64)
    order = np.argsort(keys, kind="stable")
    freed = np.cumsum(sizes[order])
    return order[: int(np.searchsorted(freed, excess)) + 1]


def learned_lower(lower: Ints, generated_tokens: Ints, max_tokens: Ints) -> Ints:
    """Lower bounds after an eviction: a request is at least as long as what it has generated.

    Arrays of shape (n,); the result never exceeds `max_tokens`.
    """
    learned: Ints = np.minimum(np.maximum(lower, generated_tokens), max_tokens)
    return learned
