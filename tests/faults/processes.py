"""The real processes behind a cluster's actors, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import ray

from cluster.messages import NAMESPACE

OURS = (
    "ray::Controller",
    "ray::PredictorActor",
    "ray::ReplicaActor",
    "ray::ServeReplica",
    "VLLM::",
)
"""How the titles of processes begin that a cluster starts."""


def inside(actor: Any, look: Callable[[Any], Any]) -> Any:
    """Run `look` on the actor's object, in its process; while it is restarted, afterwards."""
    for _ in range(600):
        try:
            return ray.get(actor.__ray_call__.remote(look), timeout=60)
        except ray.exceptions.ActorUnavailableError:
            time.sleep(0.1)
    raise AssertionError(f"{actor} does not come back")


def pid_of(actor: Any) -> int:
    """Process id of an actor that answers."""
    pid: int = inside(actor, lambda _: os.getpid())
    return pid


def replica(replica_id: str) -> Any:
    """The actor of a replica."""
    return ray.get_actor(replica_id, namespace=NAMESPACE)


def kill(*pids: int) -> None:
    """SIGKILL all of them, and see them gone."""
    victims = [psutil.Process(pid) for pid in pids]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(victims, timeout=60)
    assert not alive, f"SIGKILL did not end {alive}"


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """SIGSTOP for this block; those that are still there afterwards go on."""
    victims = [psutil.Process(pid) for pid in pids]
    for victim in victims:
        victim.suspend()
    try:
        yield
    finally:
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.resume()


def ours() -> list[str]:
    """Titles of the cluster's processes that run below this one."""
    titles = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if title.startswith(OURS) and process.status() != psutil.STATUS_ZOMBIE:
                titles.append(f"{title.strip()} ({process.pid})")
    return titles
