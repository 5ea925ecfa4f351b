"""A step time interpolated between measured kernel times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from replicas.step_time import StepWork


@dataclass(frozen=True, slots=True)
class StepTables:
    """Seconds that the parts of an engine step take, at grid points.

    All axes rise; along the last axis of a table its values are finite, at least 0 and never fall.

    Attributes:
        label: What was measured, for reports.
        tokens: Tokens that a step computes, the axis of the next two.
        dense_s: Seconds of everything but attention and logits, shape `(tokens,)`.
        logits_s: Seconds of the logits of as many tokens, shape `(tokens,)`.
        decode_batches: Requests that decode.
        decode_contexts: KV-cache tokens that each of them attends to.
        decode_attention_s: Seconds, shape `(decode_batches, decode_contexts)`.
        prefill_lengths: Length L of the prompts whose `(L + 1) / 2` keys per query a step computes.
        prefill_tokens: Prompt tokens of a step.
        prefill_attention_s: Seconds, shape `(prefill_lengths, prefill_tokens)`.
        measured_tokens: Most tokens of a step whose matrix products were measured.
        measured_decode: By batch size, rising, the longest context measured.
        measured_prefill: By number of prompts, rising, the longest prompt measured.

    Raises:
        ValueError: A table's shape does not match its axes, or it falls somewhere.
    """

    label: str
    tokens: Sequence[int]
    dense_s: Sequence[float]
    logits_s: Sequence[float]
    decode_batches: Sequence[int]
    decode_contexts: Sequence[int]
    decode_attention_s: Sequence[Sequence[float]]
    prefill_lengths: Sequence[int]
    prefill_tokens: Sequence[int]
    prefill_attention_s: Sequence[Sequence[float]]
    measured_tokens: int
    measured_decode: dict[int, int]
    measured_prefill: dict[int, int]

    def __post_init__(self) -> None:
        for name, axis, rows in (
            ("dense_s", self.tokens, [self.dense_s]),
            ("logits_s", self.tokens, [self.logits_s]),
            ("decode_attention_s", self.decode_contexts, self.decode_attention_s),
            ("prefill_attention_s", self.prefill_tokens, self.prefill_attention_s),
        ):
            if len(axis) < 2 or any(len(row) != len(axis) for row in rows):
                raise ValueError(
                    f"step tables: the rows of {name} have {[len(row) for row in rows]} values, "
                    f"must have one for each of {len(axis)} grid points, at least 2"
                )
            for row in rows:
                if row[0] < 0 or not all(a <= b < float("inf") for a, b in pairwise(row)):
                    raise ValueError(f"step tables: {name} has a row that is negative or falls")
        for name, rows, axis in (
            ("decode_attention_s", self.decode_attention_s, self.decode_batches),
            ("prefill_attention_s", self.prefill_attention_s, self.prefill_lengths),
        ):
            if len(axis) < 2 or len(rows) != len(axis):
                raise ValueError(
                    f"step tables: {name} has {len(rows)} rows, must have one for each of "
                    f"{len(axis)} grid points, at least 2"
                )


class _Curve:
    """A piecewise linear function; its first and last pieces go on for ever."""

    __slots__ = ("_integrals", "_last", "_slopes", "_values", "_xs")

    def __init__(self, xs: Sequence[float], values: Sequence[float]) -> None:
        self._xs = [float(x) for x in xs]
        self._values = [float(value) for value in values]
        self._last = len(xs) - 1
        self._slopes: list[float] = []
        self._integrals = [0.0]
        points = list(zip(self._xs, self._values, strict=True))
        for (x0, y0), (x1, y1) in pairwise(points):
            self._slopes.append((y1 - y0) / (x1 - x0))
            self._integrals.append(self._integrals[-1] + (x1 - x0) * (y0 + y1) / 2)

    def __call__(self, x: float) -> float:
        i = bisect_right(self._xs, x, 1, self._last) - 1
        return self._values[i] + self._slopes[i] * (x - self._xs[i])

    def value_and_integral(self, x: float) -> tuple[float, float]:
        """The value at `x`, and the integral from the first grid point to `x`."""
        i = bisect_right(self._xs, x, 1, self._last) - 1
        beyond = x - self._xs[i]
        value = self._values[i] + self._slopes[i] * beyond
        return value, self._integrals[i] + beyond * (self._values[i] + value) / 2


class _DecodeBatch(NamedTuple):
    """What one batch size costs in a step that only decodes.

    `attention_s` is a function of the mean context, `rest_s` everything else.
    """

    rest_s: float
    attention_s: _Curve


class SiliconStepTime:
    """The duration of an engine step as the sum of its kernels' measured times.

    The matrix products, norms and all-reduces run once over all tokens of a step, prefill and
    decode together, so that a mixed step reads the weights once; attention is added apart for the
    prompt tokens and for the requests that decode, and the logits for the requests that decode and
    one prompt. Attention of prefill depends on the tokens and on the mean number of keys that a
    token attends to, that of decode on the batch size and the mean context: requests of different
    lengths cost what as many of their mean length do. Between grid points every table is linear.

    What kernels do not show is missing: time in which the engine's process schedules, samples and
    moves tokens while the accelerator waits. It is a lower bound of a step of a real engine.
    """

    name: ClassVar[str] = "silicon"

    def __init__(self, tables: StepTables) -> None:
        self.label = tables.label
        self._tables = tables
        self._dense = _Curve(tables.tokens, tables.dense_s)
        self._logits = _Curve(tables.tokens, tables.logits_s)
        self._prefill_keys = [(length + 1) / 2 for length in tables.prefill_lengths]
        self._prefill = [_Curve(tables.prefill_tokens, row) for row in tables.prefill_attention_s]
        self._decode_batches: dict[int, _DecodeBatch] = {}

    def seconds(self, work: StepWork) -> float:
        """See `StepTimeModel.seconds`."""
        prefill, pairs, decode, context = work
        if not prefill:
            return self.decode_seconds(decode, context, 1) if decode else 0.0
        seconds = self._dense(prefill + decode) + self._logits(decode + 1)
        if decode:
            seconds += self._decode_batch(decode).attention_s(context / decode)
        return seconds + self._prefill_attention(prefill, pairs / prefill)

    def decode_seconds(self, decode_tokens: int, context_tokens: int, steps: int) -> float:
        """See `StepTimeModel.decode_seconds`.

        The mean context grows by one token each step, so the sum over the steps is that of a
        piecewise linear function at points one apart: by the trapezoidal rule, exact within each
        piece.
        """
        if not steps:
            return 0.0
        rest_s, attention = self._decode_batch(decode_tokens)
        first = context_tokens / decode_tokens
        if steps == 1:
            return rest_s + attention(first)
        start_s, start = attention.value_and_integral(first)
        end_s, end = attention.value_and_integral(first + steps - 1)
        return steps * rest_s + (end - start) + (start_s + end_s) / 2

    def covers(self, work: StepWork) -> bool:
        """Whether every kernel of the step lies within what was measured.

        A chunk that follows other tokens of its prompt counts as measured when the whole prompt up
        to its end was.
        """
        prefill, pairs, decode, context = work
        if prefill + decode > self._tables.measured_tokens:
            return False
        if decode and context / decode > _limit(self._tables.measured_decode, decode):
            return False
        if not prefill:
            return True
        mean_keys = pairs / prefill
        prompts = max(1.0, prefill / (2 * mean_keys - 1))
        length = prefill / prompts if prompts > 1 else mean_keys + (prefill - 1) / 2
        return length <= _limit(self._tables.measured_prefill, prompts)

    def _decode_batch(self, requests: int) -> _DecodeBatch:
        batch = self._decode_batches.get(requests)
        if batch is None:
            tables = self._tables
            low, share = _bracket(tables.decode_batches, requests)
            rows = tables.decode_attention_s
            row = [a + share * (b - a) for a, b in zip(rows[low], rows[low + 1], strict=True)]
            batch = _DecodeBatch(
                self._dense(requests) + self._logits(requests),
                _Curve(tables.decode_contexts, row),
            )
            self._decode_batches[requests] = batch
        return batch

    def _prefill_attention(self, tokens: int, keys_per_token: float) -> float:
        low, share = _bracket(self._prefill_keys, keys_per_token)
        shorter = self._prefill[low](tokens)
        return shorter + share * (self._prefill[low + 1](tokens) - shorter)


def _bracket(axis: Sequence[float], x: float) -> tuple[int, float]:
    """The grid point before `x` and how far `x` is on the way to the next one."""
    low = bisect_right(axis, x, 1, len(axis) - 1) - 1
    return low, (x - axis[low]) / (axis[low + 1] - axis[low])


def _limit(measured: dict[int, int], count: float) -> int:
    """The longest length measured for `count` requests, or for the next larger count."""
    return next((length for size, length in measured.items() if size >= count), 0)
