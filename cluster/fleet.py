"""All replicas' ledgers, and the search for the one that should take a request."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cluster.ledger import REFINE_AFTER, Replica, ReplicaLedger, as_batch
from policies.admission import Admission
from policies.batch import Floats, Ints
from policies.compiled import compiled

NEVER = int(np.iinfo(np.int64).max // 2)
"""More tokens or steps than there are."""

# Rows of the summary, whose columns are the replicas.
_CAPACITY, _BLOCK_SIZE, _LARGEST_REQUEST, _FREE_SLOTS, _USED, _PEAK, _PEAK_STEP = range(7)
_MOST_HELD_NOW, _MOST_HELD_AT_PEAK, _REFUSED_HELD, _REFUSED_STEPS, _LIMIT = range(7, 12)


class Fleet:
    """Replica ledgers with a summary of each, a matrix of shape (12, replicas).

    The search rules out most replicas by their summaries, in one compiled pass, and asks only the
    ledgers that are left for the exact projection, so that its cost hardly grows with the number of
    replicas. A replica that refused a request is not asked again for one that is at least as large
    in every respect until its ledger changes.

    Attributes:
        slots: Decode slots of all replicas together.
        largest_request: Tokens (prompt and output) of the largest request any replica can hold.
    """

    def __init__(
        self, admission: Admission, refine_after: float = REFINE_AFTER, horizon: str = "own"
    ) -> None:
        self._admission = admission
        self._refine_after = refine_after
        self._own_steps_only = horizon == "own"
        self._ledgers: list[ReplicaLedger] = []
        self._rows: dict[str, int] = {}
        self._refused_guard_band = 0.0
        # Dictionaries for their order, which a set of strings takes from a random seed.
        self._dirty: dict[str, None] = {}
        self._unrefined: dict[str, None] = {}
        self._reindex()

    def __len__(self) -> int:
        return len(self._ledgers)

    def __iter__(self) -> Iterator[ReplicaLedger]:
        return iter(self._ledgers)

    def __contains__(self, replica_id: str) -> bool:
        return replica_id in self._rows

    def __getitem__(self, replica_id: str) -> ReplicaLedger:
        return self._ledgers[self._rows[replica_id]]

    def get(self, replica_id: str) -> ReplicaLedger | None:
        """The replica's ledger; None when it is not here."""
        row = self._rows.get(replica_id)
        return None if row is None else self._ledgers[row]

    def join(self, replica: Replica) -> None:
        """Add an empty replica."""
        self._ledgers.append(ReplicaLedger(replica))
        self._reindex()

    def leave(self, replica_id: str) -> ReplicaLedger:
        """Remove a replica and return its ledger."""
        ledger = self._ledgers.pop(self._rows[replica_id])
        self._reindex()
        return ledger

    def changed(self, replica_id: str, *, refine: bool = False) -> None:
        """Note that a ledger was changed, so that its summary is taken anew before the next use.

        Args:
            replica_id: Whose.
            refine: What is known of its requests has changed too: their estimates are made again
                where they are stale.
        """
        self._dirty[replica_id] = None
        if refine:
            self._unrefined[replica_id] = None

    @property
    def has_free_slot(self) -> bool:
        """Whether any replica may hold one more request."""
        self._summarise()
        return self._totals[_FREE_SLOTS] > 0

    @property
    def used_blocks(self) -> int:
        """KV blocks that all replicas hold."""
        self._summarise()
        return self._totals[_USED]

    @property
    def peak_blocks(self) -> int:
        """Sum over the replicas of the peak that is projected, whenever each is."""
        self._summarise()
        return self._totals[_PEAK]

    def place(
        self, held: int, steps: int, most: int, guard_band: float = 0.0
    ) -> tuple[str, int] | None:
        """The replica on which the projected peak stays lowest as a share of its capacity.

        Args:
            held: Tokens the request brings (prompt and earlier output).
            steps: Tokens it is projected to add.
            most: Tokens it can reach (prompt and its own cap); a replica must be able to hold them.
            guard_band: Share of each replica's capacity that must stay free, unless the replica
                is empty: a request that needs it all would wait for ever.

        Returns:
            Replica id and the projected peak in blocks with the request there, over all steps;
            None when the projection admits it on no replica.
        """
        self._summarise()
        if guard_band != self._refused_guard_band:
            self._summary[_REFUSED_HELD : _REFUSED_STEPS + 1] = NEVER
            self._refused_guard_band = guard_band
        rows, shares = self._found_rows, self._found_shares
        found = _candidates(self._summary, held, steps, most, guard_band, rows, shares)
        best: tuple[str, int] | None = None
        best_share = math.inf
        # Asked in this order, the search ends where no later one can be better.
        index = _next(shares, found, -1)
        while index >= 0 and shares[index] < best_share:
            row = rows[index]
            ledger = self._ledgers[row]
            during, peak = ledger.profile.peaks(0, held, steps)
            if (during if self._own_steps_only else peak) > self._summary[_LIMIT, row]:
                self._summary[_REFUSED_HELD, row] = held
                self._summary[_REFUSED_STEPS, row] = steps
            elif (share := peak / ledger.replica.kv_blocks) < best_share:
                best_share = share
                best = (ledger.replica.replica_id, peak)
            index = _next(shares, found, index)
        return best

    def patience(self, held: int, steps: int, most: int, guard_band: float = 0.0) -> int:
        """Steps that the replicas make at least before one that refuses a request may take it.

        As long as nothing ends: that may make room at any time. `NEVER` where only that helps.

        Args:
            held: As for `place`.
            steps: As for `place`.
            most: As for `place`.
            guard_band: As for `place`.
        """
        self._summarise()
        return _patience(self._summary, held, steps, most, guard_band)

    def _reindex(self) -> None:
        """Make the summary anew after a replica joined or left."""
        replicas = [ledger.replica for ledger in self._ledgers]
        self._rows = {replica.replica_id: row for row, replica in enumerate(replicas)}
        self._summary = np.zeros((12, len(replicas)), np.int64)
        self._summary[_CAPACITY] = [r.kv_blocks for r in replicas]
        self._summary[_BLOCK_SIZE] = [r.block_size for r in replicas]
        self._summary[_LARGEST_REQUEST] = [r.largest_request for r in replicas]
        self._found_rows = np.empty(len(replicas), np.int64)
        self._found_shares = np.empty(len(replicas), np.float64)
        self._totals = dict.fromkeys((_FREE_SLOTS, _USED, _PEAK), 0)
        self.slots = sum(r.slots for r in replicas)
        self.largest_request = max((r.largest_request for r in replicas), default=0)
        self._dirty = dict.fromkeys(self._rows)
        self._unrefined = {r: None for r in self._unrefined if r in self._rows}

    def _summarise(self) -> None:
        """Bring the summary up to date where ledgers have changed."""
        if not self._dirty:
            return
        if self._unrefined:
            self._refine([self[replica_id] for replica_id in self._unrefined])
            self._unrefined.clear()
        totals = self._totals
        for replica_id in self._dirty:
            row = self._rows[replica_id]
            ledger = self._ledgers[row]
            profile = ledger.profile
            free, used, peak = _summarise(
                self._summary,
                row,
                max(ledger.free_slots, 0),
                ledger.used_blocks,
                profile.peak,
                profile.peak_time,
            )
            totals[_FREE_SLOTS] += free
            totals[_USED] += used
            totals[_PEAK] += peak
        self._dirty.clear()

    def _refine(self, ledgers: list[ReplicaLedger]) -> None:
        """Make the stale estimates of all these ledgers again, in one call."""
        stale = [
            (ledger, rows) for ledger in ledgers if len(rows := ledger.stale(self._refine_after))
        ]
        if not stale:
            return
        columns = [ledger.columns(rows) for ledger, rows in stale]
        ints, floats = columns[0]
        if len(columns) > 1:
            ints = np.concatenate([c[0] for c in columns], axis=1)
            floats = np.concatenate([c[1] for c in columns], axis=1)
        estimates = self._admission.estimates(as_batch(ints, floats))
        start = 0
        for ledger, rows in stale:
            ledger.set_estimates(rows, estimates[start : start + len(rows)])
            start += len(rows)


