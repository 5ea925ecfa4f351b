"""Replicas that leave, and requests that are found running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.scheduler import ClusterScheduler, Dispatch, Recall
from policies.bundle import policy
from policies.forecast import Forecast
from policies.ledger import Replica
from policies.request import RequestClass
from tests.cluster.factories import dispatched, forecast, replica, request


def core_of(*replicas: Replica, **options: object) -> ClusterScheduler:
    core = ClusterScheduler(policy("fcfs", **options))  # type: ignore[arg-type]
    for one in replicas:
        core.replica_joined(one, 0.0)
    return core


def submit(core: ClusterScheduler, *names: str, now: float = 0.0, attempt: int = 1) -> None:
    for name in names:
        core.submit(request(name, arrival_s=now), forecast(), now, attempt=attempt)


def test_a_draining_replica_finishes_what_it_has_and_takes_nothing_more() -> None:
    core = core_of(replica("a"))
    submit(core, "1")
    assert dispatched(core) == [("1", "a")]
    core.replica_draining("a", now=1.0)
    submit(core, "2", now=1.0)
    assert core.decide(1.0) == []
    assert core.runs_on("a") == 1
    core.progressed("a", {"1": 9}, now=2.0)
    assert core.finished("a", "1", 10, now=2.0)
    assert (core.runs_on("a"), core.waiting) == (0, 1)
    assert core.decide(2.0) == []
    core.replica_joined(replica("b"), 3.0)
    assert dispatched(core, 3.0) == [("2", "b")]
    assert core.replica_lost("a", now=3.0) == {}


def test_nothing_is_sent_ahead_to_it_either() -> None:
    core = core_of(replace(replica("a", blocks=16), look_ahead=2))
    submit(core, "1")
    core.decide(0.0)
    core.replica_draining("a", now=0.0)
    core.submit(request("2", prompt=200, cap=40), Forecast.exact(40), now=0.0)
    assert core.decide(0.0) == []


def test_what_waits_in_its_engine_goes_on_where_there_is_room() -> None:
    core = core_of(replica("a"))
    submit(core, "1", "2")
    core.decide(0.0)
    core.replica_joined(replica("b"), 0.0)
    core.stalled("a", {"2": 0}, now=0.0)
    assert core.decide(0.0) == [], "its engine starts it at once"
    core.replica_draining("a", now=0.1)
    assert core.decide(0.1) == [Recall("2", "a", to="b")]
    submit(core, "2", now=0.2, attempt=2)
    assert dispatched(core, 0.2) == [("2", "b")]


def test_what_was_to_go_on_there_waits_in_the_queue() -> None:
    core = core_of(replica("a"))
    submit(core, "1", "2", "3")
    core.decide(0.0)
    core.replica_joined(replica("b"), 0.0)
    core.stalled("a", {"2": 0, "3": 0}, now=0.0)
    assert core.decide(5.0) == [Recall("2", "a", to="b"), Recall("3", "a", to="b")]
    submit(core, "2", now=5.0, attempt=2)
    core.replica_draining("b", now=5.0)
    assert (core.state("2"), core.state("3"), core.runs_on("b")) == ("waiting", "recalled", 0)
    assert core.fleet["b"].used_blocks == 0
    submit(core, "3", now=5.1, attempt=2)
    assert dispatched(core, 5.1) == [("2", "a"), ("3", "a")]


def test_what_still_runs_is_handed_back_and_keeps_arrival_and_key() -> None:
    core = ClusterScheduler(policy("tie"))
    core.replica_joined(replica("a"), 0.0)
    core.submit(request("1"), forecast(30), now=0.0)
    (first,) = core.decide(0.0)
    assert isinstance(first, Dispatch)
    core.progressed("a", {"1": 12}, now=1.0)
    core.give_back("a", now=2.0)
    assert core.state("1") == "running", "nothing has an effect but decide"
    assert core.decide(2.0) == [Recall("1", "a", hand_back=True)]
    assert (core.state("1"), core.runs_on("a"), core.fleet["a"].used_blocks) == ("recalled", 1, 0)
    assert not core.works("a")
    assert core.decide(2.1) == []
    again = request("1", generated=12, arrival_s=99.0)
    assert core.submit(again, forecast(90), now=3.0, attempt=2)
    assert core.runs_on("a") == 0
    core.replica_joined(replica("b"), 4.0)
    (second,) = core.decide(4.0)
    assert isinstance(second, Dispatch)
    assert (second.replica_id, second.attempt, second.key) == ("b", 2, first.key)
    assert second.request == replace(first.request, generated_tokens=12)


@pytest.mark.parametrize("end", ["finished", "cancelled", "lost"])
def test_a_request_that_is_handed_back_may_end_before(end: str) -> None:
    core = core_of(replica("a"))
    submit(core, "1")
    core.decide(0.0)
    core.give_back("a", now=1.0)
    core.decide(1.0)
    if end == "finished":
        assert core.finished("a", "1", 10, now=1.1)
    elif end == "cancelled":
        assert core.cancel("1", now=1.1)
    else:
        assert core.replica_lost("a", now=1.1) == {"1": 0.0}
    assert (core.state("1"), core.runs_on("a"), core.running) == ("unknown", 0, 0)


def test_what_ends_before_the_decision_is_not_handed_back() -> None:
    core = core_of(replica("a"))
    submit(core, "1")
    core.decide(0.0)
    core.give_back("a", now=1.0)
    core.finished("a", "1", 10, now=1.1)
    assert core.decide(1.2) == []


def test_a_new_replica_of_the_same_name_takes_work() -> None:
    core = core_of(replica("a"))
    core.give_back("a", now=0.0)
    core.replica_lost("a", now=1.0)
    core.replica_joined(replica("a"), 2.0)
    submit(core, "1", now=2.0)
    assert dispatched(core, 2.0) == [("1", "a")]


def test_an_unknown_replica_drains_and_gives_back_nothing() -> None:
    core = core_of()
    core.replica_draining("nobody", now=0.0)
    core.give_back("nobody", now=0.0)
    assert core.decide(0.0) == []
    assert core.runs_on("nobody") == 0


# Requests that a replica runs already when it joins.


def adopt(core: ClusterScheduler, name: str, *, attempt: int = 1, tokens: int = 30) -> bool:
    return core.adopt(
        request(name),
        forecast(),
        5.0,
        replica_id="a",
        attempt=attempt,
        key=1.5,
        tokens=tokens,
    )


def test_a_request_that_runs_already_has_its_place_in_the_ledger() -> None:
    core = core_of(replica("a", block_size=10))
    assert adopt(core, "x")
    assert (core.state("x"), core.running, core.runs_on("a")) == ("running", 1, 1)
    placed = core.placement("x")
    assert placed is not None
    assert (placed[0], placed[1].lower) == ("a", 30)
    assert core.fleet["a"].used_blocks == 6, "20 of the prompt, 30 of output, the next one's place"
    assert core.fleet["a"].profile.peak >= 6
    assert not adopt(core, "x"), "once"
    assert core.finished("a", "x", 40, now=6.0)
    assert core.fleet["a"].used_blocks == 0


def test_it_counts_against_what_others_may_use() -> None:
    core = core_of(replica("a", blocks=10, block_size=10), admission="a_max")
    assert adopt(core, "x", tokens=60)
    core.submit(request("y", prompt=10, cap=30), Forecast.exact(30), now=5.0)
    assert core.decide(5.0) == []


def test_what_its_client_submitted_again_first_is_superseded() -> None:
    core = core_of(replica("a"), replica("b"))
    submit(core, "x")
    assert adopt(core, "x")
    assert (core.waiting, core.running) == (0, 1)
    assert core.decide(5.0) == []


def test_a_later_attempt_counts_more_than_what_runs() -> None:
    core = core_of(replica("a"))
    submit(core, "x", attempt=3)
    assert not adopt(core, "x", attempt=2)
    assert (core.waiting, core.running, core.fleet["a"].used_blocks) == (1, 0, 0)


def test_what_runs_twice_goes_on_in_its_later_attempt() -> None:
    core = core_of(replica("b"))
    submit(core, "x", attempt=2)
    assert dispatched(core) == [("x", "b")]
    core.replica_joined(replica("a"), 1.0)
    assert not adopt(core, "x", attempt=2), "the same attempt runs elsewhere"
    assert adopt(core, "x", attempt=3)
    assert core.decide(5.0) == [Recall("x", "b")]
    assert core.placement("x") is not None
    assert core.fleet["b"].used_blocks == 0


def test_on_a_replica_that_is_not_here_nothing_runs() -> None:
    core = core_of(replica("b"))
    assert not adopt(core, "x")
    assert core.state("x") == "unknown"


def test_a_request_that_was_found_running_can_be_evicted_and_lost_like_any_other() -> None:
    core = core_of(replica("a"))
    assert adopt(core, "x")
    assert core.evicted("a", "x", 35, now=6.0)
    ((name, _),) = dispatched(core, 7.0)
    assert name == "x"
    assert core.replica_lost("a", now=8.0) == {"x": 0.0}


def test_an_online_request_that_was_found_keeps_offline_work_off_the_guard_band() -> None:
    core = core_of(replica("a", blocks=20), guard_band=0.5, admission="a_max")
    assert adopt(core, "x", tokens=1)
    assert request("x").request_class is RequestClass.ONLINE
    core.submit(request("off", prompt=150, cap=90, online=False), Forecast.exact(90), now=5.0)
    assert core.decide(5.0) == []
