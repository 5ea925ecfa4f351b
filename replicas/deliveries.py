"""What a replica's clients get: the output of their requests, in outboxes that they long-poll."""

from __future__ import annotations

import asyncio
import logging
import time

from replicas.metering import Metering
from replicas.outbox import Outbox
from replicas.protocol import Delta, Generation
from replicas.reports import Reports
from replicas.running_attempt import RunningAttempt

logger = logging.getLogger(__name__)

LONG_POLL_S = 10.0
"""Longest that a client's call waits for tokens before it is answered with none; a quarter of the
client timeout if that is less."""

LAST_READ_S = 0.5
"""Silence of a client after which a replica that is told to stop lets the rest go unread."""

LAST_LOOK_S = 0.02

FORGET_AFTER = 60
"""Times the client timeout after which what a silent client has not fetched is thrown away."""


class Deliveries:
    """The outboxes of a replica's clients, and what runs for them from its beginning to its end.

    Args:
        requests: What runs on the replica, by id; kept here.
        metering: Says what a request has cost.
        reports: Told of each end.
        client_timeout_s: Silence after which a client is lost.
    """

    def __init__(
        self,
        requests: dict[str, RunningAttempt],
        metering: Metering,
        reports: Reports,
        client_timeout_s: float,
    ) -> None:
        self._requests = requests
        self._metering = metering
        self._reports = reports
        self._client_timeout_s = client_timeout_s
        self._outboxes: dict[str, Outbox[Delta]] = {}

    async def take(self, client_id: str, received: int) -> tuple[int, list[Delta]]:
        """Long poll: the next batch of a client's deltas (see `Outbox.take`)."""
        poll_s = min(LONG_POLL_S, self._client_timeout_s / 4)
        return await self._outbox(client_id).take(received, poll_s)

    def begin(self, generation: Generation) -> None:
        """A request runs here from now on; no other attempt of it does."""
        self._requests[generation.request_id] = RunningAttempt(generation, time.monotonic())
        self._metering.begin(generation)

    def deliver(self, deltas: list[Delta]) -> None:
        """Put deltas into the outboxes; those of requests that do not run here are nobody's."""
        by_client: dict[str, list[Delta]] = {}
        for delta in deltas:
            request = self._requests.get(delta.request_id)
            if request is None:
                continue
            delta.attempt = request.attempt
            request.produced(delta)
            by_client.setdefault(request.client_id, []).append(delta)
            if delta.finish_reason is not None:
                self.end(delta.request_id, delta)
        for client_id, batch in by_client.items():
            self._outbox(client_id).put(batch)

    def end(self, request_id: str, delta: Delta) -> None:
        """A request ends with this delta, which is not delivered here."""
        request = self._requests.pop(request_id)
        energy = self._metering.end(request_id)
        if energy is not None:
            delta.energy_joules, delta.wasted_joules = energy
        self._reports.ended(request.finished(delta, time.monotonic(), energy))

    def end_lost(self) -> list[str]:
        """End what nobody waits for; a client that was only asleep finds the ends and goes on.

        Returns:
            The requests, which the engine is still to abort.
        """
        ended: list[str] = []
        for client_id, outbox in list(self._outboxes.items()):
            if outbox.idle_s() < self._client_timeout_s:
                continue
            if outbox.idle_s() > FORGET_AFTER * self._client_timeout_s:
                del self._outboxes[client_id]
            lost = {i: r for i, r in self._requests.items() if r.client_id == client_id}
            if lost:
                logger.warning("client %s is gone: aborting its %d requests", client_id, len(lost))
                self.deliver([request.given_up(i) for i, request in lost.items()])
                ended += lost
        return ended

    async def until_read(self) -> None:
        """Wait until clients that still read have read what is theirs."""
        while any(
            not outbox.is_read and outbox.idle_s() < LAST_READ_S
            for outbox in self._outboxes.values()
        ):
            await asyncio.sleep(LAST_LOOK_S)

    def _outbox(self, client_id: str) -> Outbox[Delta]:
        return self._outboxes.setdefault(client_id, Outbox())
