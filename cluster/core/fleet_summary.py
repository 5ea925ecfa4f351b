"""A fleet in a matrix with one column per replica, and the compiled passes over its columns."""

from __future__ import annotations

import numpy as np

from policies.batch import Floats, Ints
from policies.compiled import compiled

NEVER = int(np.iinfo(np.int64).max // 2)
"""More tokens or steps than there are."""

# Rows of the summary, whose columns are the replicas.
CAPACITY, BLOCK_SIZE, LARGEST_REQUEST, LOOK_AHEAD = range(4)
FREE_SLOTS, AHEAD_PLACES, USED, PEAK, PEAK_STEP = range(4, 9)
MOST_HELD_NOW, MOST_HELD_AT_PEAK, REFUSED_HELD, REFUSED_STEPS, LIMIT = range(9, 14)
SLOW, ONLINE_PLACES = 14, 15
ROWS = 16


@compiled
def summarise(
    summary: Ints,
    row: int,
    free_slots: int,
    ahead_places: int,
    used: int,
    peak: int,
    peak_step: int,
    online_places: int,
) -> tuple[int, int, int, int]:
    """Write a replica's column; returns by how much its free slots, use and peak have changed.

    And by how much those places have that offline requests would give up.
    """
    changes = (
        int(free_slots - summary[FREE_SLOTS, row]),
        int(used - summary[USED, row]),
        int(peak - summary[PEAK, row]),
        int(online_places - summary[ONLINE_PLACES, row]),
    )
    summary[ONLINE_PLACES, row] = online_places
    capacity, block_size = summary[CAPACITY, row], summary[BLOCK_SIZE, row]
    summary[FREE_SLOTS, row] = free_slots
    summary[AHEAD_PLACES, row] = ahead_places
    summary[USED, row] = used
    summary[PEAK, row] = peak
    summary[PEAK_STEP, row] = peak_step if peak else NEVER
    summary[MOST_HELD_NOW, row] = (capacity - used) * block_size - 1
    summary[MOST_HELD_AT_PEAK, row] = (capacity - peak) * block_size - peak_step
    summary[REFUSED_HELD, row] = summary[REFUSED_STEPS, row] = NEVER
    return changes


@compiled
def candidates(
    summary: Ints,
    held: int,
    steps: int,
    most: int,
    guard_band: float,
    besides: int,
    slow: int,
    ahead: int,
    only_empty: int,
    rows: Ints,
    least_shares: Floats,
) -> int:
    """List the replicas that may admit a request, with the least that its peak there can be.

    Two steps are tested for each: the next one, and the one where the projection without the
    request has its peak, if the request would still run then. The request runs in both, so that
    they hold for either horizon; and who refuses a request refuses a larger or longer one.

    Args:
        summary: The fleet's; `LIMIT` is filled in.
        held: As for `Fleet.place`.
        steps: As for `Fleet.place`.
        most: As for `Fleet.place`.
        guard_band: As for `Fleet.place`.
        besides: Column of the replica that is left out; -1: none is.
        slow: 1: of the slow ones, 0: of the others.
        ahead: 1: also those whose only free slots are those of look-ahead.
        only_empty: 1: of those that hold nothing.
        rows: Filled with the replicas' columns in the summary.
        least_shares: Filled with lower bounds on their peaks with the request, over all steps, as
            shares of their capacity.

    Returns:
        How many there are.
    """
    found = 0
    for row in range(summary.shape[1]):
        capacity, block_size = summary[CAPACITY, row], summary[BLOCK_SIZE, row]
        limit = capacity
        if guard_band > 0 and summary[USED, row] > 0:
            limit = int(capacity * (1.0 - guard_band))
        summary[LIMIT, row] = limit
        held_and_band = held + (capacity - limit) * block_size
        peak_step = summary[PEAK_STEP, row]
        kept_slots = 0 if ahead else summary[LOOK_AHEAD, row]
        if (
            row != besides
            and not (only_empty and summary[USED, row] > 0)
            and summary[SLOW, row] == slow
            and summary[FREE_SLOTS, row] > kept_slots
            and summary[LARGEST_REQUEST, row] >= most
            and summary[MOST_HELD_NOW, row] >= held_and_band
            and (peak_step > steps or summary[MOST_HELD_AT_PEAK, row] >= held_and_band)
            and (summary[REFUSED_HELD, row] > held or summary[REFUSED_STEPS, row] > steps)
        ):
            together = (
                (held + peak_step + block_size - 1) // block_size if peak_step <= steps else 0
            )
            alone = (held + steps + block_size - 1) // block_size
            least_shares[found] = max(summary[PEAK, row] + together, alone) / capacity
            rows[found] = row
            found += 1
    return found


@compiled
def ahead_candidates(
    summary: Ints,
    held: int,
    steps: int,
    most: int,
    online: int,
    slow: int,
    rows: Ints,
    least_shares: Floats,
) -> int:
    """Like `candidates`, of the replicas that may be sent a request which they have no room for.

    For an online one also those where offline ones would give it a place.
    """
    found = 0
    for row in range(summary.shape[1]):
        may_wait = summary[FREE_SLOTS, row] > 0 and summary[AHEAD_PLACES, row] > 0
        if (
            (may_wait or (online and summary[ONLINE_PLACES, row] > 0))
            and summary[SLOW, row] == slow
            and summary[LARGEST_REQUEST, row] >= most
        ):
            block_size, peak_step = summary[BLOCK_SIZE, row], summary[PEAK_STEP, row]
            together = (
                (held + peak_step + block_size - 1) // block_size if peak_step <= steps else 0
            )
            alone = (held + steps + block_size - 1) // block_size
            least = max(summary[PEAK, row] + together, alone)
            least_shares[found] = least / summary[CAPACITY, row]
            summary[LIMIT, row] = NEVER
            rows[found] = row
            found += 1
    return found


@compiled
def patience(summary: Ints, held: int, steps: int, most: int, guard_band: float) -> int:
    """See `Fleet.patience`.

    What is in use grows while nothing ends, so a request that does not fit now will not. The moment
    of the projected peak comes nearer by a step each step, and the request will then hold a token
    less.
    """
    least = NEVER
    for row in range(summary.shape[1]):
        capacity, block_size = summary[CAPACITY, row], summary[BLOCK_SIZE, row]
        band = 0
        if guard_band > 0 and summary[USED, row] > 0:
            band = (capacity - int(capacity * (1.0 - guard_band))) * block_size
        if (
            summary[FREE_SLOTS, row] > 0
            and summary[LARGEST_REQUEST, row] >= most
            and summary[MOST_HELD_NOW, row] >= held + band
        ):
            peak_step = summary[PEAK_STEP, row]
            wait = 1
            if peak_step <= steps:
                excess = held + band - summary[MOST_HELD_AT_PEAK, row]
                wait = max(min(excess, peak_step), 1)
            least = min(least, wait)
    return int(least)


@compiled
def following(shares: Floats, found: int, after: int) -> int:
    """The index that follows `after` when `found` shares are taken in ascending order.

    Equal ones go by index. -1 stands before the first and after the last. Few are ever asked for,
    so that a pass for each costs less than to sort them all.
    """
    best = -1
    for index in range(found):
        if after >= 0 and (
            shares[index] < shares[after] or (shares[index] == shares[after] and index <= after)
        ):
            continue
        if best < 0 or shares[index] < shares[best]:
            best = index
    return best
