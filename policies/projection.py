"""Projection of KV memory in blocks, exact for the lengths it is given.

A request that holds h tokens and runs r more steps holds `ceil((h + k) / B)` blocks at step k in
1..r and none afterwards. Usage grows between completions, so its peak stands at one of them. With
B = 1 this is `max_k (r_k * k + sum_{j <= k} h_j)` over the requests sorted by r descending
(arXiv:2502.07115, arXiv:2508.14544).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from policies.batch import Ints


def peak_blocks(held: Ints, remaining: Ints, block_size: int) -> int:
    """Peak usage over all future steps; 0 when nothing runs. O(n block_size + n log n).

    Args:
        held: Tokens each request holds now, (n,).
        remaining: Steps each will still make, (n,); one that makes none holds nothing.
        block_size: Tokens per block.
    """
    runs = remaining > 0
    return MemoryProfile(held[runs], remaining[runs], block_size).peak


class MemoryProfile:
    """The projected memory of one replica, in its own step clock.

    Immutable. Building costs O(n block_size + n log n), a query a slice.

    Attributes:
        times: Distinct completion clocks, ascending, (m,).
        usage: Blocks in use at each, by the requests that complete then or later, (m,).
        peak: Largest usage, 0 when empty.
        peak_time: First clock at which it is reached, 0 when empty.
        block_size: Tokens per block.
    """

    __slots__ = (
        "_carry",
        "_counts",
        "_later_peaks",
        "_times",
        "_whole",
        "block_size",
        "peak",
        "peak_time",
        "times",
        "usage",
    )

    def __init__(self, base: Ints, finish: Ints, block_size: int) -> None:
        """Project requests that run now.

        Args:
            base: Tokens held minus the clock, (n,): a request holds `base + c` at clock c.
            finish: Clock at which each is projected to complete, ahead of the current one, (n,).
            block_size: Tokens per block.

        Raises:
            ValueError: `block_size` is below 1, or the shapes differ.
        """
        if block_size < 1 or np.shape(base) != np.shape(finish):
            raise ValueError(
                f"block_size is {block_size}, must be at least 1, and base {np.shape(base)} "
                f"and finish {np.shape(finish)} must have one shape"
            )
        self.block_size = block_size
        base, finish = np.asarray(base, np.int64), np.asarray(finish, np.int64)
        order = np.argsort(-finish, kind="stable")
        finish = finish[order]
        # ceil((b + t) / B) = floor(a / B) + floor(t / B) + [a mod B + t mod B >= B] with
        # a = b + B - 1. Sums over the requests that finish last are prefix sums of the first term
        # and of the carry, the latter for each residue of t.
        whole, residue = np.divmod(base[order] + (block_size - 1), block_size)
        self._whole = np.cumsum(whole)
        self._carry = np.cumsum(
            residue[:, None] + np.arange(block_size) >= block_size, axis=0, dtype=np.int32
        )
        last = np.flatnonzero(np.append(finish[1:] != finish[:-1], True)[: len(finish)])
        times = finish[last]
        usage = self._whole[last] + (last + 1) * (times // block_size)
        usage += self._carry[last, times % block_size]
        self.times, self.usage = times[::-1], usage[::-1]
        self._times: list[int] = self.times.tolist()
        self._counts: list[int] = (last[::-1] + 1).tolist()
        self._later_peaks: list[int] = np.maximum.accumulate(usage)[::-1].tolist()
        self.peak: int = self._later_peaks[0] if self._times else 0
        self.peak_time: int = int(self.times[self.usage.argmax()]) if self._times else 0

    def peak_with(self, now: int, held: int, remaining: int) -> int:
        """Peak usage in blocks after `now` if one more request started at `now`.

        Args:
            now: Clock; completions at or before it are over.
            held: Tokens the candidate holds when it starts.
            remaining: Steps it would run, at least 1.
        """
        peak, until = self._while_it_runs(now, held, remaining)
        return max(peak, self._later_peaks[until]) if until < len(self._times) else peak

    def peak_during(self, now: int, held: int, remaining: int) -> int:
        """Like `peak_with`, but only over the steps that the candidate itself would run.

        It is smaller than `peak_with` only where the running requests peak later, when the
        candidate has gone. As a test of admission the two differ once running requests alone are
        projected beyond memory, which prolonged estimates can bring about: `peak_with` then admits
        nobody, `peak_during` whoever will be gone by then.
        """
        return self._while_it_runs(now, held, remaining)[0]

    def _while_it_runs(self, now: int, held: int, remaining: int) -> tuple[int, int]:
        """The peak until the candidate completes, and the index of the next completion."""
        block, times = self.block_size, self._times
        end = now + remaining
        first, until = bisect_right(times, now), bisect_left(times, end)
        peak = -(-(held + remaining) // block)
        if until < len(times):
            peak += self._usage_at(end, self._counts[until])
        if first < until:
            own = (self.times[first:until] + (held - now + block - 1)) // block
            own += self.usage[first:until]
            peak = max(peak, int(own.max()))
        return peak, until

    def _usage_at(self, clock: int, count: int) -> int:
        """Blocks that the `count` requests that finish last hold at `clock`."""
        quotient, residue = divmod(clock, self.block_size)
        return int(self._whole[count - 1] + self._carry[count - 1, residue]) + count * quotient
