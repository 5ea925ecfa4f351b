"""Projection of KV memory in blocks, exact for the lengths it is given.

A request that holds h tokens and runs r more steps holds `ceil((h + k) / B)` blocks at step k in
1..r and none afterwards. Usage grows between completions, so its peak stands at one of them. With
B = 1 this is `max_k (r_k * k + sum_{j <= k} h_j)` over the requests sorted by r descending
(arXiv:2502.07115, arXiv:2508.14544).
"""

from __future__ import annotations

import numpy as np

from policies.batch import Ints
from policies.compiled import compiled

# Rows of a profile's table, whose columns are the requests in ascending order of completion.
_FINISH, _BASE, _USAGE, _LATER_PEAK = range(4)


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

    Immutable. Building costs O(n block_size + n log n), a query O(n), both compiled.

    Attributes:
        peak: Largest usage, 0 when empty.
        peak_time: First clock at which it is reached, 0 when empty.
        block_size: Tokens per block.
    """

    __slots__ = ("_table", "block_size", "peak", "peak_time")

    def __init__(self, base: Ints, finish: Ints, block_size: int) -> None:
        """Project requests that run now.

        Args:
            base: Tokens held minus the clock, (n,): a request holds `base + c` at clock c.
            finish: Clock at which each is projected to complete, ahead of the current one, (n,).
            block_size: Tokens per block.

        Raises:
            ValueError: `block_size` is below 1, or the shapes differ.
        """
        base, finish = np.ascontiguousarray(base, np.int64), np.ascontiguousarray(finish, np.int64)
        if block_size < 1 or base.shape != finish.shape:
            raise ValueError(
                f"block_size is {block_size}, must be at least 1, and base {base.shape} "
                f"and finish {finish.shape} must have one shape"
            )
        self.block_size = block_size
        self._table = np.empty((4, len(base)), np.int64)
        self.peak, self.peak_time = _build(base, finish, block_size, self._table)

    @property
    def times(self) -> Ints:
        """Distinct completion clocks, ascending, (m,)."""
        return np.unique(self._table[_FINISH])

    @property
    def usage(self) -> Ints:
        """Blocks in use at each of `times`, by the requests that complete then or later, (m,)."""
        first = np.unique(self._table[_FINISH], return_index=True)[1]
        usage: Ints = self._table[_USAGE, first]
        return usage

    def usage_at(self, clocks: Ints) -> Ints:
        """Blocks in use at each of these clocks, (k,); O(n k).

        Args:
            clocks: Ahead of the current one, (k,).
        """
        clock = np.asarray(clocks, np.int64)[:, None]
        finish, base = self._table[_FINISH], self._table[_BASE]
        blocks = -(-(base + clock) // self.block_size)
        usage: Ints = np.where(finish >= clock, blocks, 0).sum(axis=1)
        return usage

    def peaks(self, now: int, held: int, remaining: int) -> tuple[int, int]:
        """`peak_during` and `peak_with`, for the price of one."""
        return _peaks(self._table, self.block_size, now, held, remaining)

    def peak_with(self, now: int, held: int, remaining: int) -> int:
        """Peak usage in blocks after `now` if one more request started at `now`.

        Args:
            now: Clock; completions at or before it are over.
            held: Tokens the candidate holds when it starts.
            remaining: Steps it would run, at least 1.
        """
        return self.peaks(now, held, remaining)[1]

    def peak_during(self, now: int, held: int, remaining: int) -> int:
        """Like `peak_with`, but only over the steps that the candidate itself would run.

        It is smaller than `peak_with` only where the running requests peak later, when the
        candidate has gone. As a test of admission the two differ once running requests alone are
        projected beyond memory, which prolonged estimates can bring about: `peak_with` then admits
        nobody, `peak_during` whoever will be gone by then.
        """
        return self.peaks(now, held, remaining)[0]


@compiled
def _build(base: Ints, finish: Ints, block_size: int, table: Ints) -> tuple[int, int]:
    """Fill a profile's table, (4, n); returns the peak and its first clock.

    `_USAGE` counts the requests of its column and of those to the right. Among requests that
    complete together that is all of them at the first, and no more at the others.
    """
    order = np.argsort(finish)
    # ceil((b + t) / B) = floor(a / B) + floor(t / B) + [a mod B + t mod B >= B] with a = b + B - 1.
    # Of the last term, which depends on t, the sum is kept for each residue of t.
    carries = np.zeros(block_size, np.int64)
    whole = peak = peak_time = 0
    for count in range(1, len(order) + 1):
        column = len(order) - count
        row = order[column]
        clock = finish[row]
        shifted = base[row] + block_size - 1
        whole += shifted // block_size
        for residue in range(block_size - shifted % block_size, block_size):
            carries[residue] += 1
        usage = whole + count * (clock // block_size) + carries[clock % block_size]
        if usage >= peak:
            peak, peak_time = usage, clock
        table[_FINISH, column] = clock
        table[_BASE, column] = base[row]
        table[_USAGE, column] = usage
        table[_LATER_PEAK, column] = peak
    return int(peak), int(peak_time)


@compiled
def _peaks(table: Ints, block_size: int, now: int, held: int, remaining: int) -> tuple[int, int]:
    """Peak while a candidate runs, and from now on."""
    count = table.shape[1]
    end = now + remaining
    during = 0
    column = 0
    while column < count and table[_FINISH, column] < end:
        clock = table[_FINISH, column]
        if clock > now:
            own = (held + clock - now + block_size - 1) // block_size
            during = max(during, table[_USAGE, column] + own)
        column += 1
    later = table[_LATER_PEAK, column] if column < count else 0
    at_end = (held + remaining + block_size - 1) // block_size
    for other in range(column, count):
        at_end += (table[_BASE, other] + end + block_size - 1) // block_size
    during = max(during, at_end)
    return int(during), int(max(during, later))
