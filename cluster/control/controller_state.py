"""What the parts of the controller share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from cluster.config import ClusterConfig
from cluster.control.clients import Clients
from cluster.control.energy_books import EnergyBooks
from cluster.control.open_requests import OpenRequests
from cluster.forecasting import Forecasting
from cluster.journaled_scheduler import JournaledScheduler
from cluster.scheduler import ClusterScheduler
from cluster.statistics.faults import Faults
from cluster.statistics.statistics import Statistics


class Counters(msgspec.Struct):
    """Totals since the controller's process started."""

    finished: int = 0
    refused: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    recalls: int = 0
    dispatched: int = 0


@dataclass(slots=True)
class ControllerState:
    """All of it is touched on the controller's event loop only.

    Attributes:
        config: The cluster's configuration.
        number: The controller's; one that is started later has a larger one.
        scheduler: Decides; told of everything that happens.
        open: The requests that have not ended.
        clients: Whom the controller tells what.
        forecasting: Forecasts.
        statistics: What becomes of requests; told of everything that happens.
        energy: What the replicas' meters say.
        faults: Counts of what went wrong.
        counters: Totals.
        wake: Set when something happened that a decision may follow from.
    """

    config: ClusterConfig
    number: int
    scheduler: ClusterScheduler | JournaledScheduler
    open: OpenRequests
    clients: Clients
    forecasting: Forecasting
    statistics: Statistics
    energy: EnergyBooks = field(default_factory=EnergyBooks)
    faults: Faults = field(default_factory=Faults)
    counters: Counters = field(default_factory=Counters)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
