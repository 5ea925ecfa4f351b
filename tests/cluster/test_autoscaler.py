"""The number of replicas follows the work, within its bounds, and does not flap."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config_sections import AutoscaleConfig
from cluster.membership.autoscaler import Autoscaler, busy_replicas
from policies.forecast import Forecast
from policies.ledger import Replica, ReplicaLedger
from policies.request import Request

RATE = 500.0
"""Tokens per second of a replica in these tests."""


def config(most: int | None = 8, least: int = 1, **further: float) -> AutoscaleConfig:
    return AutoscaleConfig.model_validate({"max": most, "min": least, **further})


class Fluid:
    """Replicas that load for a while, a queue before them, and work that flows.

    A request has 200 tokens. A replica runs at most 16 of them, then makes 500 tokens per second;
    fewer are each faster, `alone` times as fast at most.
    """

    LOAD_S = 20
    SLOTS = 16
    TOKENS = 200.0

    def __init__(self, scaler: Autoscaler, replicas: int, alone: float = 1.5) -> None:
        self.scaler = scaler
        self.alone = alone
        self.ready_s = [0.0] * replicas
        self.now = 0.0
        self.queue = self.running = 0.0
        self.counts = [replicas]
        self.longest_wait_s = 0.0

    def speed(self, share: float) -> float:
        """Of a replica this full, over that of a full one."""
        return self.alone * share / (1 + (self.alone - 1) * share)

    def run(self, seconds: int, tokens_per_s: Callable[[float], float]) -> None:
        for _ in range(seconds):
            self.now += 1.0
            ready = sum(ready_s <= self.now for ready_s in self.ready_s)
            self.queue += tokens_per_s(self.now)
            starts = min(self.queue, ready * self.SLOTS * self.TOKENS - self.running)
            self.queue -= starts
            self.running += starts
            busy = self.running / self.TOKENS / self.SLOTS
            share = busy / ready if ready else 0.0
            self.running -= min(self.running, ready * RATE * self.speed(share))
            if ready:
                self.longest_wait_s = max(self.longest_wait_s, self.queue / (ready * RATE))
            wanted = self.scaler.wanted(
                self.now,
                current=len(self.ready_s),
                queued_tokens=round(self.queue),
                busy=busy,
                tokens_per_s_per_replica=RATE,
            )
            self.ready_s = self.ready_s[:wanted]
            self.ready_s += [self.now + self.LOAD_S] * (wanted - len(self.ready_s))
            self.counts.append(wanted)

    @property
    def changes(self) -> list[int]:
        """Changes of the count, those of zero left out."""
        return [b - a for a, b in itertools.pairwise(self.counts) if a != b]


def test_without_a_maximum_the_count_stays() -> None:
    scaler = Autoscaler(config(None))
    assert not scaler.enabled
    for now in range(100):
        assert (
            scaler.wanted(
                now, current=3, queued_tokens=10**9, busy=3.0, tokens_per_s_per_replica=RATE
            )
            == 3
        )


def test_a_steady_load_settles_on_a_count_that_carries_it() -> None:
    fluid = Fluid(Autoscaler(config()), 1)
    fluid.run(1800, lambda now: 3.3 * RATE)
    assert all(change > 0 for change in fluid.changes), "up, and not down again"
    assert 4 <= fluid.counts[-1] <= 6
    assert fluid.queue < RATE


def test_a_step_down_is_followed_after_the_delay() -> None:
    fluid = Fluid(Autoscaler(config(down_delay_s=120)), 6)
    fluid.run(300, lambda now: 5.0 * RATE)
    assert not fluid.changes
    fluid.run(119, lambda now: 1.2 * RATE)
    assert not fluid.changes
    fluid.run(1800, lambda now: 1.2 * RATE)
    assert fluid.changes
    assert all(change < 0 for change in fluid.changes), "down, and not up again"
    assert fluid.counts[-1] in (2, 3)
    assert fluid.longest_wait_s < 1


@pytest.mark.parametrize("period_s", [20, 60, 300])
def test_a_load_that_goes_up_and_down_does_not_make_the_count_flap(period_s: int) -> None:
    def load(now: float) -> float:
        return (2.5 + 1.5 * np.sin(2 * np.pi * now / period_s)) * RATE

    fluid = Fluid(Autoscaler(config(down_delay_s=400)), 2)
    fluid.run(900, load)
    settled = len(fluid.changes)
    fluid.run(3600, load)
    assert len(fluid.changes) == settled


def test_engines_that_look_empty_under_load_do_not_make_the_count_flap_for_long() -> None:
    """Eight times as fast alone: two replicas under 1.4 replicas' load look a third full."""
    fluid = Fluid(Autoscaler(config(down_delay_s=120)), 2, alone=8.0)
    fluid.run(4 * 3600, lambda now: 1.4 * RATE)
    first, last = fluid.counts[:3600], fluid.counts[-3600:]
    assert sum(a != b for a, b in itertools.pairwise(first)) <= 8
    assert sum(a != b for a, b in itertools.pairwise(last)) <= 4


def test_a_burst_that_is_shorter_than_the_delay_starts_nothing() -> None:
    fluid = Fluid(Autoscaler(config(up_delay_s=5)), 1)
    fluid.run(60, lambda now: 0.5 * RATE)
    fluid.queue += 11 * RATE  # half of the target's time
    fluid.run(300, lambda now: 0.5 * RATE)
    assert not fluid.changes


