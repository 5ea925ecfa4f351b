"""What a restarted controller must know of its replicas: kept by Ray's control store."""

from __future__ import annotations

import re

import msgspec
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from cluster.messages import NAMESPACE

_KEY = "roster"
_NAME = re.compile(r"replica-(\d+)(?:\.(\d+))?")


class Roster(msgspec.Struct):
    """Outlives the controller's process, and ends with the cluster.

    Attributes:
        wanted: Replicas that there shall be.
        incarnation: The largest number of a replacement so far. A name is never used twice: a
            client that still reads from the earlier bearer would not notice the later one.
    """

    wanted: int
    incarnation: int = 0

    def save(self) -> None:
        """Keep it."""
        _internal_kv_put(_KEY, msgspec.json.encode(self), namespace=NAMESPACE)


def load_roster() -> Roster | None:
    """The roster that was kept last; None: none since the cluster was started."""
    kept = _internal_kv_get(_KEY, namespace=NAMESPACE)
    return msgspec.json.decode(kept, type=Roster) if kept else None


def forget_roster() -> None:
    """The cluster ends."""
    _internal_kv_del(_KEY, namespace=NAMESPACE)


def replica_name(index: int, incarnation: int) -> str:
    """The name of a replica's actor."""
    return f"replica-{index}.{incarnation}" if incarnation else f"replica-{index}"


def parse_replica_name(name: str) -> tuple[int, int] | None:
    """Index and incarnation; None when it is no replica's name."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found else None
