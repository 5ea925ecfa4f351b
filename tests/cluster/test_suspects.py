"""Requests that may have killed engines: blamed, run alone, and failed in the end."""

from __future__ import annotations

import pytest

from cluster.core.isolation import PATIENCE_S
from cluster.core.suspects import ALONE_AT, ENGINE_DIED, FAIL_AT, NODE_LOST, VANISHED
from cluster.scheduler import ClusterScheduler, Dispatch, PoisonedRequestError
from policies.bundle import policy
from policies.ledger import Replica
from tests.cluster.factories import dispatched, forecast, replica, request


def core_of(*replicas: Replica) -> ClusterScheduler:
    core = ClusterScheduler(policy("fcfs"))
    for one in replicas:
        core.replica_joined(one, 0.0)
    return core


def submit(
    core: ClusterScheduler, *names: str, strikes: float = 0.0, now: float = 0.0, cap: int = 200
) -> None:
    for name in names:
        attempt = 2 if strikes else 1
        one = request(name, cap=cap, arrival_s=now)
        core.submit(one, forecast(), now, attempt=attempt, strikes=strikes)


def suspect(core: ClusterScheduler, *names: str, now: float = 0.0, cap: int = 200) -> None:
    submit(core, *names, strikes=ALONE_AT, now=now, cap=cap)


def test_each_request_of_a_dead_engine_is_blamed_and_the_others_are_not() -> None:
    core = core_of(replica("a"), replica("b"))
    submit(core, "1", "2", "3", "4")
    placed = dict(dispatched(core))
    orphans = core.replica_lost("a", now=1.0, blame=ENGINE_DIED)
    assert orphans == {name: ENGINE_DIED for name, where in placed.items() if where == "a"}
    submit(core, *orphans, strikes=ENGINE_DIED)
    dispatched(core, 1.0)
    again = core.replica_lost("b", now=2.0, blame=VANISHED)
    assert again == {n: VANISHED + orphans.get(n, 0.0) for n in placed}
    assert core.replica_lost("b", now=2.0, blame=VANISHED) == {}


@pytest.mark.parametrize(
    ("blame", "strikes"), [(ENGINE_DIED, ENGINE_DIED), (VANISHED, 0.0), (NODE_LOST, 0.0)]
)
def test_a_process_that_vanished_is_no_sign_against_who_was_being_answered(
    blame: float, strikes: float
) -> None:
    core = core_of(replica("a"))
    submit(core, "answered", "new")
    dispatched(core)
    core.progressed("a", {"answered": 3, "new": 0}, now=1.0)
    assert core.replica_lost("a", now=2.0, blame=blame) == {"answered": strikes, "new": blame}


def test_strikes_are_kept_while_a_request_is_evicted_and_handed_back() -> None:
    core = core_of(replica("a"))
    submit(core, "x", strikes=1.5)
    assert dispatched(core) == [("x", "a")]
    core.evicted("a", "x", 5, now=1.0)
    assert dispatched(core, 1.0) == [("x", "a")]
    core.give_back("a", now=2.0)
    core.decide(2.0)
    assert core.state("x") == "recalled"
    assert core.replica_lost("a", now=3.0, blame=NODE_LOST) == {"x": 1.5}
    submit(core, "x")
    core.replica_joined(replica("c"), 4.0)
    assert dispatched(core, 4.0) == [("x", "c")]
    assert core.replica_lost("c", now=5.0) == {"x": 0.0}, "what has ended is forgotten"


def test_too_many_strikes_are_the_end_and_change_nothing() -> None:
    core = core_of(replica())
    submit(core, "x", strikes=1.0)
    with pytest.raises(PoisonedRequestError, match=r"'x' has 3 strikes, and 3 are the end"):
        core.submit(request("x"), forecast(), 1.0, attempt=3, strikes=FAIL_AT)
    assert core.state("x") == "waiting"
    assert dispatched(core, 1.0) == [("x", "a")]


