"""What a job's report says of energy: of its rows, and of the cluster meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cluster.messages import ClusterStatus
from replicas.protocol import EnergyTotals

NOT_MEASURED = "not measured"


class RowEnergy:
    """Energy of result rows that a meter or a power model told of.

    Attributes:
        rows: Such rows; the others cost what nobody knows.
        output_tokens: Their output tokens.
        joules: What they cost.
        wasted_joules: The part of it that computed tokens again, after evictions for example.
        sources: Rows by what says their energy.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.output_tokens = 0
        self.joules = 0.0
        self.wasted_joules = 0.0
        self.sources: dict[str, int] = {}

    def add(self, rows: pd.DataFrame) -> None:
        """Take in result rows; those of an older program may lack the columns."""
        if "energy_joules" not in rows:
            return
        told = rows[rows["energy_joules"].notna()]
        self.rows += len(told)
        self.output_tokens += int(told["output_tokens"].sum())
        self.joules += float(told["energy_joules"].sum())
        if "wasted_joules" in told:
            self.wasted_joules += float(told["wasted_joules"].fillna(0.0).sum())
        for source, count in told["energy_source"].fillna("unknown").value_counts().items():
            self.sources[str(source)] = self.sources.get(str(source), 0) + int(count)

    @property
    def source(self) -> str:
        """What says the energy, in words."""
        return ", ".join(sorted(self.sources)) or NOT_MEASURED

    def as_dict(self) -> dict[str, Any]:
        """For machines; what was not measured is None."""
        return {
            "source": self.source,
            "rows": self.rows,
            "joules": self.joules if self.rows else None,
            "wasted_joules": self.wasted_joules if self.rows else None,
            "joules_per_request": _ratio(self.joules, self.rows),
            "joules_per_output_token": _ratio(self.joules, self.output_tokens),
            "wasted_share": _ratio(self.wasted_joules, self.joules),
        }

    def told(self) -> str:
        """For people."""
        if not self.rows:
            return NOT_MEASURED
        share = _ratio(100 * self.wasted_joules, self.joules) or 0.0
        per_token = _ratio(self.joules, self.output_tokens)
        of_each = "" if per_token is None else f", {per_token:.3g} J per output token"
        return (
            f"{self.joules:,.0f} J above idle: {self.joules / self.rows:.3g} J per request"
            f"{of_each}; {share:.1f} % of it wasted on computing tokens again ({self.source})"
        )


@dataclass(frozen=True, slots=True)
class ClusterEnergy:
    """What the replicas used between two moments, whoever they worked for.

    Attributes:
        source: The meters' names.
        metered_joules: All of it; None: not every replica that serves has a meter.
        idle_joules: The part of it that goes without work.
    """

    source: str
    metered_joules: float | None
    idle_joules: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For machines; what was not measured is None."""
        measured = self.metered_joules is not None
        return {
            "source": self.source,
            "joules": self.metered_joules,
            "idle_joules": self.idle_joules if measured else None,
            "idle_share": _ratio(self.idle_joules, self.metered_joules or 0.0),
        }

    def told(self) -> str:
        """For people."""
        if self.metered_joules is None:
            return self.source
        idle = 100 * (_ratio(self.idle_joules, self.metered_joules) or 0.0)
        return (
            f"{self.metered_joules:,.0f} J by all replicas, {idle:.0f} % of it idle power "
            f"({self.source})"
        )


def cluster_energy(before: ClusterStatus, after: ClusterStatus) -> ClusterEnergy:
    """What replicas used between two states, as far as they are there in the second one."""
    earlier = {r.replica_id: r.energy for r in before.replicas}
    metered = [r for r in after.replicas if _is_metered(r.energy)]
    source = ", ".join(sorted({r.energy.source for r in metered})) or NOT_MEASURED
    without = [r for r in after.replicas if r.state == "ready" and not _is_metered(r.energy)]
    if without or not metered:
        return ClusterEnergy(f"{source}, but not everywhere" if metered else source, None)
    joules = idle_joules = 0.0
    for replica in metered:
        start = earlier.get(replica.replica_id, EnergyTotals())
        joules += replica.energy.metered_joules - start.metered_joules
        idle_joules += replica.energy.idle_joules - start.idle_joules
    return ClusterEnergy(source, joules, idle_joules)


def _is_metered(energy: EnergyTotals) -> bool:
    return energy.source != EnergyTotals().source


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
