"""Simulated workloads: plain values that say what to draw, and the drawing, chunk by chunk."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from cluster.workload import WorkloadChunk, WorkloadError
from jobs.simulating.arrivals import ArrivalProcess, Arrivals
from jobs.simulating.forecasts import Forecaster, Forecasting, NoisyForecast
from jobs.simulating.intervals import Interval, QuantileInterval
from jobs.simulating.lengths import Lengths, LengthSource
from jobs.simulating.traces import read_trace
from jobs.simulating.truth import Truth
from policies.batch import Ints
from policies.length_histogram import MAX_TOKENS
from policies.request import RequestClass

CHUNK_REQUESTS = 65_536
"""Requests that are drawn together."""


@dataclass(frozen=True, slots=True)
class OfflineWork:
    """The part of the requests that nobody waits for.

    Attributes:
        share: Of all requests, in [0, 1].
        arrivals: When they arrive. None: each request of the workload's own arrivals is offline
            with this probability. Otherwise exactly `share` of the requests, rounded, come by these
            arrivals, beside the online ones; `AtOnceArrivals()` is a batch that is there from the
            start.

    Raises:
        WorkloadError: The share is out of range.
    """

    share: float
    arrivals: Arrivals | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise WorkloadError(f"the offline share is {self.share}, must be in 0 to 1")


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """All that a simulated workload is made of.

    Attributes:
        requests: How many, at least 1.
        lengths: Where prompt and output lengths come from.
        arrivals: When requests arrive; with offline work of its own arrivals, the online ones.
        forecasts: What is forecast of a request.
        interval: Which interval is forecast with it.
        max_tokens: Every request's cap on output tokens, 1 to 16,777,216; longer answers are cut
            there, as an engine does. None takes the cap of the source's own runs.
        offline: The part that is offline; None for none.
        seed: Of all draws, at least 0.

    Raises:
        WorkloadError: A value is out of range.
    """

    requests: int
    lengths: Lengths
    arrivals: Arrivals
    forecasts: Forecasting = field(default_factory=NoisyForecast)
    interval: Interval = field(default_factory=QuantileInterval)
    max_tokens: int | None = 4096
    offline: OfflineWork | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise WorkloadError(f"the workload has {self.requests} requests, must have at least 1")
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            raise WorkloadError(f"max_tokens is {self.max_tokens}, must be in 1 to {MAX_TOKENS:,}")
        if self.seed < 0:
            raise WorkloadError(f"the seed is {self.seed}, must be >= 0")

    def scaled(self, rate_per_s: float) -> WorkloadSpec:
        """The same requests with `arrivals` at another rate, nothing else changed.

        Offline work that has its own arrivals keeps them.

        Raises:
            WorkloadError: The rate is not above 0, or the requests arrive all at once.
        """
        return replace(self, arrivals=self.arrivals.at_rate(rate_per_s))


def build(spec: WorkloadSpec) -> Workload:
    """Open the data that `spec` names and let the forecaster learn.

    Raises:
        InputError: A file is absent or unreadable.
        WorkloadError: The parts of `spec` do not fit together.
    """
    read = functools.cache(read_trace)
    lengths = spec.lengths.open(read)
    max_tokens = _max_tokens(spec, lengths)
    history = lengths.sample(CHUNK_REQUESTS, _random(spec.seed, _Concern.HISTORY))
    own = spec.offline.arrivals if spec.offline is not None else None
    return Workload(
        spec=spec,
        lengths=lengths,
        max_tokens=max_tokens,
        arrivals=spec.arrivals.open(read),
        offline_arrivals=None if own is None else own.open(read),
        forecaster=spec.forecasts.learn(Truth.of(history, max_tokens)),
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that can be gone through any number of times, always with the same chunks.

    Chunks are drawn when they are reached, so memory does not grow with the requests. Every chunk
    of `CHUNK_REQUESTS` requests has one stream of random numbers per concern (lengths, arrivals,
    classes, forecasts), seeded by (seed, concern, part, index of the chunk), and is drawn whole
    even where less of it is needed. So equal specs give byte-identical chunks (with one version of
    numpy); another forecaster or other arrivals change neither lengths nor classes; and a workload
    of fewer requests is the beginning of one of more, except that offline work with arrivals of
    its own is a share of them, so that its number changes.

    Attributes:
        spec: What it was built from.
        lengths: Its open source of lengths.
        max_tokens: Every request's cap.
        arrivals: Its open arrivals.
        offline_arrivals: Those of the offline work, where it has its own.
        forecaster: What makes its forecasts.
    """

    spec: WorkloadSpec
    lengths: LengthSource
    max_tokens: int
    arrivals: ArrivalProcess
    offline_arrivals: ArrivalProcess | None
    forecaster: Forecaster

    def __len__(self) -> int:
        return self.spec.requests

    @property
    def notes(self) -> list[str]:
        """What a report on this workload must say of its data."""
        return self.lengths.notes(len(self))

    def __iter__(self) -> Iterator[WorkloadChunk]:
        if self.offline_arrivals is None or self.spec.offline is None:
            return self._part(_Part.MAIN, 0, len(self), self.arrivals)
        offline = round(self.spec.offline.share * len(self))
        online = len(self) - offline
        return _merge(
            self._part(_Part.MAIN, 0, online, self.arrivals),
            self._part(_Part.OFFLINE, online, offline, self.offline_arrivals),
        )

    def _part(
        self, part: _Part, first: int, count: int, arrivals: ArrivalProcess
    ) -> Iterator[WorkloadChunk]:
        """`count` requests of one arrival process whose lengths begin at request `first`."""
        last_s = 0.0
        for index, start in enumerate(range(0, count, CHUNK_REQUESTS)):
            random = functools.partial(_random, self.spec.seed, part=part, chunk=index)
            arrival_s = arrivals.times_s(start, CHUNK_REQUESTS, last_s, random(_Concern.ARRIVALS))
            last_s = float(arrival_s[-1])
            drawn = self.lengths.draw(first + start, CHUNK_REQUESTS, random(_Concern.LENGTHS))
            truth = Truth.of(drawn, self.max_tokens)
            mu, sigma = self.forecaster(truth, random(_Concern.FORECASTS))
            lower, upper = self.spec.interval.bounds(truth, mu, sigma)
            chunk = WorkloadChunk(
                arrival_s=arrival_s,
                prompt_tokens=truth.prompt_tokens,
                max_tokens=truth.max_tokens,
                output_tokens=truth.output_tokens,
                request_class=self._classes(part, random(_Concern.CLASSES)),
                mu=mu,
                sigma=sigma,
                lower=lower,
                upper=upper,
            )
            yield chunk.take(slice(0, min(CHUNK_REQUESTS, count - start)))

    def _classes(self, part: _Part, random: np.random.Generator) -> Ints:
        if part is _Part.OFFLINE:
            return np.full(CHUNK_REQUESTS, RequestClass.OFFLINE, np.int64)
        offline_work = self.spec.offline
        mixed = offline_work is not None and offline_work.arrivals is None
        share = offline_work.share if offline_work is not None and mixed else 0.0
        offline = random.random(CHUNK_REQUESTS) < share
        return np.where(offline, RequestClass.OFFLINE, RequestClass.ONLINE).astype(np.int64)


