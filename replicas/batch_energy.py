"""What each request of a continuous batch has cost, booked stretch by stretch."""

from __future__ import annotations

from dataclasses import dataclass

from replicas.step_shares import StepShares
from replicas.step_time import LinearStepTime, StepWork
from replicas.stretch import Chunk, Stretch


@dataclass(frozen=True, slots=True)
class Cost:
    """Energy of a request.

    Attributes:
        joules: All of it.
        wasted_joules: The part of it that computed tokens again.
    """

    joules: float = 0.0
    wasted_joules: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.joules + other.joules, self.wasted_joules + other.wasted_joules)


@dataclass(slots=True)
class _Entry:
    """A request that was computed; `decodes` from when its prefill ended, on the book's clock."""

    joules: float = 0.0
    wasted_joules: float = 0.0
    decodes: bool = False
    offset: int = 0
    each_before: float = 0.0
    per_offset_before: float = 0.0


class BatchEnergy:
    """Shares the energy of a `ContinuousBatch` among its requests (see `StepShares`).

    A stretch costs O(1) and each prefilled chunk O(1), however many requests decode: what every
    decoding request gets is added up once for all. One that joined with k tokens computed at clock
    c attends to `offset + clock + 1` tokens in each step, `offset = k - c`, so two sums tell its
    part: of what is alike for all, and of what its offset adds.

    Args:
        weights: How long each part of a step's work takes.
    """

    def __init__(self, weights: LinearStepTime) -> None:
        self._weights = weights
        self._entries: dict[str, _Entry] = {}
        self._decoding = 0
        self._clock = 0
        self._each = 0.0
        self._per_offset = 0.0

    def book(self, stretch: Stretch, joules: float) -> None:
        """Share what a stretch took above idle, before any of its requests is taken out.

        Args:
            stretch: As `ContinuousBatch.complete` returned it.
            joules: Energy above idle; of a stretch without steps there is none.
        """
        steps, work, decoding = stretch.steps, stretch.work, self._decoding
        if not steps:
            return
        further = steps * (steps - 1) // 2
        total = StepWork(
            work.prefill_tokens,
            work.prefill_pairs,
            steps * work.decode_tokens,
            steps * work.context_tokens + work.decode_tokens * further,
        )
        requests = decoding + len(stretch.chunks)
        shares = StepShares.of(self._weights, total, joules, requests=requests, steps=steps)
        context = steps * (self._clock + 1) + further
        self._each += steps * shares.per_request + shares.decode(context, steps)
        self._per_offset += shares.per_kv_token * steps
        self._clock += steps
        for chunk in stretch.chunks:
            self._prefill(chunk, shares)
        for request_id in stretch.prefilled:
            entry = self._entries[request_id]
            entry.decodes = True
            entry.offset -= self._clock
            entry.each_before, entry.per_offset_before = self._each, self._per_offset
            self._decoding += 1

    def _prefill(self, chunk: Chunk, shares: StepShares) -> None:
        entry = self._entries.setdefault(chunk.request_id, _Entry())
        entry.joules += shares.per_request + shares.prefill(chunk.start, chunk.tokens)
        if chunk.recomputed:
            again = chunk.recomputed / chunk.tokens
            entry.wasted_joules += shares.per_request * again
            entry.wasted_joules += shares.prefill(chunk.start, chunk.recomputed)
        entry.offset = chunk.start + chunk.tokens  # computed so far; an offset once it decodes

    def evicted(self, request_id: str) -> None:
        """A request has lost its memory: it decodes no more until it is prefilled again."""
        if (entry := self._entries.get(request_id)) is not None:
            self._stop(entry)

    def take(self, request_id: str) -> Cost:
        """A request has left the batch; what it cost there since it came."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return Cost()  # it never ran
        self._stop(entry)
        return Cost(entry.joules, entry.wasted_joules)

    def _stop(self, entry: _Entry) -> None:
        if entry.decodes:
            entry.decodes = False
            entry.joules += self._each - entry.each_before
            entry.joules += entry.offset * (self._per_offset - entry.per_offset_before)
            self._decoding -= 1
