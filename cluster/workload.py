"""What a simulated cluster is given to do: requests with their forecasts, as columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from policies.batch import Floats, Ints


class WorkloadError(ValueError):
    """The workload cannot be simulated; the message names the request, the value and the limit."""


@dataclass(frozen=True, slots=True)
class WorkloadChunk:
    """n requests in columns of shape (n,), in order of arrival.

    A workload is an iterable of chunks whose arrivals go on ascending from chunk to chunk, so that
    one of ten million requests needs no more memory than one of ten thousand.

    Attributes:
        arrival_s: When each request arrives, in seconds from 0, ascending.
        prompt_tokens: Prompt lengths, at least 1 (0 under the unit-step model).
        max_tokens: Caps on output tokens.
        output_tokens: True output lengths, 1 to `max_tokens`.
        request_class: Values of `RequestClass`.
        mu: Forecast location of ln X.
        sigma: Forecast scale of ln X.
        lower: Forecast lower bound in tokens.
        upper: Forecast upper bound in tokens.
        number: Unique numbers that name the requests and break ties; None: places in the workload.

    Raises:
        WorkloadError: Shapes differ or a value is out of range.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    max_tokens: Ints
    output_tokens: Ints
    request_class: Ints
    mu: Floats
    sigma: Floats
    lower: Ints
    upper: Ints
    number: Ints | None = None

    def __post_init__(self) -> None:
        shapes = {name: np.shape(c) for name, c in self._columns().items() if c is not None}
        if len(set(shapes.values())) > 1:
            raise WorkloadError(f"the columns of a workload must have one shape, got {shapes}")
        self._require("arrival_s", np.isfinite(self.arrival_s), "finite")
        self._require("arrival_s", np.diff(self.arrival_s, prepend=-np.inf) >= 0, "ascending")
        self._require("prompt_tokens", self.prompt_tokens >= 0, ">= 0")
        self._require("output_tokens", self.output_tokens >= 1, ">= 1")
        self._require("output_tokens", self.output_tokens <= self.max_tokens, "<= max_tokens")
        self._require("mu", np.isfinite(self.mu), "finite")
        self._require("sigma", np.isfinite(self.sigma) & (self.sigma >= 0), "finite and >= 0")
        self._require("lower", self.lower >= 1, ">= 1")
        self._require("upper", self.upper >= self.lower, ">= lower")

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, rows: slice | Ints) -> WorkloadChunk:
        """Some of the requests, in the given order."""
        return self._each(lambda column, _: column[rows], self)

    def merged(self, other: WorkloadChunk) -> WorkloadChunk:
        """The requests of both by arrival; among equals those of this chunk come first."""
        order = np.argsort(np.concatenate((self.arrival_s, other.arrival_s)), kind="stable")
        return self._each(lambda mine, theirs: np.concatenate((mine, theirs))[order], other)

    def _each(self, combine: Callable[[Any, Any], Any], other: WorkloadChunk) -> WorkloadChunk:
        theirs = other._columns()
        columns: dict[str, Any] = {
            name: None if column is None or theirs[name] is None else combine(column, theirs[name])
            for name, column in self._columns().items()
        }
        return WorkloadChunk(**columns)

    def _columns(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _require(self, name: str, holds: np.ndarray, what: str) -> None:
        if not holds.all():
            first = int(np.argmin(holds))
            value = getattr(self, name)[first]
            raise WorkloadError(
                f"request {first} of the workload: {name} is {value}, must be {what}"
            )
