"""A replica's projected memory as a curve to be drawn."""

from __future__ import annotations

import numpy as np

from policies.ledger import ReplicaLedger


def projected_memory(ledger: ReplicaLedger, points: int) -> tuple[list[int], list[int]]:
    """Blocks in use over the steps to come, if nothing else is sent there.

    The peak is always among the points, and the last one is where everything has ended.

    Args:
        ledger: The replica's.
        points: How many points at most, at least 4.

    Returns:
        Steps from now, ascending from 0, and the blocks in use at each.
    """
    profile = ledger.profile
    if not len(ledger):
        return [0], [0]
    ends = profile.times
    last = int(ends[-1])
    # Memory grows up to each end and falls behind it.
    clocks = np.unique(np.append(np.concatenate([ends, ends + 1]), 1))
    if len(clocks) > points - 1:
        even = np.linspace(1, last, points - 3).round().astype(np.int64)
        clocks = np.unique(np.concatenate([even, [profile.peak_time, last + 1]]))
    usage = profile.usage_at(clocks)
    return [0, *clocks.tolist()], [ledger.used_blocks, *usage.tolist()]
