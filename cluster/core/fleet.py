"""All replicas' ledgers, and the search for the one that should take a request."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cluster.core import fleet_summary as summaries
from cluster.core.fleet_ledgers import FleetLedgers
from cluster.core.fleet_summary import NEVER
from policies.admission import Admission
from policies.ledger import REFINE_AFTER


class Fleet(FleetLedgers):
    """The fleet's ledgers, searched.

    The search rules out most replicas by their summaries, in one compiled pass, and asks only the
    ledgers that are left for the exact projection, so that its cost hardly grows with the number of
    replicas. A replica that refused a request is not asked again for one that is at least as large
    in every respect until its ledger changes.

    Work goes around slow replicas. An online request is sent to one only when no other could ever
    run it, an offline one only when no other has room for it.
    """

    def __init__(
        self, admission: Admission, refine_after: float = REFINE_AFTER, horizon: str = "own"
    ) -> None:
        super().__init__(admission, refine_after)
        self._own_steps_only = horizon == "own"
        self._refused_guard_band = 0.0

    def place(
        self,
        held: int,
        steps: int,
        most: int,
        guard_band: float = 0.0,
        *,
        besides: str | None = None,
        online: bool = True,
        only_empty: bool = False,
    ) -> tuple[str, int] | None:
        """The replica on which the projected peak stays lowest as a share of its capacity.

        Args:
            held: Tokens the request brings (prompt and earlier output).
            steps: Tokens it is projected to add.
            most: Tokens it can reach (prompt and its own cap); a replica must be able to hold them.
            guard_band: Share of each replica's memory that must stay free, unless the replica is
                empty: a request that needs it all would wait for ever. With one, the request is
                sent nowhere to wait for a place in the batch.
            besides: The replica where the request waits inside the engine. It is left out, and the
                others must have a place in their batch: in another engine it should not wait.
            online: Whether it is an online request.
            only_empty: Whether it may go to an empty replica only.

        Returns:
            Replica id and the projected peak in blocks with the request there, over all steps;
            None when the projection admits it on no replica.
        """
        self._summarise()
        if guard_band != self._refused_guard_band:
            self._summary[summaries.REFUSED_HELD : summaries.REFUSED_STEPS + 1] = NEVER
            self._refused_guard_band = guard_band
        left_out = -1 if besides is None else self._rows[besides]
        rows, shares = self._found_rows, self._found_shares
        summary, sizes = self._summary, (held, steps, most)
        # Where it starts at once goes before where it would wait for a place in the batch.
        may_wait = self._looks_ahead and besides is None and not guard_band
        may_be_slow = self._slow and self.may_be_slow(most, online=online)
        for slow in (0, 1) if may_be_slow else (0,):
            for ahead in (0, 1) if may_wait else (0,):
                found = summaries.candidates(
                    summary, *sizes, guard_band, left_out, slow, ahead, only_empty, rows, shares
                )
                if (placed := self._lowest_peak(found, held, steps)) is not None:
                    return placed
        return None

    def place_ahead(
        self, held: int, steps: int, most: int, *, online: bool = True
    ) -> tuple[str, int] | None:
        """The replica that is sent a request ahead of there being room for it.

        One with fewer than `look_ahead` requests that were sent ahead and have not started, or for
        an online request one whose offline requests give way to it; among these the one on which
        the projected peak stays lowest as a share of its capacity.

        Args:
            held: As for `place`.
            steps: As for `place`.
            most: As for `place`.
            online: As for `place`.

        Returns:
            As `place`; None where no replica may be sent one more.
        """
        if not (self._looks_ahead or (online and self.has_online_place)):
            return None
        self._summarise()
        rows, shares = self._found_rows, self._found_shares
        summary, sizes = self._summary, (held, steps, most, online)
        found = summaries.ahead_candidates(summary, *sizes, 0, rows, shares)
        placed = self._lowest_peak(found, held, steps)
        if placed is None and self._slow and self.may_be_slow(most, online=online):
            found = summaries.ahead_candidates(summary, *sizes, 1, rows, shares)
            placed = self._lowest_peak(found, held, steps)
        return placed

    def outlook(self, replica_id: str, held: int, steps: int) -> tuple[int, int]:
        """Peaks in blocks with a request on a replica: where it must fit, and over all steps.

        Made from the ledger as it is: estimates that are stale stay so.

        Args:
            replica_id: The replica.
            held: As for `place`.
            steps: As for `place`.
        """
        during, peak = self[replica_id].profile.peaks(0, held, steps)
        return (during if self._own_steps_only else peak), peak

    def is_ahead(self, replica_id: str, request_id: str) -> bool:
        """Whether a request was sent there ahead of there being room, and has not started."""
        return request_id in self._ahead.get(replica_id, ())

    def lets_go_on(self, replica_id: str, request_id: str, waiting: Iterable[str]) -> bool:
        """Whether a replica's own projection admits a request that waits inside its engine.

        Args:
            replica_id: The replica.
            request_id: The first in order of those that wait there.
            waiting: All of those; they hold no memory.
        """
        self._summarise()
        ledger = self[replica_id]
        waiting = list(waiting)
        replica = ledger.replica
        running = len(ledger) - len(waiting)
        if not running:
            return True
        if running >= replica.slots - replica.look_ahead:
            return False
        during, peak = ledger.profile_without(waiting).peaks(0, *ledger.sizes(request_id))
        return (during if self._own_steps_only else peak) <= replica.kv_blocks

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
        return summaries.patience(self._summary, held, steps, most, guard_band)

    def may_be_slow(self, most: int, *, online: bool) -> bool:
        """Whether a request may go to a slow replica, when no other has room."""
        return not online or most > self._largest_quick

    def _lowest_peak(self, found: int, held: int, steps: int) -> tuple[str, int] | None:
        """The best of the replicas that a pass has found, by the exact projections."""
        rows, shares = self._found_rows, self._found_shares
        best: tuple[str, int] | None = None
        best_share = math.inf
        # Asked in this order, the search ends where no later one can be better.
        index = summaries.following(shares, found, -1)
        while index >= 0 and shares[index] < best_share:
            row = rows[index]
            ledger = self._ledgers[row]
            during, peak = ledger.profile.peaks(0, held, steps)
            if (during if self._own_steps_only else peak) > self._summary[summaries.LIMIT, row]:
                self._summary[summaries.REFUSED_HELD, row] = held
                self._summary[summaries.REFUSED_STEPS, row] = steps
            elif (share := peak / ledger.replica.kv_blocks) < best_share:
                best_share = share
                best = (ledger.replica.replica_id, peak)
            index = summaries.following(shares, found, index)
        return best
