"""The requests that wait inside an engine behind a gate."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from policies.gate import Gate
from replicas.protocol import Stalled


class StalledRequests:
    """Who waits after each step: a step costs who came, was evicted or started, not all that wait.

    Args:
        gate: Knows the tokens and evictions of who waits; None: nobody is told to wait.
        changed: Set when somebody waits who did not before, or waits no more.
    """

    def __init__(self, gate: Gate | None, changed: asyncio.Event) -> None:
        self._gate = gate
        self._changed = changed
        self._stalled: dict[str, Stalled] = {}
        self._new: dict[str, None] = {}

    @property
    def latest(self) -> Mapping[str, Stalled]:
        """What the latest step left waiting, by id."""
        return self._stalled

    def added(self, request_id: str) -> None:
        """A request waits for the next step, which may start it."""
        if self._gate is not None:
            self._new[request_id] = None

    def forget(self, request_id: str) -> None:
        """A request is gone, whether it waited or not."""
        self._new.pop(request_id, None)
        self._remove([request_id])

    def stepped(self, evicted: Iterable[str], computed: Iterable[str]) -> None:
        """A step was decided.

        Args:
            evicted: Those that it evicted.
            computed: Those of which it prefills something; they have started.
        """
        if self._gate is None:
            return
        started = set(computed)
        waiting = [i for i in (*self._new, *evicted) if i not in started]
        self._new.clear()
        for request_id in waiting:
            self._stalled[request_id] = Stalled(
                self._gate.tokens(request_id), self._gate.evictions(request_id)
            )
        if waiting:
            self._changed.set()
        self._remove(started)

    def _remove(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            if self._stalled.pop(request_id, None) is not None:
                self._changed.set()
