"""Where the lengths of simulated requests come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from cluster.workload import WorkloadError
from jobs.simulating.prompt_table import DrawnPrompts
from jobs.simulating.traces import Trace, TraceFile
from policies.batch import Floats, Ints
from policies.forecast import DEGREES_OF_FREEDOM
from policies.length_histogram import MAX_TOKENS

ReadTrace = Callable[[TraceFile], Trace]


@dataclass(frozen=True, slots=True)
class DrawnLengths:
    """Lengths of n requests in columns of shape (n,).

    Attributes:
        prompt_tokens: Prompt lengths.
        output_tokens: How long each answer gets if nothing cuts it.
        mu: Location of ln X in the distribution that the answer was drawn from; None where only
            its length is known.
        sigma: Scale of ln X there, None likewise.
        prompts: The prompts, where the source has their text.
    """

    prompt_tokens: Ints
    output_tokens: Ints
    mu: Floats | None = None
    sigma: Floats | None = None
    prompts: DrawnPrompts | None = None


class LengthSource(Protocol):
    """Lengths that are ready to be drawn."""

    @property
    def cap_tokens(self) -> int | None:
        """Output tokens at which the source's own runs were stopped, None where none were."""

    def draw(self, start: int, count: int, random: np.random.Generator) -> DrawnLengths:
        """The lengths of requests `start` to `start + count - 1`."""

    def sample(self, count: int, random: np.random.Generator) -> DrawnLengths:
        """Lengths of `count` other requests of the same kind, as an operator has seen before."""

    def notes(self, requests: int) -> list[str]:
        """What a report on a workload of that many requests must say of the source."""


class Lengths(Protocol):
    """Names a source of lengths by plain values."""

    def open(self, read: ReadTrace) -> LengthSource:
        """The source itself.

        Args:
            read: Reads trace files, each at most once for a workload.

        Raises:
            InputError: Its data is absent or unreadable.
        """


@dataclass(frozen=True, slots=True)
class LognormalTokens:
    """Token counts of which the logarithm is normal, rounded, at least 1.

    Attributes:
        mean_tokens: Mean, at least the median.
        median_tokens: Median, above 0.

    Raises:
        WorkloadError: A figure is out of range.
    """

    mean_tokens: float
    median_tokens: float

    def __post_init__(self) -> None:
        if not 0 < self.median_tokens <= self.mean_tokens < math.inf:
            raise WorkloadError(
                f"log-normal lengths with mean {self.mean_tokens} and median {self.median_tokens}: "
                "the median must be above 0 and not above the mean, which must be finite"
            )

    @property
    def log_std(self) -> float:
        """Standard deviation of the logarithm."""
        return math.sqrt(2 * math.log(self.mean_tokens / self.median_tokens))

    def draw(self, count: int, random: np.random.Generator) -> Ints:
        """`count` lengths, (count,)."""
        return tokens_of(
            math.log(self.median_tokens) + self.log_std * random.standard_normal(count)
        )


def tokens_of(log_tokens: Floats) -> Ints:
    """Whole tokens, 1 to `MAX_TOKENS`, from logarithms of lengths, (n,)."""
    tokens: Ints = np.rint(np.exp(np.clip(log_tokens, 0.0, math.log(MAX_TOKENS)))).astype(np.int64)
    return tokens


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """Log-normal prompts and outputs, independent of each other; nothing tells requests apart.

    The defaults are the figures that arXiv:2502.07115, whose workload the A_min paper
    (arXiv:2508.14544) takes over, reports of LMSYS-Chat-1M: prompts of mean 40.62 and median 11,
    outputs of mean 85.32 and median 45 (counted in words there).

    Attributes:
        prompt: Distribution of the prompts.
        output: Distribution of the outputs.
    """

    cap_tokens: ClassVar[int | None] = None

    prompt: LognormalTokens = LognormalTokens(40.62, 11)
    output: LognormalTokens = LognormalTokens(85.32, 45)

    def open(self, read: ReadTrace) -> LengthSource:
        """Itself."""
        return self

    def draw(self, start: int, count: int, random: np.random.Generator) -> DrawnLengths:
        """Independent lengths, wherever the requests stand."""
        return DrawnLengths(self.prompt.draw(count, random), self.output.draw(count, random))

    def sample(self, count: int, random: np.random.Generator) -> DrawnLengths:
        """Further independent lengths."""
        return self.draw(0, count, random)

    def notes(self, requests: int) -> list[str]:
        """Nothing."""
        return []


