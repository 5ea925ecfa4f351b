"""Online requests are sent to where offline ones give way to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.scheduler import ClusterScheduler
from policies.ledger import Replica
from tests.cluster.factories import dispatched, forecast, replica, request, scheduler


def giving(name: str, slots: int = 2) -> Replica:
    return replace(replica(name, slots=slots), gives_way=True)


def full(*replicas: Replica) -> ClusterScheduler:
    """Every place has an offline request: o0, o1 and so on."""
    core = scheduler(*replicas, policy_name="fcfs", guard_band=0.0)
    for number in range(sum(one.slots for one in replicas)):
        core.submit(request(f"o{number}", online=False), forecast(), 0.0)
    assert len(dispatched(core)) == sum(one.slots for one in replicas)
    return core


def arrive(core: ClusterScheduler, *names: str, now: float = 1.0) -> list[str]:
    """Submit online requests; those that are dispatched at once."""
    for name in names:
        core.submit(request(name), forecast(), now)
    return [request_id for request_id, _ in dispatched(core, now)]


def test_as_many_are_sent_as_the_batch_holds_and_no_offline_one_with_them() -> None:
    core = full(giving("a"))
    core.submit(request("waits", online=False), forecast(), 1.0)
    assert arrive(core, "x", "y", "z") == ["x", "y"]
    core.finished("a", "x", 10, 2.0)
    assert dispatched(core, 2.0) == [("z", "a")]
    for name in ("y", "z", "o0"):
        core.finished("a", name, 10, 3.0)
    assert dispatched(core, 3.0) == [("waits", "a")]


def test_the_one_with_least_memory_in_use_is_chosen_of_all_that_make_way() -> None:
    core = full(giving("a", slots=3), giving("b", slots=2))
    assert [target for _, target in dispatched(core)] == []
    core.submit(request("x"), forecast(), 1.0)
    assert dispatched(core, 1.0) == [("x", "b")]


@pytest.mark.parametrize(
    "state", ["does not", "online only", "drains", "its offline ones are gone"]
)
def test_nobody_is_sent_where_no_way_is_made(state: str) -> None:
    if state == "does not":
        core = full(replica("a", slots=2))
    elif state == "online only":
        core = scheduler(giving("a"), policy_name="fcfs")
        assert arrive(core, "first", "second") == ["first", "second"]
    else:
        core = full(giving("a"))
    if state == "drains":
        core.replica_draining("a", 1.0)
    if state == "its offline ones are gone":
        core.cancel("o0", 1.0)
        core.cancel("o1", 1.0)
        assert arrive(core, "first", "second") == ["first", "second"]
    assert arrive(core, "x") == []


def test_what_was_evicted_for_it_is_still_counted_until_it_has_ended() -> None:
    core = full(giving("a"))
    assert arrive(core, "x") == ["x"]
    assert len(core.fleet["a"]) == 3
    core.finished("a", "x", 10, 2.0)
    core.finished("a", "o0", 10, 2.0)
    core.finished("a", "o1", 10, 2.0)
    assert not len(core.fleet["a"])
    assert arrive(core, "p", "q", "r", now=3.0) == ["p", "q"], "nobody is left to give way"
