"""What must hold once a fault is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import ray

from cluster.messages import NAMESPACE, ClusterStatus
from jobs.streams import Stream
from tests.faults.processes import inside, ours, replica

AWAY = (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError)

PATIENCE_S = 250
"""Longest wait for what must come: replacing a real engine on busy cores takes minutes."""

LEFTOVER_S = 60
"""From when on what is still there counts as left behind."""


def status_of(controller: Any) -> ClusterStatus:
    """The controller's status, asked for again while it is being restarted."""
    for _ in range(PATIENCE_S * 10):
        try:
            status: ClusterStatus = ray.get(controller.status.remote())
            return status
        except AWAY:
            time.sleep(0.1)
    raise AssertionError("the controller does not come back")


def wait_for(
    controller: Any, reached: Callable[[ClusterStatus], bool], what: str = "the state"
) -> ClusterStatus:
    """The status once it is as wanted."""
    for _ in range(PATIENCE_S * 10):
        status = status_of(controller)
        if reached(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"{what} was not reached: {status}")


def wait_until_whole(controller: Any, count: int) -> ClusterStatus:
    """The status once `count` replicas serve and no other is there."""
    return wait_for(
        controller,
        lambda s: [r.state for r in s.replicas] == ["ready"] * count,
        f"a fleet of {count} replicas that are ready",
    )


def wait_until_quiet(controller: Any) -> ClusterStatus:
    """The status once nothing waits, runs or listens, by our ledgers and the engines' account."""
    return wait_for(
        controller,
        lambda s: not (s.waiting or s.running or s.clients or any(map(_busy, s.replicas))),
        "a quiet cluster",
    )


def _busy(replica_status: Any) -> bool:
    load = replica_status.engine_load
    return bool(replica_status.running or load.running or load.waiting or load.kv_usage)


def assert_nothing_left(controller: Any, count: int) -> None:
    """Invariant I3 after a fault: ledgers and engines are empty, and nobody keeps anything.

    `count` replicas must have come back.
    """
    wait_until_whole(controller, count)
    status = wait_until_quiet(controller)
    assert [r.used_blocks for r in status.replicas] == [0] * count
    assert [r.projected_peak_blocks for r in status.replicas] == [0] * count
    # The status is of a moment ago: an abort may still be on its way to a replica.
    wait_until_nothing(
        lambda: inside(controller, lambda c: list(c._state.open.ids())),
        "submissions that have ended and the controller keeps",
    )
    names = {r.replica_id for r in status.replicas}
    for name in names:
        wait_until_nothing(
            lambda name=name: inside(replica(name), lambda actor: sorted(actor._requests)),
            f"requests that have ended and {name} keeps",
        )
    wait_until_nothing(lambda: names ^ replica_actors(), "replica actors that nobody knows")


def wait_until_nothing(look: Callable[[], Collection[str]], what: str) -> None:
    """Wait until `look` finds none; what stays is a leftover."""
    for _ in range(LEFTOVER_S * 10):
        if not (found := look()):
            return
        time.sleep(0.1)
    raise AssertionError(f"{what}: {sorted(found)}")


def replica_actors() -> set[str]:
    """Names of the replica actors that are alive in this Ray cluster."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {
        actor["name"]
        for actor in named
        if actor["namespace"] == NAMESPACE and actor["name"].startswith("replica-")
    }


def assert_all_whole(streams: list[Stream]) -> None:
    """Every stream ended once, with the text of an undisturbed run (I1, I4)."""
    wrong = {
        s.request.request_id: (verdict, str(s.error or ""))
        for s in streams
        if not (verdict := s.verdict()).whole
    }
    assert not wrong, f"{len(wrong)} of {len(streams)} streams differ: {wrong}"


def assert_no_process_left() -> None:
    """Of a cluster that has been taken down nothing runs on."""
    for _ in range(LEFTOVER_S * 10):
        left = ours()
        if not left and not replica_actors():
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {left}, actors {sorted(replica_actors())}")
