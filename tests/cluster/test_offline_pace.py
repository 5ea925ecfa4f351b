"""Pacing of offline work: how many offline requests may run at once, whatever else happens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.fleet_summary import NEVER
from cluster.core.suspects import ALONE_AT
from cluster.scheduler import ClusterScheduler, Recall
from policies.bundle import policy_names
from tests.cluster.factories import dispatched, forecast, replica, request, scheduler


def queued(core: ClusterScheduler, *names: str, online: bool = False) -> None:
    for name in names:
        core.submit(request(name, cap=40, online=online), forecast(20), 0.0)


def test_so_many_offline_requests_run_and_no_more() -> None:
    core = scheduler(replica("a"), replica("b"))
    core.pace_offline(3, 0.0)
    queued(core, "1", "2", "3", "4", "5")
    assert len(dispatched(core)) == core.offline_running == 3
    assert dispatched(core) == []
    where = core.placement("1")
    assert where is not None
    assert core.finished(where[0], "1", 20, 1.0)
    assert [name for name, _ in dispatched(core, 1.0)] == ["4"]


def test_online_requests_are_never_held() -> None:
    core = scheduler(replica("a"))
    core.pace_offline(0, 0.0)
    queued(core, "batch")
    queued(core, "chat", "talk", online=True)
    assert {name for name, _ in dispatched(core)} == {"chat", "talk"}
    assert core.offline_running == 0
    assert core.waiting == 1


def test_a_lower_pace_stops_nobody_and_a_lifted_one_lets_all_in() -> None:
    core = scheduler(replica("a"))
    queued(core, "1", "2", "3", "4")
    core.pace_offline(2, 0.0)
    assert len(dispatched(core)) == 2
    core.pace_offline(1, 1.0)
    assert core.decide(1.0) == []
    assert core.running == 2
    core.pace_offline(None, 2.0)
    assert len(dispatched(core, 2.0)) == 2


def test_time_alone_lets_nobody_in_who_is_held() -> None:
    core = scheduler(replica("a"))
    core.pace_offline(1, 0.0)
    queued(core, "1", "2")
    core.decide(0.0)
    assert core.patience(1000.0) == NEVER


def test_a_suspect_that_is_held_keeps_no_replica_for_itself() -> None:
    core = scheduler(replica("a"))
    core.pace_offline(0, 0.0)
    core.submit(request("suspect", online=False), forecast(20), 0.0, strikes=ALONE_AT)
    assert core.decide(0.0) == []
    assert core.decide(60.0) == []
    queued(core, "chat", online=True)
    assert dispatched(core, 60.0) == [("chat", "a")]
    assert core.finished("a", "chat", 20, 61.0)
    core.pace_offline(None, 61.0)
    assert dispatched(core, 200.0) == [("suspect", "a")]


def test_one_on_its_way_to_another_replica_counts_and_is_not_held() -> None:
    core = scheduler(replica("home", blocks=16), policy_name="a_max")
    core.submit(request("big", online=False), forecast(), 0.0)
    core.submit(request("waits", cap=60, online=False), forecast(20), 0.0)
    assert len(dispatched(core)) == 2
    core.pace_offline(2, 0.0)
    core.progressed("home", {"big": 190}, 0.0)
    core.replica_joined(replica("other"), 0.0)
    core.stalled("home", {"waits": 0}, 0.0)
    queued(core, "third")
    assert core.decide(5.0) == [Recall("waits", "home", to="other")]
    assert core.offline_running == 2, "its room is kept, so nobody else has its place"
    core.submit(request("waits", cap=60, online=False), forecast(20), 6.0, attempt=2)
    assert dispatched(core, 6.0) == [("waits", "other")]
    assert core.state("third") == "waiting"


def test_a_negative_pace_is_refused() -> None:
    with pytest.raises(ValueError, match="most_running is -1, must be at least 0, or None"):
        scheduler().pace_offline(-1, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([n for n in policy_names() if n != "h_sf"]))
def test_on_random_histories_offline_work_starts_within_its_pace(seed: int, name: str) -> None:
    rng = random.Random(seed)
    core = scheduler(
        replica("a", slots=5), replica("b", slots=5), policy_name=name, backfill=seed % 2
    )
    offline: set[str] = set()
    running: dict[str, str] = {}
    most: int | None = None
    for number in range(80):
        now = float(number)
        event = rng.random()
        if event < 0.5:
            online = rng.random() < 0.4
            queued(core, f"q{number}", online=online)
            offline |= set() if online else {f"q{number}"}
        elif event < 0.6:
            most = rng.choice([None, 0, 1, 3])
            core.pace_offline(most, now)
        elif running:
            ended, where = running.popitem()
            assert core.finished(where, ended, 20, now)
        before = len(offline & running.keys())
        fresh = dict(dispatched(core, now))
        running |= fresh
        after = len(offline & running.keys())
        assert core.offline_running == after
        if most is not None:
            assert after <= max(before, most)
        assert len(running) == core.running
