"""Orderings: who goes next, as one static key per request.

A key is computed once, when a request's forecast arrives; the smallest runs first. To add an
ordering, write one class here with a `name`, options as dataclass fields, and `keys` (or `scores`,
if it should age), and decorate it; another package does the same and declares it as an entry point
of the group `tiebreak.orderings`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from policies import logt
from policies.batch import Floats, Ints, RequestBatch
from policies.compiled import compiled
from policies.registry import InvalidOptionError, Registry


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue at the moment of scoring.

    Attributes:
        waiting: Requests that wait.
        slots: Requests that can run at once, over all replicas (the sum of `max_num_seqs`).
    """

    waiting: int
    slots: int

    @property
    def load(self) -> float:
        """Waiting requests per slot; infinite when there are requests but no slots."""
        if self.slots:
            return self.waiting / self.slots
        return math.inf if self.waiting else 0.0


class Ordering(Protocol):
    """Decides who goes next."""

    name: ClassVar[str]

    def keys(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Static keys, (n,), lower first, with ageing folded in.

        Keys of one ordering are comparable whenever they were computed, so a queue never needs to
        be ordered again because time has passed.
        """


ORDERINGS: Registry[Ordering] = Registry("ordering", "tiebreak.orderings", method="keys")


@dataclass(frozen=True, slots=True)
class Ageing:
    """Ageing: a score S counts as `S * gamma**(wait / tau_s)` (arXiv:2604.00499, section 4).

    Attributes:
        gamma: What is left of a score after `tau_s` of waiting, in (0, 1]; 1 is no ageing.
        tau_s: Seconds.

    Raises:
        InvalidOptionError: A value is out of range.
    """

    gamma: float = 0.9
    tau_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise InvalidOptionError(
                f"gamma is {self.gamma}, must be above 0 and at most 1 (1 turns ageing off)"
            )
        if not self.tau_s > 0:
            raise InvalidOptionError(f"tau_s is {self.tau_s}, must be above 0 seconds")

    def aged(self, scores: Floats, arrival_s: Floats) -> Floats:
        """Static keys whose order is that of the aged scores at every instant, (n,).

        The logarithm of the aged score is `ln S + (arrival - now) / tau * ln(1 / gamma)`, and its
        part in `now` is common to all.
        """
        keys: Floats = np.log(scores) - arrival_s * (math.log(self.gamma) / self.tau_s)
        return keys


@dataclass(frozen=True, slots=True)
class ScoreOrdering(Ageing, ABC):
    """An ordering by a positive score that ages."""

    @abstractmethod
    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Positive scores, (n,), lower first."""

    def keys(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """See `Ordering.keys`."""
        return self.aged(self.scores(batch, queue), batch.arrival_s)


@dataclass(frozen=True, slots=True)
class TailOrdering(ScoreOrdering, ABC):
    """A score `mean + beta * CVaR_alpha` whose beta grows with the queue.

    `beta = clip(beta_per_load * waiting / slots, beta_min, beta_max)` (arXiv:2604.00499, section
    4); `beta_max = beta_min = 0` leaves the mean.

    Attributes:
        alpha: Level of the CVaR, in (0, 1).
        beta_min: Smallest beta, at least 0.
        beta_max: Largest beta.
        beta_per_load: Beta per waiting request and slot.
    """

    alpha: float = 0.9
    beta_min: float = 0.1
    beta_max: float = 0.5
    beta_per_load: float = 0.1

    def __post_init__(self) -> None:
        Ageing.__post_init__(self)
        if not 0 < self.alpha < 1:
            raise InvalidOptionError(f"alpha is {self.alpha}, must be above 0 and below 1")
        if not 0 <= self.beta_min <= self.beta_max < math.inf:
            raise InvalidOptionError(
                f"beta_min is {self.beta_min} and beta_max {self.beta_max}, "
                "must be 0 <= beta_min <= beta_max"
            )
        if not 0 < self.beta_per_load < math.inf:
            raise InvalidOptionError(
                f"beta_per_load is {self.beta_per_load}, must be above 0; for a fixed beta set "
                "beta_min and beta_max to it"
            )

    def beta(self, queue: QueueState) -> float:
        """Weight of the tail."""
        return min(max(self.beta_per_load * queue.load, self.beta_min), self.beta_max)

    def moments(self, batch: RequestBatch) -> logt.Moments:
        """Moments of what is to come of each request's censored length."""
        return _moments(batch, self.alpha)


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class Fcfs:
    """First come, first served."""

    name: ClassVar[str] = "fcfs"

    def keys(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """See `Ordering.keys`."""
        return batch.arrival_s.copy()


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class Sjf(ScoreOrdering):
    """Shortest job first by a point estimate, the forecast's median."""

    name: ClassVar[str] = "sjf"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Median of X~ in tokens, (n,)."""
        scores: Floats = np.exp(np.minimum(batch.mu, np.log(batch.max_tokens)))
        return scores


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class Sept(ScoreOrdering):
    """Shortest expected processing time: E[X~]; what is left of it for a request that has begun."""

    name: ClassVar[str] = "sept"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """E[X~] in tokens, (n,)."""
        return _moments(batch).mean


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class Tie(TailOrdering):
    """TIE: `E[X~] + beta * CVaR_0.9[X~]` (arXiv:2604.00499, section 4).

    An evicted request keeps what was learnt: it counts with what is to come, given what has been.
    """

    name: ClassVar[str] = "tie"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Tail-inflated length in tokens, (n,)."""
        length = self.moments(batch)
        return length.mean + self.beta(queue) * length.tail_mean


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class KvVolume(TailOrdering):
    """Expected KV memory times time, `V = X~ (s + X~ / 2)` with s prompt tokens, tail-inflated.

    Where memory is the bottleneck a request costs what it holds for as long as it holds it: s + x
    tokens at step x. V grows with X~, so its CVaR is that of the moments of X~. A request that has
    begun counts with the volume to come: s is then what it holds, X~ what is left.
    """

    name: ClassVar[str] = "kv_volume"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Tail-inflated KV volume in tokens times steps, (n,)."""
        return _volumes(
            batch.prompt_tokens, batch.generated_tokens, *self.moments(batch), self.beta(queue)
        )


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class LowerBound(ScoreOrdering):
    """A_min's order: by the (learned) lower bound (arXiv:2508.14544)."""

    name: ClassVar[str] = "lower_bound"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Lower bounds in tokens, (n,)."""
        return np.minimum(batch.lower, batch.max_tokens).astype(np.float64)


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class UpperBound(ScoreOrdering):
    """A_max's order: by the upper bound (arXiv:2508.14544)."""

    name: ClassVar[str] = "upper_bound"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Upper bounds in tokens, (n,)."""
        return np.minimum(batch.upper, batch.max_tokens).astype(np.float64)


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class Oracle(ScoreOrdering):
    """By true length; for simulation only (raises `UnknownLengthError`)."""

    name: ClassVar[str] = "oracle"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """True lengths in tokens, (n,)."""
        return batch.known_output_tokens().astype(np.float64)


@ORDERINGS.register
@dataclass(frozen=True, slots=True)
class OracleVolume(ScoreOrdering):
    """By true KV volume; for simulation only (raises `UnknownLengthError`)."""

    name: ClassVar[str] = "oracle_volume"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """True KV volume in tokens times steps, (n,)."""
        output = batch.known_output_tokens()
        scores: Floats = output * (batch.prompt_tokens + output / 2)
        return scores


def _moments(batch: RequestBatch, alpha: float = 0.9) -> logt.Moments:
    return logt.moments(batch.mu, batch.sigma, batch.max_tokens, alpha, batch.generated_tokens)


@compiled
def _volumes(
    prompt: Ints,
    generated: Ints,
    mean: Floats,
    second: Floats,
    tail_mean: Floats,
    tail_second: Floats,
    beta: float,
) -> Floats:
    """Tail-inflated volumes of requests whose lengths have these moments, (n,)."""
    volumes = np.empty(len(prompt))
    for i in range(len(prompt)):
        held = prompt[i] + generated[i]
        volume = held * mean[i] + second[i] / 2
        volumes[i] = volume + beta * (held * tail_mean[i] + tail_second[i] / 2)
    return volumes