def test_it_goes_to_an_empty_replica_at_once_and_nobody_joins_it() -> None:
    core = core_of(replica("a"), replica("b"))
    submit(core, "1")
    assert dispatched(core) == [("1", "a")]
    suspect(core, "s")
    submit(core, *(f"{i}" for i in range(2, 9)))
    placed = dict(dispatched(core))
    assert placed.pop("s") == "b"
    assert set(placed.values()) == {"a"}, "the others pass it and keep off"
    assert core.fleet["b"].request_ids == ["s"]
    assert core.finished("b", "s", 10, now=1.0)
    submit(core, "9")
    assert dispatched(core, 1.0) == [("9", "b")], "once it has ended, all may come"


def test_one_at_a_time() -> None:
    core = core_of(*(replica(name) for name in "abc"))
    suspect(core, "s1", "s2")
    assert dispatched(core) == [("s1", "a")]
    assert core.decide(60.0) == []
    core.cancel("s1", now=61.0)
    assert dispatched(core, 61.0) == [("s2", "a")]


def test_who_runs_alone_is_not_recalled_from_its_engine() -> None:
    core = core_of(replica("a"), replica("b"))
    suspect(core, "s")
    ((_, where),) = dispatched(core)
    core.stalled(where, {"s": 0}, now=0.0)
    assert core.decide(30.0) == []


def test_after_a_while_the_emptiest_replica_is_kept_free_for_it() -> None:
    core = core_of(replica("a"), replica("b"))
    submit(core, "1", "2", "3")
    placed = dict(dispatched(core))
    ((single, quiet),) = [(n, w) for n, w in placed.items() if list(placed.values()).count(w) == 1]
    suspect(core, "s")
    for second in range(int(PATIENCE_S)):
        submit(core, f"early {second}")
        assert len(dispatched(core, float(second))) == 1, "it blocks nobody"
        core.cancel(f"early {second}", now=float(second))
        core.decide(float(second))
    assert core.decide(PATIENCE_S) == []
    submit(core, "late", now=PATIENCE_S)
    ((_, elsewhere),) = dispatched(core, PATIENCE_S)
    assert elsewhere != quiet
    core.finished(quiet, single, 9, now=PATIENCE_S + 1)
    assert dispatched(core, PATIENCE_S + 1) == [("s", quiet)]


def test_suspects_follow_each_other_on_the_replica_that_is_kept() -> None:
    core = core_of(replica("a"), replica("b"))
    submit(core, "1", "2")
    dispatched(core)
    suspect(core, "s1", "s2")
    core.decide(PATIENCE_S)
    core.finished("a", "1", 9, now=PATIENCE_S + 1)
    submit(core, *(f"other {i}" for i in range(6)), now=PATIENCE_S + 1)
    placed = dict(dispatched(core, PATIENCE_S + 1))
    assert placed.pop("s1") == "a"
    core.finished("a", "s1", 9, now=PATIENCE_S + 2)
    submit(core, "one more", now=PATIENCE_S + 2)
    assert ("s2", "a") in dispatched(core, PATIENCE_S + 2)
    core.finished("a", "s2", 9, now=PATIENCE_S + 3)
    submit(core, "last", now=PATIENCE_S + 3)
    assert ("last", "a") in dispatched(core, PATIENCE_S + 3)


def test_the_only_replica_is_shared_in_turns() -> None:
    core = core_of(replica("a", slots=2))
    submit(core, "1")
    dispatched(core)
    suspect(core, "s1", "s2")
    core.decide(PATIENCE_S)
    submit(core, "2", now=PATIENCE_S)
    assert core.decide(PATIENCE_S) == [], "the replica is kept free"
    core.finished("a", "1", 9, now=PATIENCE_S + 1)
    assert dispatched(core, PATIENCE_S + 1) == [("s1", "a")]
    assert core.decide(PATIENCE_S + 2) == []
    core.finished("a", "s1", 9, now=PATIENCE_S + 2)
    assert dispatched(core, PATIENCE_S + 2) == [("2", "a")], "before the next suspect"
    core.finished("a", "2", 9, now=PATIENCE_S + 3)
    submit(core, "3", now=PATIENCE_S + 3)
    assert dispatched(core, PATIENCE_S + 3) == [("3", "a")]
    core.decide(2 * PATIENCE_S + 2)
    core.finished("a", "3", 9, now=2 * PATIENCE_S + 3)
    assert dispatched(core, 2 * PATIENCE_S + 3) == [("s2", "a")]


