"""Joules that a job may cost, and what it has cost."""

from __future__ import annotations

import asyncio

from cluster.client import ClusterClient
from cluster.config import ClusterConfig, ConfigError
from cluster.messages import ReplicaStatus
from jobs.writing.parts import RESULTS, live_files, read_batches
from jobs.writing.storage import Storage

FIRST_REPORT_S = 5.0
"""How long replicas may take to tell what meter they have."""

FIX = (
    "declare energy.power_model (a GPU's name, or idle_w, max_w and peak_flops_per_s), make the "
    "hardware's counters readable, or leave --energy-budget out"
)


class EnergyBudget:
    """A limit on the energy of a job's requests, as it is attributed to them when they end.

    Requests that run when the limit is reached end, too, and their energy counts: what is spent at
    last is more than the limit.

    Args:
        limit_joules: Most that they may cost before the job pauses; None: any amount.
        spent_joules: What they had cost in earlier runs.

    Attributes:
        spent_joules: What they have cost.
        unmetered: Requests of this run that a replica answered without telling what they cost.
    """

    def __init__(self, limit_joules: float | None, spent_joules: float = 0.0) -> None:
        self.limit_joules = limit_joules
        self.spent_joules = spent_joules
        self.unmetered = 0

    @property
    def is_spent(self) -> bool:
        """Whether no further request may be begun."""
        return self.limit_joules is not None and self.spent_joules >= self.limit_joules

    def spend(self, joules: float | None) -> None:
        """A request has ended that cost so much; None: nobody measured."""
        if joules is None:
            self.unmetered += 1
        else:
            self.spent_joules += joules

    def told(self) -> str:
        """The state in words."""
        limit = "none" if self.limit_joules is None else f"{self.limit_joules:,.0f} J"
        text = f"energy budget: {self.spent_joules:,.0f} J spent of {limit}"
        return f"{text}; {self.unmetered:,} answers not metered" if self.unmetered else text

    async def check_meters(self, client: ClusterClient) -> None:
        """Refuse to begin where nobody would measure.

        Raises:
            ConfigError: A replica that serves has no meter.
        """
        if self.limit_joules is None:
            return
        deadline_s = asyncio.get_running_loop().time() + FIRST_REPORT_S
        while unmetered := _unmetered((await client.status()).replicas):
            if asyncio.get_running_loop().time() >= deadline_s:
                raise ConfigError(
                    f"--energy-budget is {self.limit_joules:g} J, but no energy is measured on "
                    f"{', '.join(unmetered)}: {FIX}"
                )
            await asyncio.sleep(0.2)


def check_budget(limit_joules: float | None, config: ClusterConfig) -> None:
    """Refuse a budget that cannot be kept, before anything is started.

    Raises:
        ConfigError: It is not positive, or the configuration says that nothing is measured.
    """
    if limit_joules is None:
        return
    if not limit_joules > 0:
        raise ConfigError(f"--energy-budget is {limit_joules:g} J, must be above 0")
    if config.energy.meter == "none":
        raise ConfigError(
            f"--energy-budget is {limit_joules:g} J, but energy.meter is none: set it to auto, and "
            f"{FIX}"
        )


def joules_in(storage: Storage) -> float:
    """Energy of all results in a job's folder; parts of an older program may not tell any.

    Raises:
        OutputError: A part cannot be read.
    """
    joules = 0.0
    for name in live_files(storage, RESULTS):
        for batch in read_batches(storage, name, ["energy_joules"], rows=65_536):
            if "energy_joules" in batch.schema.names:
                joules += batch.column("energy_joules").drop_null().to_numpy().sum()
    return float(joules)


def _unmetered(replicas: list[ReplicaStatus]) -> list[str]:
    """Replicas that serve and have told of no meter."""
    return [r.replica_id for r in replicas if r.state == "ready" and r.energy.source == "none"]