class _Concern(enum.IntEnum):
    """What random numbers are drawn for; the values are part of every seed."""

    LENGTHS = 0
    ARRIVALS = 1
    CLASSES = 2
    FORECASTS = 3
    HISTORY = 4


class _Part(enum.IntEnum):
    """Requests that share an arrival process; the values are part of every seed."""

    MAIN = 0
    OFFLINE = 1


def _random(
    seed: int, concern: _Concern, part: _Part = _Part.MAIN, chunk: int = 0
) -> np.random.Generator:
    """The stream of one concern in one chunk."""
    key = (int(concern), int(part), chunk)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _max_tokens(spec: WorkloadSpec, lengths: LengthSource) -> int:
    cap = lengths.cap_tokens
    if spec.max_tokens is None:
        if cap is None:
            raise WorkloadError(
                "these lengths have no cap of their own: give max_tokens, for example 4096"
            )
        return cap
    if cap is not None and spec.max_tokens > cap:
        raise WorkloadError(
            f"max_tokens is {spec.max_tokens}, but the answers that lengths are drawn from were "
            f"stopped at {cap} tokens and nothing is known beyond; give at most {cap}"
        )
    return spec.max_tokens


def _merge(
    first: Iterator[WorkloadChunk], second: Iterator[WorkloadChunk]
) -> Iterator[WorkloadChunk]:
    """The requests of both, by arrival."""
    a, b = next(first, None), next(second, None)
    while a is not None and b is not None:
        until_s = min(a.arrival_s[-1], b.arrival_s[-1])
        at_a, at_b = (int(np.searchsorted(c.arrival_s, until_s, "right")) for c in (a, b))
        yield a.take(slice(at_a)).merged(b.take(slice(at_b)))
        a = a.take(slice(at_a, None)) if at_a < len(a) else next(first, None)
        b = b.take(slice(at_b, None)) if at_b < len(b) else next(second, None)
    for rest, more in ((a, first), (b, second)):
        if rest is not None:
            yield rest
            yield from more
