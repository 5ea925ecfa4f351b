"""Replicas that decode slowly beside the others: found, gone around, and found well again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.replica_speeds import TRIED_AFTER_S, ReplicaSpeeds
from cluster.scheduler import ClusterScheduler, Recall
from policies.bundle import policy
from policies.forecast import Forecast
from policies.ledger import Replica
from tests.cluster.factories import dispatched, replica, request

STEP_S = 0.25


def roomy(name: str, **sizes: int) -> Replica:
    return replica(name, **{"blocks": 100_000, "slots": 64, "longest": 100_000, **sizes})


@dataclass
class World:
    """Replicas that report every quarter of a second, each with its own speed."""

    core: ClusterScheduler
    tokens_s: dict[str, float]
    now: float = 0.0
    made: dict[str, float] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def submit(self, name: str, *, online: bool = True, cap: int = 90_000) -> str:
        """Submit a request; returns where it went, or nothing."""
        one = request(name, cap=cap, online=online, arrival_s=self.now)
        self.core.submit(one, Forecast.exact(cap), self.now)
        self.decide()
        return self.where.get(name, "")

    def decide(self) -> None:
        for name, where in dispatched(self.core, self.now):
            self.where[name] = where
            self.made[name] = 0.0

    def finish(self, name: str) -> None:
        self.core.finished(self.where.pop(name), name, int(self.made[name]) + 1, self.now)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            for replica_id, tokens_s in self.tokens_s.items():
                here = [n for n, where in self.where.items() if where == replica_id]
                for name in here:
                    self.made[name] += tokens_s * STEP_S
                self.core.progressed(replica_id, {n: int(self.made[n]) for n in here}, self.now)
            self.decide()

    @property
    def avoided(self) -> list[str]:
        fleet = self.core.fleet
        return [one for one in self.tokens_s if fleet.is_avoided(one)]


def world(*replicas: Replica, each: int = 3, **tokens_s: float) -> World:
    """Replicas with some endless requests on each."""
    core = ClusterScheduler(policy("fcfs"))
    for one in replicas or [roomy(name) for name in tokens_s]:
        core.replica_joined(one, 0.0)
    made = World(core, tokens_s)
    for number in range(each * len(tokens_s)):
        made.submit(f"first {number}")
    assert sorted(made.where.values()) == sorted([*tokens_s] * each)
    return made


def judge(one: World) -> None:
    """Give the core a reason to look."""
    one.submit("looks")
    one.finish("looks")


def test_a_replica_ten_times_slower_is_gone_around_until_it_is_well_again() -> None:
    one = world(a=40, b=40, c=40)
    one.run(20)
    judge(one)
    assert one.avoided == []
    one.tokens_s["b"] = 4
    one.run(12)
    placed = [one.submit(f"second {number}") for number in range(12)]
    assert one.avoided == ["b"]
    assert sorted(set(placed)) == ["a", "c"]
    one.tokens_s["b"] = 40
    one.run(12)
    placed = [one.submit(f"third {number}") for number in range(12)]
    assert one.avoided == []
    assert "b" in placed


def test_of_two_replicas_the_slower_one_is_gone_around() -> None:
    one = world(a=40, b=4)
    one.run(12)
    assert {one.submit(f"next {number}") for number in range(6)} == {"a"}


def test_one_that_makes_no_tokens_any_more_is_slow_too() -> None:
    one = world(a=40, b=40)
    one.run(10)
    one.tokens_s["b"] = 0
    one.run(12)
    assert {one.submit(f"next {number}") for number in range(6)} == {"a"}


def test_half_the_speed_is_not_slow_and_neither_is_a_slow_fleet() -> None:
    one = world(a=40, b=20, c=17)
    one.run(20)
    judge(one)
    assert one.avoided == []
    one.tokens_s = dict.fromkeys(one.tokens_s, 1)
    one.run(20)
    judge(one)
    assert one.avoided == []


def test_one_that_only_has_more_to_do_at_once_is_not_slow() -> None:
    core = ClusterScheduler(policy("fcfs"))
    for name in ("busy", "other", "third"):
        core.replica_joined(roomy(name), 0.0)
    one = World(core, {"busy": 5.0, "other": 50.0, "third": 50.0})
    for number in range(32):
        name = f"{number}"
        key = {"replica_id": "busy", "attempt": 1, "key": 0.0, "tokens": 0}
        core.adopt(request(name, cap=90_000), Forecast.exact(90_000), 0.0, **key)  # type: ignore[arg-type]
        one.where[name], one.made[name] = "busy", 0.0
    one.submit("x")
    one.submit("y")
    one.run(20)
    judge(one)
    assert one.avoided == []


def test_an_offline_request_goes_there_when_no_other_has_room() -> None:
    one = world(roomy("a", slots=4), roomy("b", slots=4), each=3, a=40, b=4)
    one.run(12)
    assert one.submit("fills a", online=False) == "a"
    assert one.submit("overflows", online=False) == "b"


def test_an_online_request_waits_for_another_replica_instead() -> None:
    one = world(roomy("a", slots=4), roomy("b", slots=8), each=3, a=40, b=4)
    one.run(12)
    assert one.submit("fills a") == "a"
    assert one.submit("waits") == ""
    one.finish("fills a")
    one.decide()
    assert one.where["waits"] == "a"


@pytest.mark.parametrize("event", ["too small", "draining", "lost"])
def test_an_online_request_goes_there_when_no_other_can_ever_run_it(event: str) -> None:
    one = world(roomy("a", longest=50_000), roomy("b"), each=0, a=40, b=4)
    for number in range(6):
        one.submit(f"first {number}", cap=9000)
    one.run(12)
    assert one.submit("small", cap=9000) == "a"
    if event == "draining":
        one.core.replica_draining("a", one.now)
    elif event == "lost":
        one.core.replica_lost("a", one.now)
    assert one.submit("x", cap=60_000 if event == "too small" else 9000) == "b"


def test_without_work_a_slow_replica_is_tried_with_one_request() -> None:
    one = world(a=40, b=4)
    one.run(12)
    judge(one)
    assert one.avoided == ["b"]
    for name in [n for n, where in one.where.items() if where == "b"]:
        one.finish(name)
    one.run(TRIED_AFTER_S + 2)
    placed = [one.submit(f"next {number}") for number in range(4)]
    assert placed.count("b") == 1
    one.run(3)
    assert one.submit("later") == "a", "it is as slow as it was"
    one.tokens_s["b"] = 40
    one.run(15)
    judge(one)
    assert one.avoided == []


def test_what_waits_in_a_slow_engine_is_recalled_to_another() -> None:
    core = ClusterScheduler(policy("fcfs"))
    for name in ("a", "b"):
        core.replica_joined(replace(roomy(name), look_ahead=2), 0.0)
    one = World(core, {"a": 40, "b": 4})
    for number in range(6):
        one.submit(f"{number}")
    one.run(12)
    judge(one)
    core.decide(one.now)
    name = next(n for n, where in one.where.items() if where == "b")
    core.stalled("b", {name: int(one.made[name])}, one.now)
    assert core.decide(one.now) == [Recall(name, "b", to="a")]


def test_a_simulation_may_do_without() -> None:
    core = ClusterScheduler(policy("fcfs"), avoid_slow=False)
    for name in ("a", "b"):
        core.replica_joined(roomy(name), 0.0)
    one = World(core, {"a": 40, "b": 1})
    one.submit("1")
    one.submit("2")
    one.run(20)
    judge(one)
    assert one.avoided == []


@given(
    st.lists(st.floats(1, 100), min_size=2, max_size=6),
    st.integers(1, 5),
    st.floats(0.05, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_who_is_slow_is_told_by_the_middle_speed_alone(
    tokens_s: list[float], running: int, every_s: float
) -> None:
    """With equal numbers of requests everywhere and steady speeds."""
    speeds = ReplicaSpeeds()
    for index in range(len(tokens_s)):
        speeds.join(str(index))
    now, avoided = 0.0, {}
    made = [0.0] * len(tokens_s)
    for _ in range(int(30 / every_s)):
        now += every_s
        for index, rate in enumerate(tokens_s):
            before = int(made[index])
            made[index] += rate * every_s * running
            speeds.progressed(str(index), int(made[index]) - before, running, now)
        avoided |= speeds.judge(now)
    middle = sorted(tokens_s)[len(tokens_s) // 2]
    for index, rate in enumerate(tokens_s):
        if rate < 0.2 * middle:
            assert avoided.get(str(index)), "slow"
        elif rate > 0.55 * middle:
            assert not avoided.get(str(index)), "not slow"
