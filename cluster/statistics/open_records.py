"""The records of all requests that have not ended."""

from __future__ import annotations

from collections import OrderedDict

from cluster.statistics.open_record import OpenRecord
from policies.request import RequestClass


class OpenRecords:
    """Records by request id, with those whose clients are to come back, and who runs.

    Attributes:
        running: How many are on replicas, by class.
        dropped: How many were given up because their clients did not come back.
    """

    def __init__(self) -> None:
        self.running = dict.fromkeys(RequestClass, 0)
        self.dropped = 0
        self._records: dict[str, OpenRecord] = {}
        self._away: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._records

    def get(self, request_id: str) -> OpenRecord | None:
        """The record; None when the request is not known or has ended."""
        return self._records.get(request_id)

    def add(self, request_id: str, record: OpenRecord) -> None:
        """A request is known from now on."""
        self._records[request_id] = record

    def take(self, request_id: str) -> OpenRecord | None:
        """Forget a request and return its record; None when it is not known."""
        self._away.pop(request_id, None)
        record = self._records.pop(request_id, None)
        if record is not None:
            self.leave_replica(record)
        return record

    def enter_replica(self, record: OpenRecord, replica_id: str) -> None:
        """It is sent to a replica."""
        record.replica_id = replica_id
        if not record.runs:
            record.runs = True
            self.running[record.request_class] += 1

    def leave_replica(self, record: OpenRecord) -> None:
        """It runs no more, for now or for good."""
        if record.runs:
            record.runs = False
            self.running[record.request_class] -= 1

    def wait_for_client(self, request_id: str, now: float) -> None:
        """It goes on only if its client submits it again."""
        self._away[request_id] = now

    def came_back(self, request_id: str) -> None:
        """Its client has."""
        self._away.pop(request_id, None)

    def drop_those_away_since(self, moment: float) -> None:
        """Give those up whose clients are waited for since this moment or longer, in seconds."""
        while self._away and next(iter(self._away.values())) <= moment:
            self.take(next(iter(self._away)))
            self.dropped += 1
