"""The energy of all replicas, those that are gone included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from cluster.snapshot import EnergyView
from replicas.protocol import EnergyTotals

NOT_MEASURED = EnergyTotals().source
"""Source of books in which nothing is measured."""


class EnergyBooks:
    """Sums what replicas report of themselves; no two of them count the same joule.

    A replica's last report counts for good once it is gone. What a controller that was started
    again knows begins with the full books of the replicas that it took over.
    """

    def __init__(self) -> None:
        self._latest: dict[str, EnergyTotals] = {}
        self._gone: dict[str, EnergyTotals] = {}
        self._silent: set[str] = set()

    def reported(self, replica_id: str, totals: EnergyTotals) -> None:
        """A replica that runs told its books."""
        if totals.source == NOT_MEASURED:
            return
        if totals.power_w is None:
            self._silent.add(replica_id)
            earlier = self._latest.get(replica_id, totals)
            totals = msgspec.structs.replace(totals, power_w=earlier.power_w or 0.0)
        else:
            self._silent.discard(replica_id)
        self._latest[replica_id] = totals

    def lost(self, replica_id: str) -> None:
        """A replica is gone."""
        self._silent.discard(replica_id)
        totals = self._latest.pop(replica_id, None)
        if totals is not None:
            gone = msgspec.structs.replace(totals, power_w=0.0, idle_w=0.0)
            earlier = self._gone.get(gone.source, EnergyTotals())
            self._gone[gone.source] = _sum([earlier, gone], gone.source)

    @property
    def power_w(self) -> float | None:
        """Power of the replicas that run, in watts; None: no meter answers.

        What a meter that has fallen silent told last counts on while another one answers.
        """
        if len(self._silent) == len(self._latest):
            return None
        return sum(t.power_w or 0.0 for t in self._latest.values())

    @property
    def idle_w(self) -> float | None:
        """The part of it that is idle power, in watts; None: none is measured."""
        return sum(t.idle_w for t in self._latest.values()) if self._latest else None

    def view(self, power_cap_w: float | None = None) -> EnergyView:
        """The sums now.

        Args:
            power_cap_w: What offline work is paced to; None: there is no cap.
        """
        books: defaultdict[str, list[EnergyTotals]] = defaultdict(list)
        for totals in (*self._gone.values(), *self._latest.values()):
            books[totals.source].append(totals)
        by_source = [_sum(books[source], source) for source in sorted(books)]
        return EnergyView(
            totals=_sum(by_source, " + ".join(sorted(books)) or NOT_MEASURED),
            sources=sorted(books),
            power_w=self.power_w,
            power_cap_w=power_cap_w,
            by_source=by_source,
        )


def _sum(books: Sequence[EnergyTotals], source: str) -> EnergyTotals:
    """Books added up under one name."""
    return EnergyTotals(
        source=source,
        metered_joules=sum(b.metered_joules for b in books),
        request_joules=sum(b.request_joules for b in books),
        wasted_joules=sum(b.wasted_joules for b in books),
        idle_joules=sum(b.idle_joules for b in books),
        unattributed_joules=sum(b.unattributed_joules for b in books),
        power_w=sum(b.power_w or 0.0 for b in books),
        idle_w=sum(b.idle_w for b in books),
    )
