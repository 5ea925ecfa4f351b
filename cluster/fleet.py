"""All replicas' ledgers, and the search for the one that should take a request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cluster.ledger import Replica, ReplicaLedger, as_batch
from policies.admission import Admission
from policies.batch import Ints

_NEVER = np.iinfo(np.int64).max // 2


class Fleet:
    """Replica ledgers with a summary of each in columns of shape (replicas,).

    The search rules out most replicas by comparing their columns, in a few vectorised operations,
    and asks only the ledgers that are left for the exact projection, so that its cost hardly grows
    with the number of replicas. A replica that refused a request is not asked again for one that is
    at least as large in every respect until its ledger changes.

    Attributes:
        slots: Decode slots of all replicas together.
        largest_request: Tokens (prompt and output) of the largest request any replica can hold.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._ledgers: list[ReplicaLedger] = []
        self._rows: dict[str, int] = {}
        self._refused_guard_band = 0.0
        self._dirty: set[str] = set()
        self._unrefined: set[str] = set()
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
        self._dirty.add(replica_id)
        if refine:
            self._unrefined.add(replica_id)

    @property
    def has_free_slot(self) -> bool:
        """Whether any replica may hold one more request."""
        self._summarise()
        return bool((self._free_slots > 0).any())

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
            Replica id and the projected peak in blocks with the request there; None when the
            projection admits it on no replica.
        """
        self._summarise()
        rows, limit = self._candidates(held, steps, most, guard_band)
        shares = self._least_peak(rows, held, steps) / self._capacity[rows]
        # In this order the search ends at the first replica whose peak would be at least the best.
        order = np.argsort(shares, kind="stable")
        best: tuple[str, int] | None = None
        best_share = np.inf
        for row, share in zip(rows[order].tolist(), shares[order].tolist(), strict=True):
            if share >= best_share:
                break
            peak = self._ledgers[row].profile.peak_with(0, held, steps)
            if peak > limit[row]:
                self._refused_held[row], self._refused_steps[row] = held, steps
            elif peak / self._capacity[row] < best_share:
                best_share = peak / self._capacity[row]
                best = (self._ledgers[row].replica.replica_id, peak)
        return best

    def _candidates(self, held: int, steps: int, most: int, guard_band: float) -> tuple[Ints, Ints]:
        """Rows that may admit the request, and every row's limit in blocks.

        Two moments are tested for each row: the next step, and the one where the projection
        without the request has its peak, if the request would still run then.
        """
        if guard_band != self._refused_guard_band:
            self._forget_refusals()
            self._refused_guard_band = guard_band
        limit = self._capacity
        if guard_band > 0:
            banded = (self._capacity * (1.0 - guard_band)).astype(np.int64)
            limit = np.where(self._used > 0, banded, self._capacity)
        held_and_band = held + (self._capacity - limit) * self._block_size
        possible = (
            (self._free_slots > 0)
            & (self._largest_request >= most)
            & (self._most_held_now >= held_and_band)
            & ((self._most_held_at_peak >= held_and_band) | (self._peak_step > steps))
            & ((self._refused_held > held) | (self._refused_steps > steps))
        )
        return np.flatnonzero(possible), limit

    def _least_peak(self, rows: Ints, held: int, steps: int) -> Ints:
        """Lower bound on each row's peak with the request: its own peak's moment, and the end."""
        step, size = self._peak_step[rows], self._block_size[rows]
        together = np.where(step <= steps, (held + step + size - 1) // size, 0)
        alone = (held + steps + size - 1) // size
        bound: Ints = np.maximum(self._peak[rows] + together, alone)
        return bound

    def _reindex(self) -> None:
        """Make the columns anew after a replica joined or left."""
        replicas = [ledger.replica for ledger in self._ledgers]
        n = len(replicas)
        self._rows = {replica.replica_id: row for row, replica in enumerate(replicas)}
        self._capacity = np.array([r.kv_blocks for r in replicas], np.int64)
        self._block_size = np.array([r.block_size for r in replicas], np.int64)
        self._largest_request = np.array([r.largest_request for r in replicas], np.int64)
        self._free_slots = np.zeros(n, np.int64)
        self._used = np.zeros(n, np.int64)
        self._peak = np.zeros(n, np.int64)
        self._peak_step = np.zeros(n, np.int64)
        self._most_held_now = np.zeros(n, np.int64)
        self._most_held_at_peak = np.zeros(n, np.int64)
        self._refused_held = np.full(n, _NEVER)
        self._refused_steps = np.full(n, _NEVER)
        self.slots = sum(r.slots for r in replicas)
        self.largest_request = int(self._largest_request.max(initial=0))
        self._dirty = set(self._rows)
        self._unrefined &= self._dirty

    def _forget_refusals(self) -> None:
        self._refused_held[:] = _NEVER
        self._refused_steps[:] = _NEVER

    def _summarise(self) -> None:
        if not self._dirty:
            return
        self._refine([self[replica_id] for replica_id in self._unrefined])
        self._unrefined.clear()
        rows = [self._rows[replica_id] for replica_id in self._dirty]
        self._dirty.clear()
        for row in rows:
            ledger = self._ledgers[row]
            size, capacity = ledger.replica.block_size, ledger.replica.kv_blocks
            profile, used = ledger.profile, ledger.used_blocks
            self._free_slots[row] = ledger.free_slots
            self._used[row] = used
            self._peak[row] = profile.peak
            self._peak_step[row] = profile.peak_time if profile.peak else _NEVER
            self._most_held_now[row] = (capacity - used) * size - 1
            self._most_held_at_peak[row] = (capacity - profile.peak) * size - profile.peak_time
            self._refused_held[row] = self._refused_steps[row] = _NEVER

    def _refine(self, ledgers: list[ReplicaLedger]) -> None:
        """Make the stale estimates of all these ledgers again, in one vectorised call."""
        stale = [(ledger, rows) for ledger in ledgers if len(rows := ledger.stale())]
        if not stale:
            return
        columns = [ledger.columns(rows) for ledger, rows in stale]
        ints = np.concatenate([c[0] for c in columns], axis=1)
        floats = np.concatenate([c[1] for c in columns], axis=1)
        estimates = self._admission.estimates(as_batch(ints, floats))
        bounds = np.cumsum([len(rows) for _, rows in stale])[:-1]
        for (ledger, rows), own in zip(stale, np.split(estimates, bounds), strict=True):
            ledger.set_estimates(rows, own)
