"""All replicas' ledgers, and a summary of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from cluster.core import fleet_summary as summaries
from cluster.core.replica_speeds import ReplicaSpeeds
from policies.admission import Admission
from policies.forecast import Forecast
from policies.ledger import Replica, ReplicaLedger, as_batch
from policies.request import Request, RequestClass


class FleetLedgers:
    """Replica ledgers with a summary of each, a column of a matrix (see `fleet_summary`).

    A replica that is closed has no free slot in its summary, whatever its ledger has.

    Attributes:
        slots: Decode slots of all replicas together.
        largest_request: Tokens (prompt and output) of the largest request any replica can hold.
        speeds: How fast each replica is.
    """

    def __init__(self, admission: Admission, refine_after: float) -> None:
        self._admission = admission
        self._refine_after = refine_after
        self._ledgers: list[ReplicaLedger] = []
        self._rows: dict[str, int] = {}
        # Dictionaries for their order, which a set of strings takes from a random seed.
        self._dirty: dict[str, None] = {}
        self._unrefined: dict[str, None] = {}
        # Per replica those that were sent ahead and have not started, with their output tokens.
        self._ahead: dict[str, dict[str, int]] = {}
        # Per replica those that give way to online ones, wherever they are there.
        self._offline: dict[str, set[str]] = {}
        # Replicas that take no work: for good, and until they are released.
        self._draining: dict[str, None] = {}
        self._reserved: dict[str, None] = {}
        self._slow: dict[str, None] = {}
        self.speeds = ReplicaSpeeds()
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
        self.speeds.join(replica.replica_id)
        self._reindex()

    def leave(self, replica_id: str) -> ReplicaLedger:
        """Remove a replica and return its ledger."""
        ledger = self._ledgers.pop(self._rows[replica_id])
        self._ahead.pop(replica_id, None)
        self._offline.pop(replica_id, None)
        for known in (self._draining, self._reserved, self._slow):
            known.pop(replica_id, None)
        self.speeds.leave(replica_id)
        self._reindex()
        return ledger

    def drain(self, replica_id: str) -> None:
        """A replica takes no more work, for good."""
        self._draining[replica_id] = None
        self._admit(replica_id)

    def reserve(self, replica_id: str) -> None:
        """A replica takes no more work until it is released."""
        self._reserved[replica_id] = None
        self._admit(replica_id)

    def release(self, replica_id: str) -> None:
        """A replica that was reserved takes work again, unless it drains."""
        self._reserved.pop(replica_id, None)
        self._admit(replica_id)

    def is_closed(self, replica_id: str) -> bool:
        """Whether a replica takes no more work."""
        return replica_id in self._draining or replica_id in self._reserved

    def is_draining(self, replica_id: str) -> bool:
        """Whether a replica takes no more work for good."""
        return replica_id in self._draining

    def is_avoided(self, replica_id: str) -> bool:
        """Whether work goes around a replica because it is slow."""
        return replica_id in self._slow

    def is_reserved(self, replica_id: str) -> bool:
        """Whether a replica takes no more work until it is released."""
        return replica_id in self._reserved

    @property
    def serving(self) -> int:
        """Replicas that take work."""
        return len(self._ledgers) - len({**self._draining, **self._reserved})

    def judge(self, now: float) -> None:
        """Find out which replicas are slow, when that is due."""
        for replica_id, slow in self.speeds.judge(now).items():
            self._avoid(replica_id, slow)

    def dispatched(self, replica_id: str, now: float) -> None:
        """A replica gets a request; a slow one gets no second one to be measured by."""
        if self.speeds.dispatched(replica_id, now):
            self._avoid(replica_id, True)

    def emptiest(self, most: int) -> str | None:
        """Of the replicas that take work, the one with the least of its memory in use.

        Args:
            most: Tokens that it must be able to hold.
        """
        self._summarise()
        shares = self._summary[summaries.USED] / self._summary[summaries.CAPACITY]
        shares[self._summary[summaries.LARGEST_REQUEST] < most] = np.inf
        shares[[self._rows[i] for i in (*self._draining, *self._reserved)]] = np.inf
        row = int(np.argmin(shares)) if len(shares) else -1
        if row < 0 or shares[row] == np.inf:
            return None
        return self._ledgers[row].replica.replica_id

    def enter(
        self,
        replica_id: str,
        request: Request,
        forecast: Forecast,
        estimate: int,
        *,
        ahead: bool = False,
    ) -> None:
        """Enter a request in a replica's ledger.

        Args:
            replica_id: Whose.
            request: The request.
            forecast: Its forecast.
            estimate: Output tokens it is projected to reach.
            ahead: Whether it is sent there ahead of there being room.
        """
        self[replica_id].add(request, forecast, estimate)
        if request.request_class is RequestClass.OFFLINE:
            self._offline.setdefault(replica_id, set()).add(request.request_id)
        if ahead:
            ahead_there = self._ahead.setdefault(replica_id, {})
            ahead_there[request.request_id] = request.generated_tokens
        self.changed(replica_id)

    def remove(self, replica_id: str, request_id: str) -> None:
        """Take a request out of a replica's ledger."""
        ledger = self[replica_id]
        ledger.remove(request_id)
        if (offline := self._offline.get(replica_id)) is not None:
            offline.discard(request_id)
        if not len(ledger):
            self.speeds.idle(replica_id)
        self.started(replica_id, [request_id])
        self.changed(replica_id)

    def progressed(self, replica_id: str, tokens_by_request: Mapping[str, int]) -> tuple[int, int]:
        """Correct a replica's ledger by its own counts of output tokens.

        Returns:
            How many requests have gained tokens, and how many tokens together.
        """
        ledger = self[replica_id]
        gains = ledger.progressed(tokens_by_request)
        if ahead := self._ahead.get(replica_id):
            self.started(replica_id, [i for i in ahead if ledger.generated(i) > ahead[i]])
        self.changed(replica_id, refine=True)
        return gains

    def started(self, replica_id: str, request_ids: Iterable[str]) -> None:
        """Requests are known to run: whoever of them was sent there ahead is ahead no more."""
        ahead = self._ahead.get(replica_id)
        if ahead is None:
            return
        for request_id in request_ids:
            ahead.pop(request_id, None)
        if not ahead:
            del self._ahead[replica_id]
        self.changed(replica_id)

    def learn(self, replica_id: str, request_id: str, forecast: Forecast) -> None:
        """Replace the forecast of a request in a replica's ledger."""
        self[replica_id].learn(request_id, forecast)
        self.changed(replica_id, refine=True)

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
        return self._totals[summaries.FREE_SLOTS] > 0

    @property
    def has_online_place(self) -> bool:
        """Whether any replica has offline requests that would give way to an online one."""
        self._summarise()
        return self._totals[summaries.ONLINE_PLACES] > 0

    @property
    def free_places(self) -> int:
        """Places in the replicas' batches that are free, those of look-ahead not counted."""
        self._summarise()
        return max(self._totals[summaries.FREE_SLOTS] - (self.slots - self.places), 0)

    @property
    def used_blocks(self) -> int:
        """KV blocks that all replicas hold."""
        self._summarise()
        return self._totals[summaries.USED]

    @property
    def peak_blocks(self) -> int:
        """Sum over the replicas of the peak that is projected, whenever each is."""
        self._summarise()
        return self._totals[summaries.PEAK]

    def _reindex(self) -> None:
        """Make the summary anew after a replica joined or left."""
        replicas = [ledger.replica for ledger in self._ledgers]
        self._rows = {replica.replica_id: row for row, replica in enumerate(replicas)}
        self._summary = np.zeros((summaries.ROWS, len(replicas)), np.int64)
        self._summary[summaries.CAPACITY] = [r.kv_blocks for r in replicas]
        self._summary[summaries.BLOCK_SIZE] = [r.block_size for r in replicas]
        self._summary[summaries.LARGEST_REQUEST] = [r.largest_request for r in replicas]
        self._summary[summaries.LOOK_AHEAD] = [r.look_ahead for r in replicas]
        self._summary[summaries.SLOW] = [r.replica_id in self._slow for r in replicas]
        self._found_rows = np.empty(len(replicas), np.int64)
        self._found_shares = np.empty(len(replicas), np.float64)
        totals = (
            summaries.FREE_SLOTS,
            summaries.USED,
            summaries.PEAK,
            summaries.ONLINE_PLACES,
        )
        self._totals = dict.fromkeys(totals, 0)
        self._looks_ahead = any(r.look_ahead for r in replicas)
        self.slots = sum(r.slots for r in replicas)
        self.places = sum(r.slots - r.look_ahead for r in replicas)
        self.capacity_tokens = sum(r.kv_blocks * r.block_size for r in replicas)
        self.largest_request = max((r.largest_request for r in replicas), default=0)
        self._measure_quick()
        self._dirty = dict.fromkeys(self._rows)
        self._unrefined = {r: None for r in self._unrefined if r in self._rows}

    def _admit(self, replica_id: str) -> None:
        """Who may get work has changed."""
        self._measure_quick()
        self.changed(replica_id)

    def _avoid(self, replica_id: str, slow: bool) -> None:
        if slow:
            self._slow[replica_id] = None
        else:
            self._slow.pop(replica_id, None)
        self._summary[summaries.SLOW, self._rows[replica_id]] = slow
        self._measure_quick()

    def _measure_quick(self) -> None:
        """Size the largest request that any replica can hold which is neither slow nor drains."""
        left_out = self._slow.keys() | self._draining.keys()
        self._largest_quick = max(
            (
                ledger.replica.largest_request
                for ledger in self._ledgers
                if ledger.replica.replica_id not in left_out
            ),
            default=0,
        )

    def _summarise(self) -> None:
        """Bring the summary up to date where ledgers have changed."""
        if not self._dirty:
            return
        if self._unrefined:
            self._refine([self[replica_id] for replica_id in self._unrefined])
            self._unrefined.clear()
        totals, closed = self._totals, {**self._draining, **self._reserved}
        for replica_id in self._dirty:
            row = self._rows[replica_id]
            ledger = self._ledgers[row]
            profile = ledger.profile
            free, used, peak, online = summaries.summarise(
                self._summary,
                row,
                0 if replica_id in closed else max(ledger.free_slots, 0),
                ledger.replica.look_ahead - len(self._ahead.get(replica_id, ())),
                ledger.used_blocks,
                profile.peak,
                profile.peak_time,
                0 if replica_id in closed else self._online_places(ledger),
            )
            totals[summaries.FREE_SLOTS] += free
            totals[summaries.USED] += used
            totals[summaries.PEAK] += peak
            totals[summaries.ONLINE_PLACES] += online
        self._dirty.clear()

    def _online_places(self, ledger: ReplicaLedger) -> int:
        """Places of a replica's batch that offline requests would give up."""
        replica = ledger.replica
        offline = len(self._offline.get(replica.replica_id, ()))
        if not (replica.gives_way and offline):
            return 0
        return max(replica.slots - replica.look_ahead - (len(ledger) - offline), 0)

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
