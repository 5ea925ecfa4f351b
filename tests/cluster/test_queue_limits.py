"""The queue's limits, its load and the rate at which it drains."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.queue_limits import RETRY_AFTER_S, SMOOTHING_S, QueueMeter
from cluster.scheduler import ClusterScheduler, QueueFullError, QueueLimits
from policies.bundle import policy
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from tests.cluster.controlled import Controlled
from tests.cluster.factories import dispatched, forecast, replica, request

ONLINE, OFFLINE = RequestClass
SHORTEST_S, LONGEST_S = RETRY_AFTER_S
MANY = 10**9


def limited_core(online: tuple[int, int] = (MANY, MANY), **options: bool) -> ClusterScheduler:
    """Without a replica, so that everything waits."""
    limits = QueueLimits(*online, offline_requests=MANY, offline_tokens=MANY)
    return ClusterScheduler(policy("fcfs"), limits=limits, **options)


@pytest.mark.parametrize("fair_share", [False, True])
def test_beyond_the_most_requests_new_ones_are_refused_with_the_limit(fair_share: bool) -> None:
    core = limited_core((2, MANY), fair_share=fair_share)
    for name in "ab":
        core.submit(request(name), forecast(), now=0.0)
    with pytest.raises(QueueFullError, match=r"2 online requests wait.*online_requests is 2") as e:
        core.submit(request("c"), forecast(), now=1.0)
    assert e.value.retry_after_s == LONGEST_S, "nothing has ever left the queue"
    assert (core.state("c"), core.waiting) == ("unknown", 2)
    core.cancel("a", now=1.0)
    assert core.submit(request("c"), forecast(), now=1.0)


def test_beyond_the_most_predicted_tokens_new_ones_are_refused() -> None:
    core = limited_core((MANY, 100))
    core.submit(request("a"), Forecast.exact(60), now=0.0)
    core.submit(request("b"), Forecast.exact(60), now=0.0)
    with pytest.raises(QueueFullError, match=r"120 predicted tokens.*online_tokens 100"):
        core.submit(request("c"), Forecast.exact(1), now=0.0)
    core.forecast("b", Forecast.exact(39), now=0.0)
    assert core.queue(ONLINE).tokens == 99
    assert core.submit(request("c"), Forecast.exact(200), now=0.0), "the last one may be large"


def test_each_class_has_its_own_limits() -> None:
    core = ClusterScheduler(policy("fcfs"), limits=QueueLimits(1, MANY, 1, MANY))
    core.submit(request("online"), forecast(), now=0.0)
    core.submit(request("offline", online=False), forecast(), now=0.0)
    for online in (True, False):
        with pytest.raises(QueueFullError, match="online" if online else "offline"):
            core.submit(request("more", online=online), forecast(), now=0.0)


def test_what_was_accepted_once_is_never_refused_for_a_full_queue() -> None:
    core = limited_core((1, MANY))
    core.submit(request("a"), forecast(), now=0.0)
    assert not core.submit(request("a"), forecast(), now=0.0)
    assert core.submit(request("a", generated=3), forecast(), now=0.0, attempt=2)
    assert core.submit(request("b", generated=3), forecast(), now=0.0, attempt=1)
    assert core.submit(request("c"), forecast(), now=0.0, attempt=2)
    assert core.queue(ONLINE).requests == 3


async def test_what_an_earlier_controller_had_accepted_is_never_refused_for_a_full_queue() -> None:
    cluster = Controlled(queue={"online_requests": 1})
    await cluster.submit("new")
    await cluster.submit("refused")
    await cluster.submit("accepted", accepted=True)
    assert ["new" in cluster.state.open, "accepted" in cluster.state.open] == [True, True]
    assert "refused" not in cluster.state.open
    assert cluster.state.counters.refused == 1


def test_an_impossible_request_is_told_so_even_when_the_queue_is_full() -> None:
    core = limited_core((1, MANY))
    core.replica_joined(replica(longest=100), 0.0)
    core.submit(request("a", cap=60), forecast(), now=0.0)
    with pytest.raises(ValueError, match="hold 100"):
        core.submit(request("b", cap=600), forecast(), now=0.0)


def test_the_drain_rate_is_that_of_the_tokens_which_leave() -> None:
    core = limited_core()
    core.replica_joined(replica(slots=1, blocks=1000), 0.0)
    for number in range(400):
        core.submit(request(f"{number}"), Forecast.exact(50), now=0.0)
    for second in range(100):
        ((name, where),) = dispatched(core, float(second))
        core.finished(where, name, 50, now=second + 0.5)
    load = core.queue(ONLINE)
    assert (load.requests, load.tokens) == (300, 300 * 50)
    assert load.drained_tokens_s == pytest.approx(50, rel=0.1)
    assert load.retry_after_s == LONGEST_S, "all that waits takes 300 s"
    for number in range(100, 390):
        core.cancel(f"{number}", now=100.0)


def test_the_rate_is_known_soon_after_the_beginning() -> None:
    meter = QueueMeter()
    for _ in range(100):
        meter.enter(10, 0.0)
    for tick in range(1, 21):
        meter.leave(10, tick / 10)
    load = meter.load(2.0)
    assert load.drained_tokens_s == pytest.approx(100, rel=0.1)
    assert load.retry_after_s == pytest.approx(800 / 100, rel=0.1)


def test_an_old_rate_is_forgotten_after_a_pause() -> None:
    meter = QueueMeter()
    meter.enter(1000, 0.0)
    meter.leave(1000, 1.0)
    for _ in range(50):
        meter.enter(10, 600.0)
    for tick in range(1, 21):
        meter.leave(10, 600 + tick / 10)
    assert meter.load(602.0).drained_tokens_s == pytest.approx(100, rel=0.1)
    assert meter.load(602.0 + 3 * SMOOTHING_S).drained_tokens_s < 10


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 30)), max_size=40))
@settings(max_examples=80, deadline=None)
def test_what_refused_requests_are_told_stays_within_bounds(
    jobs: list[tuple[int, float]],
) -> None:
    meter, now, waiting = QueueMeter(), 0.0, []
    for tokens, passed_s in jobs:
        now += passed_s
        if passed_s < 12 or not waiting:
            meter.enter(tokens, now)
            waiting.append(tokens)
        else:
            meter.leave(waiting.pop(), now)
        load = meter.load(now)
        assert (load.requests, load.tokens) == (len(waiting), sum(waiting))
        assert SHORTEST_S <= load.retry_after_s <= LONGEST_S
        assert 0 <= load.drained_tokens_s < math.inf


@pytest.mark.parametrize("online_tokens", [0, -3])
def test_a_limit_below_one_is_refused(online_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"online_tokens is {online_tokens}, must be at least 1"):
        QueueLimits(1, online_tokens, 1, 1)


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_queue_never_holds_more_than_it_may(seed: int, fair_share: bool) -> None:
    """Requests are beyond the limit by no more than what was in the system already."""
    rng = random.Random(seed)
    core = limited_core((5, 300), fair_share=fair_share)
    core.replica_joined(replica(slots=3), 0.0)
    running: dict[str, str] = {}
    expected: dict[str, Request] = {}
    for number in range(80):
        now = float(number)
        event = rng.random()
        if event < 0.7:
            one = replace(request(f"{number}"), tenant=rng.choice("ab"))
            full = core.queue(ONLINE).requests >= 5 or core.queue(ONLINE).tokens >= 300
            try:
                core.submit(one, Forecast.exact(rng.randint(1, 120)), now)
                expected[one.request_id] = one
                assert not full
            except QueueFullError:
                assert full
                assert core.state(one.request_id) == "unknown"
        elif running:
            name, where = running.popitem()
            if rng.random() < 0.3:
                core.evicted(where, name, 3, now)
            else:
                core.finished(where, name, 5, now)
        running |= dict(dispatched(core, now)) if rng.random() < 0.5 else {}
        assert core.queue(ONLINE).requests == core.waiting <= 5 + 3
