"""One replica as the replica set knows it, and whom the set tells what becomes of it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from replicas.protocol import EngineInfo
from replicas.replica import Place

State = Literal["placing", "loading", "ready", "lost", "failed", "leaving", "left"]
"""`placing` and `loading` until it is `ready`; `lost` until its replacement is begun; `failed` when
it was given up; `leaving` while it finishes its requests; then it has `left`."""

Ended = Literal["", "engine", "frozen", "process", "node", "left"]
"""How a replica ended: its engine said so, it made no progress, its process or its node died, or it
left as it was told to."""


class Member(msgspec.Struct, eq=False):
    """One replica and what is known of it.

    Attributes:
        index: Its place in the set, kept when it is replaced.
        replica_id: Name of the actor; a replacement has another, and no two ever have the same.
        state: See `State`.
        handle: The actor.
        place: Where it runs.
        info: What its engine can hold.
        cores: Cores a CPU engine is pinned to.
        error: Why it failed, or what it waits for.
        ended: How the actor of this name ended; empty while it lives.
        patient: Whether it is tried again for ever.
    """

    index: int
    replica_id: str
    state: State = "placing"
    handle: Any = None
    place: Place | None = None
    info: EngineInfo | None = None
    cores: list[int] = []
    error: str = ""
    ended: Ended = ""
    patient: bool = False


class ReplicaOwner(Protocol):
    """Whom a `ReplicaSet` tells; all calls come on the event loop.

    Every member that was ready, or was adopted, is reported lost exactly once: when it ended
    (`Member.ended` says how), and when it has left.
    """

    def replica_ready(self, member: Member) -> None:
        """It takes requests. Not called for those that `ReplicaSet.adopt` returns."""

    def replica_lost(self, member: Member) -> None:
        """It is gone, and what still ran there goes on elsewhere."""

    def replica_leaving(self, member: Member) -> None:
        """It takes no more requests; those it has may finish."""

    async def replica_drained(self, member: Member) -> None:
        """Return when nothing runs there any more."""

    def replica_gives_back(self, member: Member) -> None:
        """What still runs there is handed back, to go on elsewhere."""

    def requests_on(self, member: Member) -> int:
        """Requests that run there: the emptiest leaves first."""