@compiled
def _summarise(
    summary: Ints, row: int, free_slots: int, used: int, peak: int, peak_step: int
) -> tuple[int, int, int]:
    """Write a replica's row; returns by how much its free slots, use and peak have changed."""
    changes = (
        int(free_slots - summary[_FREE_SLOTS, row]),
        int(used - summary[_USED, row]),
        int(peak - summary[_PEAK, row]),
    )
    capacity, block_size = summary[_CAPACITY, row], summary[_BLOCK_SIZE, row]
    summary[_FREE_SLOTS, row] = free_slots
    summary[_USED, row] = used
    summary[_PEAK, row] = peak
    summary[_PEAK_STEP, row] = peak_step if peak else NEVER
    summary[_MOST_HELD_NOW, row] = (capacity - used) * block_size - 1
    summary[_MOST_HELD_AT_PEAK, row] = (capacity - peak) * block_size - peak_step
    summary[_REFUSED_HELD, row] = summary[_REFUSED_STEPS, row] = NEVER
    return changes


@compiled
def _candidates(
    summary: Ints,
    held: int,
    steps: int,
    most: int,
    guard_band: float,
    rows: Ints,
    least_shares: Floats,
) -> int:
    """List the replicas that may admit a request, with the least that its peak there can be.

    Two steps are tested for each: the next one, and the one where the projection without the
    request has its peak, if the request would still run then. The request runs in both, so that
    they hold for either horizon; and who refuses a request refuses a larger or longer one.

    Args:
        summary: The fleet's; `_LIMIT` is filled in.
        held: As for `Fleet.place`.
        steps: As for `Fleet.place`.
        most: As for `Fleet.place`.
        guard_band: As for `Fleet.place`.
        rows: Filled with the replicas' columns in the summary.
        least_shares: Filled with lower bounds on their peaks with the request, over all steps, as
            shares of their capacity.

    Returns:
        How many there are.
    """
    found = 0
    for row in range(summary.shape[1]):
        capacity, block_size = summary[_CAPACITY, row], summary[_BLOCK_SIZE, row]
        limit = capacity
        if guard_band > 0 and summary[_USED, row] > 0:
            limit = int(capacity * (1.0 - guard_band))
        summary[_LIMIT, row] = limit
        held_and_band = held + (capacity - limit) * block_size
        peak_step = summary[_PEAK_STEP, row]
        if (
            summary[_FREE_SLOTS, row] > 0
            and summary[_LARGEST_REQUEST, row] >= most
            and summary[_MOST_HELD_NOW, row] >= held_and_band
            and (peak_step > steps or summary[_MOST_HELD_AT_PEAK, row] >= held_and_band)
            and (summary[_REFUSED_HELD, row] > held or summary[_REFUSED_STEPS, row] > steps)
        ):
            together = (
                (held + peak_step + block_size - 1) // block_size if peak_step <= steps else 0
            )
            alone = (held + steps + block_size - 1) // block_size
            least_shares[found] = max(summary[_PEAK, row] + together, alone) / capacity
            rows[found] = row
            found += 1
    return found


@compiled
def _patience(summary: Ints, held: int, steps: int, most: int, guard_band: float) -> int:
    """See `Fleet.patience`.

    What is in use grows while nothing ends, so a request that does not fit now will not. The moment
    of the projected peak comes nearer by a step each step, and the request will then hold a token
    less.
    """
    least = NEVER
    for row in range(summary.shape[1]):
        capacity, block_size = summary[_CAPACITY, row], summary[_BLOCK_SIZE, row]
        band = 0
        if guard_band > 0 and summary[_USED, row] > 0:
            band = (capacity - int(capacity * (1.0 - guard_band))) * block_size
        if (
            summary[_FREE_SLOTS, row] > 0
            and summary[_LARGEST_REQUEST, row] >= most
            and summary[_MOST_HELD_NOW, row] >= held + band
        ):
            peak_step = summary[_PEAK_STEP, row]
            wait = 1
            if peak_step <= steps:
                excess = held + band - summary[_MOST_HELD_AT_PEAK, row]
                wait = max(min(excess, peak_step), 1)
            least = min(least, wait)
    return int(least)


@compiled
def _next(shares: Floats, found: int, after: int) -> int:
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
