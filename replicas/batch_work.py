"""What each request of a continuous batch has had computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from replicas.request_work import NO_REQUEST_WORK, RequestWork
from replicas.stretch import Chunk


class _Mark(NamedTuple):
    """Up to where a decoding request's work has been told.

    Attributes:
        offset: KV tokens that it has, minus the clock of the decoding set.
        clock: The decoding set's.
        shares: Sum of its shares of steps, counted from the batch's beginning.
    """

    offset: int
    clock: int
    shares: float


class BatchWork:
    """Counts the work of a `ContinuousBatch`, exactly.

    Requests that decode together all bear the same shares of steps, so one sum serves all of them:
    a stretch costs O(1) however many requests decode in it, joining and leaving cost O(1), and
    asking costs O(requests that worked). It holds what has not been asked for yet, so it must be
    asked now and then. Requests that decoded before it was there are counted from when they join
    again.
    """

    def __init__(self) -> None:
        self._untold: dict[str, RequestWork] = {}
        self._marks: dict[str, _Mark] = {}
        self._shares = 0.0

    def advanced(self, steps: int, requests: int) -> None:
        """So many steps were made, with so many requests in each, of which some may prefill."""
        if requests:
            self._shares += steps / requests

    def prefilled(self, chunks: Sequence[Chunk], requests: int) -> None:
        """A step of `requests` requests computed these chunks of prompts."""
        for chunk in chunks:
            pairs = chunk.tokens * chunk.start + chunk.tokens * (chunk.tokens + 1) // 2
            work = RequestWork(
                prefill_shares=1 / requests,
                prefill_tokens=chunk.tokens,
                prefill_pairs=pairs,
                recomputed_tokens=chunk.recomputed,
            )
            self._add(chunk.request_id, work)

    def joined(self, request_id: str, offset: int, clock: int) -> None:
        """A request decodes from now on."""
        self._marks[request_id] = _Mark(offset, clock, self._shares)

    def left(self, request_id: str, clock: int) -> None:
        """A request decodes no more."""
        mark = self._marks.pop(request_id, None)
        if mark is not None:
            self._tell(request_id, mark, clock)

    def take(self, clock: int) -> dict[str, RequestWork]:
        """Work by request since the last call; `clock` is the decoding set's."""
        for request_id, mark in self._marks.items():
            if mark.clock < clock:
                self._tell(request_id, mark, clock)
                self._marks[request_id] = _Mark(mark.offset, clock, self._shares)
        untold, self._untold = self._untold, {}
        return untold

    def _tell(self, request_id: str, mark: _Mark, clock: int) -> None:
        steps = clock - mark.clock
        if steps:
            before, after = (c * (c + 1) // 2 for c in (mark.clock, clock))
            work = RequestWork(
                decode_shares=self._shares - mark.shares,
                decode_tokens=steps,
                context_tokens=steps * mark.offset + after - before,
            )
            self._add(request_id, work)

    def _add(self, request_id: str, work: RequestWork) -> None:
        earlier = self._untold.get(request_id, NO_REQUEST_WORK)
        self._untold[request_id] = earlier.plus(work) if earlier is not NO_REQUEST_WORK else work