@dataclass(frozen=True, slots=True)
class LogTLengths:
    """Each request has its own log-t: `ln X = mu + sigma T` with known mu and sigma.

    mu is normal over the requests and ln sigma too, independent of each other and of the prompt
    (arXiv:2604.00499 has the log-t). The defaults are near what is fitted to the answers of
    Llama-3.1-8B-Instruct to CASTILLO's validation prompts (mean of mu 5.74, standard deviation
    0.99, median sigma 0.115, standard deviation of ln sigma 0.61) and to those prompts' lengths.

    Attributes:
        prompt: Distribution of the prompts.
        mu_mean: Mean of mu.
        mu_std: Standard deviation of mu, at least 0.
        sigma_median: Median of sigma, above 0.
        log_sigma_std: Standard deviation of ln sigma, at least 0.

    Raises:
        WorkloadError: A figure is out of range.
    """

    cap_tokens: ClassVar[int | None] = None

    prompt: LognormalTokens = LognormalTokens(225, 135)
    mu_mean: float = 5.7
    mu_std: float = 1.0
    sigma_median: float = 0.12
    log_sigma_std: float = 0.6

    def __post_init__(self) -> None:
        for name, holds, limit in (
            ("mu_mean", math.isfinite(self.mu_mean), "finite"),
            ("mu_std", 0 <= self.mu_std < math.inf, "finite and >= 0"),
            ("sigma_median", 0 < self.sigma_median < math.inf, "finite and above 0"),
            ("log_sigma_std", 0 <= self.log_sigma_std < math.inf, "finite and >= 0"),
        ):
            if not holds:
                raise WorkloadError(
                    f"log-t lengths: {name} is {getattr(self, name)}, must be {limit}"
                )

    def open(self, read: ReadTrace) -> LengthSource:
        """Itself."""
        return self

    def draw(self, start: int, count: int, random: np.random.Generator) -> DrawnLengths:
        """Independent requests, wherever they stand."""
        prompt_tokens = self.prompt.draw(count, random)
        mu = self.mu_mean + self.mu_std * random.standard_normal(count)
        sigma = self.sigma_median * np.exp(self.log_sigma_std * random.standard_normal(count))
        log_tokens = mu + sigma * random.standard_t(DEGREES_OF_FREEDOM, count)
        return DrawnLengths(prompt_tokens, tokens_of(log_tokens), mu, sigma)

    def sample(self, count: int, random: np.random.Generator) -> DrawnLengths:
        """Further independent requests."""
        return self.draw(0, count, random)

    def notes(self, requests: int) -> list[str]:
        """Nothing."""
        return []


@dataclass(frozen=True, slots=True)
class TraceLengths:
    """The lengths of a trace in its own order, from the beginning again where it ends.

    With `TraceArrivals` of the same file each request keeps its own time.

    Attributes:
        trace: The file.
    """

    trace: TraceFile

    def open(self, read: ReadTrace) -> LengthSource:
        """The trace's lengths."""
        return _OpenTraceLengths(read(self.trace))


@dataclass(frozen=True, slots=True)
class _OpenTraceLengths:
    cap_tokens: ClassVar[int | None] = None

    trace: Trace

    def draw(self, start: int, count: int, random: np.random.Generator) -> DrawnLengths:
        return self._rows(np.arange(start, start + count) % len(self.trace))

    def sample(self, count: int, random: np.random.Generator) -> DrawnLengths:
        return self._rows(random.integers(len(self.trace), size=count))

    def notes(self, requests: int) -> list[str]:
        notes = []
        if self.trace.unsorted_rows:
            notes.append(
                f"{self.trace.unsorted_rows:,} of {len(self.trace):,} rows of {self.trace.name} "
                "stood after a later one and were sorted by time"
            )
        if requests > len(self.trace):
            notes.append(
                f"{self.trace.name} has {len(self.trace):,} rows and was repeated to make "
                f"{requests:,} requests"
            )
        return notes

    def _rows(self, rows: Ints) -> DrawnLengths:
        return DrawnLengths(self.trace.prompt_tokens[rows], self.trace.output_tokens[rows])
