"""A replica for one suspected request alone."""

from __future__ import annotations

import math

from cluster.core.cluster_queue import ClusterQueue
from cluster.core.fleet import Fleet
from cluster.core.running import RunningRequests
from policies.request import RequestClass
from policies.waiting import Waiting

PATIENCE_S = 5.0
"""How long a request that must run alone waits for a replica that is empty by itself."""


class Isolation:
    """Finds an empty replica for whoever must run alone, and keeps it for that request.

    There is one at a time. Where no replica is empty, one is kept free after a while, so that it
    empties; it serves all who wait to run alone, one after the other. The last replica that serves
    the others is given up for no more than one of them at once.
    """

    def __init__(self, fleet: Fleet, queue: ClusterQueue, running: RunningRequests) -> None:
        self._fleet = fleet
        self._queue = queue
        self._running = running
        self._request_id = ""  # who runs alone
        self._kept = ""  # where, or where the next one will
        self._ended_s = -math.inf

    def next(self, now: float, *, up_to: RequestClass) -> tuple[Waiting, str] | None:
        """The request of one of these classes that can be dispatched alone now, and where."""
        if not self._kept and not self._queue.alone:
            return None
        self._look(now)
        if self._request_id:
            return None
        head = self._queue.first_alone(self._fleet.slots)
        if head is None or head.request.request_class > up_to:
            self._release()
            return None
        most = head.request.prompt_tokens + head.request.max_tokens
        if self._kept and most > self._fleet[self._kept].replica.largest_request:
            self._release()
        if not self._kept:
            self._keep(head, most, now)
        if not self._kept or len(self._fleet[self._kept]):
            return None
        return head, self._kept

    @property
    def kept(self) -> str:
        """The replica where somebody runs alone, or is to; empty: there is none."""
        # What is gone since the latest decision is noticed with the next one.
        return self._kept if self._fleet.is_reserved(self._kept) else ""

    def is_alone(self, request_id: str) -> bool:
        """Whether this is who runs alone now."""
        return bool(request_id) and request_id == self._request_id

    def begin(self, request_id: str, replica_id: str) -> None:
        """A request runs alone from now on, or has done so before we knew of it."""
        if self._kept != replica_id:
            self._release()
            self._kept = replica_id
            self._fleet.reserve(replica_id)
        self._request_id = request_id

    def _look(self, now: float) -> None:
        """Notice what has ended, and what is gone."""
        if self._request_id and not self._running.runs(self._request_id, self._kept):
            self._request_id = ""
            self._ended_s = now
            if not self._fleet.serving:
                self._release()
        if self._kept and not self._fleet.is_reserved(self._kept):
            self._kept = ""
        elif self._kept and not self._request_id and self._fleet.is_draining(self._kept):
            self._release()

    def _keep(self, head: Waiting, most: int, now: float) -> None:
        """Keep a replica free for the head, when it may have one."""
        replica_id = self._fleet.emptiest(most)
        if replica_id is None:
            return
        free = not len(self._fleet[replica_id])
        spare = self._fleet.serving > 1 or not self._queue.ordered
        since_s = max(head.submitted_s, self._ended_s)
        if (free and spare) or now - since_s >= PATIENCE_S:
            self._fleet.reserve(replica_id)
            self._kept = replica_id

    def _release(self) -> None:
        if self._kept and self._fleet.is_reserved(self._kept):
            self._fleet.release(self._kept)
        self._kept = ""
