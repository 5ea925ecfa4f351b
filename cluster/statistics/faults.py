"""Counts of what went wrong, by name."""

from __future__ import annotations

import enum


class Fault(enum.StrEnum):
    """What can go wrong and is counted."""

    REPLICA_FROZEN = "replica_frozen"
    """A replica had work and made no progress, and was killed."""
    REPLICA_PROCESS_DIED = "replica_process_died"
    """A replica's process ended without a word."""
    REPLICA_ENGINE_DIED = "replica_engine_died"
    """A replica's engine failed, so its process ended."""
    REPLICA_NODE_LOST = "replica_node_lost"
    """A replica ended with its node."""
    REPLICA_REPLACED = "replica_replaced"
    """The replacement of a replica that was lost is ready."""
    REQUEST_SUSPECTED = "request_suspected"
    """A request came under suspicion, or more of it, of having killed an engine."""
    REQUEST_POISONED = "request_poisoned"
    """A request was refused because engines die of it."""
    CLIENT_LOST = "client_lost"
    """A client was silent for longer than the client timeout while it had requests."""
    CONTROLLER_RESTARTED = "controller_restarted"
    """The controller's process ended and another took its place."""
    PREDICTOR_RESTARTED = "predictor_restarted"
    """A predictor was out of reach, its process dead, and answers again."""
    ROWS_DROPPED = "rows_dropped"
    """A row of a finished request could not be written."""


class Faults:
    """Counts since the cluster was started; no IO.

    A controller that is started again begins with what its predecessor had written down: faults of
    its last second may be missing.

    Attributes:
        inherited: What was read then, by name; empty in a cluster's first controller.
    """

    def __init__(self) -> None:
        self.inherited: dict[str, int] = {}
        self._counts = {fault.value: 0 for fault in Fault}
        self._saved = dict(self._counts)

    def __getitem__(self, fault: Fault) -> int:
        return self._counts[fault.value]

    def count(self, fault: Fault, times: int = 1) -> None:
        """It happened, so many times."""
        self._counts[fault.value] += times

    def counts(self) -> dict[str, int]:
        """All counts by name, those that are 0 included."""
        return dict(self._counts)

    def unsaved(self) -> dict[str, int] | None:
        """What is to be written down now; None: nothing has changed since the last time."""
        if self._counts == self._saved:
            return None
        self._saved = dict(self._counts)
        return self.counts()

    def load(self, counts: dict[str, int]) -> None:
        """Go on from what was written down; names that are not known any more are left out."""
        self.inherited = {name: n for name, n in counts.items() if name in self._counts}
        for name, number in self.inherited.items():
            self._counts[name] += number
