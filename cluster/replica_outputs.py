"""The output of the replicas that run a client's requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import ray

from cluster.asking import ask
from cluster.call import Call
from cluster.messages import NAMESPACE
from replicas.protocol import Delta

logger = logging.getLogger(__name__)

ORPHANED_WITHIN_S = 2.0
"""How long after a replica's end the controller's word of what was lost with it is waited for."""


class ReplicaOutputs:
    """Gives each call its tokens, by one long poll per replica that runs something of a client's.

    Args:
        client_id: Whose.
        calls: Its calls in flight, by request id.
        go_on: Called with the end of an attempt that ended early; the request goes on elsewhere.
    """

    def __init__(
        self, client_id: str, calls: Mapping[str, Call], go_on: Callable[[Delta], None]
    ) -> None:
        self._client_id = client_id
        self._calls = calls
        self._go_on = go_on
        self._readers: dict[str, asyncio.Task[None]] = {}

    def read(self, replica_id: str) -> None:
        """Read a replica's output, from now until it is gone."""
        if replica_id not in self._readers:
            self._readers[replica_id] = asyncio.create_task(self._follow(replica_id))

    def close(self) -> None:
        """Read no more."""
        for reader in self._readers.values():
            reader.cancel()

    async def _follow(self, replica_id: str) -> None:
        received = 0
        try:
            replica = ray.get_actor(replica_id, namespace=NAMESPACE)
            while True:
                received, deltas = await ask(replica.take, self._client_id, received)
                for delta in deltas:
                    self._take_in(delta, replica_id)
        except (ray.exceptions.RayActorError, ValueError) as error:
            logger.info("replica %s is gone: %s", replica_id, error)
            await self._leave(replica_id)
        except Exception:
            # Nobody else reads there: what runs there would wait for ever.
            logger.exception("the output of replica %s cannot be read", replica_id)
            self._readers.pop(replica_id, None)
            self._go_on_all(self._running_on(replica_id))

    def _take_in(self, delta: Delta, replica_id: str) -> None:
        call = self._calls.get(delta.request_id)
        if call is None:
            return
        if delta.finish_reason != "abort":
            call.receive(delta, replica_id)
        elif call.accepts(delta, replica_id):
            self._go_on(delta)

    async def _leave(self, replica_id: str) -> None:
        """A replica is gone: go on elsewhere with what the controller does not name as orphaned.

        It counts as finished what the replica had ended, though the end never came here.
        """
        there = self._running_on(replica_id)
        await asyncio.sleep(ORPHANED_WITHIN_S)
        self._readers.pop(replica_id, None)
        self._go_on_all(there)

    def _running_on(self, replica_id: str) -> list[Delta]:
        """An early end for each attempt that runs on a replica."""
        return [
            Delta(call.request.request_id, finish_reason="abort", attempt=call.attempt)
            for call in self._calls.values()
            if call.replica_id == replica_id and not call.done
        ]

    def _go_on_all(self, ends: list[Delta]) -> None:
        for end in ends:
            self._go_on(end)
