"""Frozen replicas are told from slow ones, idle ones and ones that nobody looked at."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import parse_config
from cluster.membership.fleet_watch import FleetWatch
from cluster.membership.watchdog import BLINK_S, GAPS, Watchdog
from replicas.protocol import EnergyTotals, EngineLoad, ReplicaReport

LIMIT_S = 20.0


class Fleet:
    """A watchdog that looks every half second, and replicas that report at times of their own."""

    def __init__(self) -> None:
        self.watchdog = Watchdog(LIMIT_S)
        self.now = 1000.0

    def passes(self, seconds: float) -> dict[str, float]:
        """Who is found frozen in this time, and after how much of it at first."""
        found: dict[str, float] = {}
        start = self.now
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            for replica_id in self.watchdog.frozen(self.now):
                found.setdefault(replica_id, self.now - start)
        return found

    def works(self, replica_id: str, seconds: float, every_s: float = 0.5) -> dict[str, float]:
        found: dict[str, float] = {}
        for _ in range(round(seconds / every_s)):
            found |= self.passes(every_s)
            self.reports(replica_id)
        return found

    def reports(self, replica_id: str, progress: bool = True, has_work: bool = True) -> None:
        self.watchdog.progressed(replica_id, progress, has_work, self.now)


def test_work_without_progress_is_frozen_after_the_limit() -> None:
    fleet = Fleet()
    fleet.works("r", 60)
    assert fleet.passes(60) == {"r": LIMIT_S}


def test_reports_without_progress_do_not_help() -> None:
    fleet = Fleet()
    fleet.reports("r", progress=False)
    found: dict[str, float] = {}
    for _ in range(30):
        found |= fleet.passes(1.0)
        fleet.reports("r", progress=False)
    assert list(found) == ["r"]


def test_a_replica_that_never_reports_at_all_is_found_from_when_it_was_sent_work() -> None:
    fleet = Fleet()
    fleet.passes(300)
    fleet.reports("r", progress=False, has_work=True)
    assert fleet.passes(60) == {"r": LIMIT_S}


def test_more_work_sent_to_a_frozen_replica_does_not_help_it() -> None:
    fleet = Fleet()
    fleet.works("r", 10)
    found: dict[str, float] = {}
    for _ in range(25):
        fleet.reports("r", progress=False, has_work=True)
        found |= fleet.passes(1.0)
    assert list(found) == ["r"]


def test_nothing_is_asked_of_a_replica_without_work() -> None:
    fleet = Fleet()
    fleet.works("r", 10)
    fleet.reports("r", progress=True, has_work=False)
    assert not fleet.passes(3600)
    fleet.reports("r", progress=False, has_work=True)
    assert fleet.passes(60) == {"r": LIMIT_S}


def test_progress_that_comes_in_time_starts_the_time_again() -> None:
    fleet = Fleet()
    fleet.works("r", 10)
    assert not fleet.passes(LIMIT_S - 1)
    fleet.reports("r")
    assert not fleet.passes(LIMIT_S - 1)


def test_a_replica_may_pause_for_some_times_its_longest_pause() -> None:
    fleet = Fleet()
    assert not fleet.works("r", 60, every_s=6.0)
    found = fleet.passes(80)
    assert GAPS * 6.0 - 2 <= found["r"] <= GAPS * 6.0, "the pause of 6 s has faded by little"


def test_a_long_pause_is_forgotten_with_time() -> None:
    fleet = Fleet()
    fleet.works("r", 18, every_s=18.0)
    fleet.works("r", 4 * 3600, every_s=1.0)
    assert fleet.passes(60) == {"r": LIMIT_S}


def test_a_watchdog_that_was_itself_suspended_accuses_nobody() -> None:
    fleet = Fleet()
    fleet.works("a", 10)
    fleet.works("b", 10)
    fleet.now += 1000.0
    assert not fleet.watchdog.frozen(fleet.now)
    assert not fleet.passes(LIMIT_S - 10 - BLINK_S - 1)
    fleet.reports("b")
    assert set(fleet.passes(LIMIT_S - 1)) == {"a"}


def test_a_replica_that_is_gone_is_forgotten() -> None:
    fleet = Fleet()
    fleet.works("r", 10)
    fleet.watchdog.forget("r")
    fleet.watchdog.forget("unknown")
    assert not fleet.passes(3600)


def test_one_replica_does_not_vouch_for_another() -> None:
    fleet = Fleet()
    fleet.reports("frozen", progress=False)
    assert set(fleet.works("alive", 60)) == {"frozen"}


@given(st.integers(0, 1000), st.floats(0.05, LIMIT_S - BLINK_S - 0.5))
def test_whoever_makes_progress_before_the_limit_is_never_accused(seed: int, most_s: float) -> None:
    rng = np.random.default_rng(seed)
    fleet = Fleet()
    for pause_s in rng.uniform(0, most_s, 60):
        fleet.reports("r", progress=True, has_work=bool(rng.random() < 0.9))
        assert not fleet.passes(pause_s)


def report(tokens: dict[str, int], kv_usage: float = 0.5) -> ReplicaReport:
    load = EngineLoad(len(tokens), 0, kv_usage)
    return ReplicaReport("r", tokens, [], load, EnergyTotals(), 0.0)


def test_a_frozen_engine_does_not_look_alive_because_requests_come_and_go() -> None:
    watch = FleetWatch(parse_config({"replicas": {"frozen_after_s": LIMIT_S}}))
    watch.dispatched("r", 0.0)
    watch.reported(report({"a": 1}), True, 0.5, made_tokens=0)
    for second in range(1, 19):
        # Another one is sent there, with the tokens that it has from elsewhere; its client leaves.
        watch.reported(report({"a": 1, f"b{second}": 7 * second}), True, second, made_tokens=0)
        watch.reported(report({"a": 1}), True, second + 0.5, made_tokens=0)
        assert not watch.frozen(second + 0.5)
    for tick in range(8):
        watch.reported(report({"a": 1}), True, 19 + tick / 2, made_tokens=0)
    assert watch.frozen(23.0) == ["r"]


def test_a_long_prompt_is_progress_while_it_fills_the_memory() -> None:
    watch = FleetWatch(parse_config({"replicas": {"frozen_after_s": LIMIT_S}}))
    watch.dispatched("r", 0.0)
    for second in range(100):
        watch.reported(report({"a": 0}, kv_usage=second / 100), True, second, made_tokens=0)
        assert not watch.frozen(second)
