"""Requests that were dispatched and have not ended, recalled or been evicted since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.core.fleet import Fleet
from cluster.core.stalled import StalledRequests
from policies.fair_share import OUTPUT_WEIGHT, FairWaitingQueue, price
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from policies.waiting import Waiting


@dataclass(slots=True)
class Running:
    """A request on a replica.

    Attributes:
        request: The request as it was dispatched.
        forecast: What is known now.
        attempt: Number of the dispatch.
        replica_id: Where.
        sequence: Its place in the order of submission.
        key: Its static ordering key.
        predicted_tokens: Output tokens that its tenant was charged for.
        recalled: Whether it was recalled to here, in this attempt.
    """

    request: Request
    forecast: Forecast
    attempt: int
    replica_id: str
    sequence: int
    key: float
    predicted_tokens: int
    recalled: bool = False


class RunningRequests:
    """Who runs where; every one of them has its entry in that replica's ledger.

    Args:
        fleet: The ledgers.
        stalled: Those of them that wait inside engines.
        shares: The accounts of the tenants; None: nobody keeps any.
    """

    def __init__(
        self, fleet: Fleet, stalled: StalledRequests, shares: FairWaitingQueue | None
    ) -> None:
        self._fleet = fleet
        self._stalled = stalled
        self._shares = shares
        self._by_id: dict[str, Running] = {}
        self._counts = [0 for _ in RequestClass]

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __getitem__(self, request_id: str) -> Running:
        return self._by_id[request_id]

    def count(self, request_class: RequestClass) -> int:
        """How many of a class run."""
        return self._counts[request_class]

    def get(self, request_id: str) -> Running | None:
        """A request; None when it does not run."""
        return self._by_id.get(request_id)

    def runs(self, request_id: str, replica_id: str) -> bool:
        """Whether a request runs on this replica."""
        running = self._by_id.get(request_id)
        return running is not None and running.replica_id == replica_id

    def on(self, replica_id: str) -> list[str]:
        """Those that run on a replica."""
        return self.among(self._fleet[replica_id].request_ids)

    def among(self, request_ids: Iterable[str]) -> list[str]:
        """Those of these that run."""
        return [request_id for request_id in request_ids if request_id in self._by_id]

    def start(self, waiting: Waiting, replica_id: str, *, recalled: bool = False) -> None:
        """A request is dispatched; it has its entry in the ledger already, or gets it now."""
        request = waiting.request
        self._counts[request.request_class] += 1
        self._by_id[request.request_id] = Running(
            request,
            waiting.forecast,
            waiting.attempt,
            replica_id,
            waiting.sequence,
            waiting.key,
            waiting.predicted_tokens,
            recalled,
        )
        if self._shares is not None:
            self._shares.charge(request, price(waiting))

    def leave(self, request_id: str, tokens: int | None = None) -> Running:
        """A request runs no more where it ran.

        Args:
            request_id: Which.
            tokens: Its output tokens; None: as many as its replica has told.
        """
        running = self._take(request_id)
        replica_id = running.replica_id
        if self._shares is not None:
            if tokens is None:
                tokens = self._fleet[replica_id].generated(request_id)
            self._settle(running, tokens)
        self._stalled.discard(replica_id, request_id)
        self._fleet.remove(replica_id, request_id)
        return running

    def lose(self, request_id: str, tokens: int) -> None:
        """A request's replica is gone, and its ledger with it.

        Args:
            request_id: Which.
            tokens: Its output tokens as far as its replica has told.
        """
        running = self._take(request_id)
        if self._shares is not None:
            self._settle(running, tokens)

    def _take(self, request_id: str) -> Running:
        running = self._by_id.pop(request_id)
        self._counts[running.request.request_class] -= 1
        return running

    def _settle(self, running: Running, tokens: int) -> None:
        assert self._shares is not None
        made = max(tokens - running.request.generated_tokens, 0)
        self._shares.settle(running.request, OUTPUT_WEIGHT * (made - running.predicted_tokens))