def test_a_replica_that_is_kept_is_given_up_when_nobody_needs_it() -> None:
    core = core_of(replica("a", slots=2), replica("b", slots=1))
    submit(core, "1", "2")
    placed = {where: name for name, where in dispatched(core)}
    suspect(core, "s")
    core.decide(PATIENCE_S)
    core.cancel("s", now=PATIENCE_S + 1)
    submit(core, "3", now=PATIENCE_S + 1)
    assert dispatched(core, PATIENCE_S + 1) == [("3", "a")], placed


@pytest.mark.parametrize("event", ["lost", "draining"])
def test_another_replica_is_kept_when_the_first_one_goes(event: str) -> None:
    core = core_of(replica("a"), replica("b"), replica("c", longest=100))
    submit(core, "1", "2", "3", "4")
    dispatched(core)
    suspect(core, "s")
    core.decide(PATIENCE_S)
    assert core.fleet.serving == 2
    (kept,) = [name for name in "ab" if core.fleet.is_reserved(name)]
    other = {"a": "b", "b": "a"}[kept]
    if event == "lost":
        core.replica_lost(kept, now=PATIENCE_S)
    else:
        core.replica_draining(kept, now=PATIENCE_S)
    core.decide(PATIENCE_S + 1)
    assert core.fleet.is_reserved(other)
    for name in core.fleet[other].request_ids:
        core.finished(other, name, 9, now=PATIENCE_S + 2)
    assert dispatched(core, PATIENCE_S + 2) == [("s", other)]


def test_a_replica_that_is_too_small_for_it_is_left_alone() -> None:
    core = core_of(replica("small", longest=100), replica("large"))
    submit(core, "1")
    assert dispatched(core) == [("1", "large")]
    suspect(core, "s", cap=150)
    assert dispatched(core, 1.0) == [], "the small one is empty"
    core.finished("large", "1", 9, now=2.0)
    assert dispatched(core, 2.0) == [("s", "large")]


def test_a_recalled_suspect_does_not_take_its_room_beside_others() -> None:
    core = core_of(replica("home", blocks=16))
    submit(core, "big", "s")
    dispatched(core)
    core.replica_joined(replica("other"), 0.0)
    submit(core, "resident", cap=3)
    core.stalled("home", {"s": 0}, now=0.0)
    recalls = core.decide(5.0)
    assert any(getattr(action, "to", "") == "other" for action in recalls)
    core.submit(request("s"), forecast(), 5.0, attempt=2, strikes=ALONE_AT)
    for action in core.decide(5.0):
        assert not isinstance(action, Dispatch)
    assert "s" not in core.fleet["other"].request_ids
    core.finished("other", "resident", 3, now=6.0)
    assert dispatched(core, 6.0) == [("s", "other")]


def test_a_suspect_that_is_found_running_keeps_others_off() -> None:
    core = core_of(replica("a"), replica("b"))
    assert core.adopt(
        request("s"),
        forecast(),
        0.0,
        replica_id="a",
        attempt=3,
        key=0.0,
        tokens=7,
        strikes=ALONE_AT,
    )
    submit(core, *(f"{i}" for i in range(4)))
    assert {where for _, where in dispatched(core)} == {"b"}
    assert core.replica_lost("a", now=1.0, blame=ENGINE_DIED) == {"s": FAIL_AT}