def test_more_are_started_only_when_the_target_is_exceeded_for_the_delay() -> None:
    scaler = Autoscaler(config(target_wait_s=20, up_delay_s=5))

    def ask(now: float, queued_tokens: float, current: int = 2) -> int:
        return scaler.wanted(
            now,
            current=current,
            queued_tokens=round(queued_tokens),
            busy=float(current),
            tokens_per_s_per_replica=RATE,
        )

    just_enough = 2 * 20 * RATE
    assert [ask(now, just_enough) for now in range(20)] == [2] * 20
    assert [ask(now, just_enough + 1) for now in range(20, 25)] == [2] * 5
    assert ask(25, 3 * just_enough) == 3, "the least that was wanted for all of the delay"
    assert [ask(now, 3 * just_enough, current=3) for now in range(26, 31)] == [3] * 5
    assert ask(31, 3 * just_enough, current=3) == 6


def test_the_first_replica_is_wanted_as_soon_as_anything_waits() -> None:
    scaler = Autoscaler(config(least=0))
    for now, queued, wanted in [(0, 0, 0), (1, 1, 1), (2, 10**9, 1)]:
        assert wanted == scaler.wanted(
            now, current=0, queued_tokens=queued, busy=0.0, tokens_per_s_per_replica=None
        )


def test_none_is_left_only_when_nothing_waits_or_runs_for_the_delay() -> None:
    scaler = Autoscaler(config(least=0, down_delay_s=60))

    def ask(now: float, queued_tokens: int = 0, busy: float = 0.0) -> int:
        return scaler.wanted(
            now,
            current=1,
            queued_tokens=queued_tokens,
            busy=busy,
            tokens_per_s_per_replica=RATE,
        )

    assert [ask(now, busy=0.01) for now in range(200)] == [1] * 200
    assert [ask(now) for now in range(200, 250)] == [1] * 50
    assert ask(250, queued_tokens=1) == 1
    assert [ask(now) for now in range(251, 311)] == [1] * 60
    assert ask(311) == 0


def test_to_zero_and_back_with_requests_waiting() -> None:
    fluid = Fluid(Autoscaler(config(least=0, down_delay_s=60)), 1)
    fluid.run(200, lambda now: 0.0)
    assert fluid.counts[-1] == 0
    fluid.run(1, lambda now: 100.0)
    assert fluid.counts[-1] == 1
    fluid.run(60, lambda now: 0.0)
    assert fluid.queue == 0


def test_until_the_throughput_is_known_the_count_stays() -> None:
    scaler = Autoscaler(config())
    for now in range(100):
        assert (
            scaler.wanted(
                now, current=2, queued_tokens=10**6, busy=2.0, tokens_per_s_per_replica=None
            )
            == 2
        )


def test_what_was_known_of_the_throughput_is_remembered() -> None:
    scaler = Autoscaler(config(up_delay_s=0))
    scaler.wanted(0, current=1, queued_tokens=0, busy=0.0, tokens_per_s_per_replica=RATE)
    assert (
        scaler.wanted(
            1,
            current=1,
            queued_tokens=round(5 * 20 * RATE),
            busy=1.0,
            tokens_per_s_per_replica=None,
        )
        == 5
    )


def test_a_burst_between_two_lulls_breaks_the_wish_for_fewer() -> None:
    scaler = Autoscaler(config(up_delay_s=0, down_delay_s=100))

    def wanted(now: float, current: int, queued_tokens: int) -> int:
        return scaler.wanted(
            now,
            current=current,
            queued_tokens=queued_tokens,
            busy=1.0,
            tokens_per_s_per_replica=RATE,
        )

    assert {wanted(second, 4, 0) for second in range(95)} == {4}
    assert wanted(95, 4, 10**6) == 8
    assert {wanted(96 + second, 8, 0) for second in range(100)} == {8}
    assert wanted(196, 8, 0) == 2


def test_the_bounds_hold_at_once() -> None:
    for current, wanted in [(0, 2), (1, 2), (9, 4)]:
        scaler = Autoscaler(config(4, 2))
        assert wanted == scaler.wanted(
            0, current=current, queued_tokens=0, busy=0.0, tokens_per_s_per_replica=None
        )


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.floats(0, 8), st.floats(0.01, 1000) | st.none()),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 3),
    st.integers(3, 8),
)
def test_the_bounds_hold_whatever_comes(
    asked: list[tuple[int, float, float | None]], least: int, most: int
) -> None:
    scaler = Autoscaler(config(most, least))
    current = least
    for now, (queued_tokens, busy, rate) in enumerate(asked):
        current = scaler.wanted(
            float(10 * now),
            current=current,
            queued_tokens=queued_tokens,
            busy=min(busy, current),
            tokens_per_s_per_replica=rate,
        )
        assert least <= current <= most
        assert current or not queued_tokens


def ledger(name: str, requests: int, prompt_tokens: int) -> ReplicaLedger:
    made = ReplicaLedger(Replica(name, 100, 16, slots=12, max_model_len=1600, look_ahead=2))
    for number in range(requests):
        request = Request(f"{name}-{number}", prompt_tokens, 50, arrival_s=0.0)
        made.add(request, Forecast(3.0, 0.5, 10, 40), estimate=1)
    return made


def test_replicas_are_busy_by_slots_or_by_memory_whichever_is_more() -> None:
    by_slots, by_memory = ledger("a", 5, 10), ledger("b", 1, 1199)
    assert busy_replicas([by_slots]) == pytest.approx(0.5)
    assert busy_replicas([by_memory]) == pytest.approx(0.75)
    assert busy_replicas([ledger("c", 12, 10)]) == 1.0, "what is sent ahead does not count"
    assert busy_replicas([by_slots, by_memory, ledger("d", 0, 1)]) == pytest.approx(1.25)
