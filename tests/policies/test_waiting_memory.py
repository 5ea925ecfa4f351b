"""A queue remembers who waits, not who has waited."""

from __future__ import annotations

import pytest

from policies.bundle import policy
from policies.fair_share import FairWaitingQueue
from policies.forecast import Forecast
from policies.request import Request
from policies.waiting import KEPT_ENTRIES, Waiting, WaitingQueue

SLOTS = 8


def waiting(name: str, key: float) -> Waiting:
    request = Request(name, 10, 100)
    return Waiting(request, Forecast(3.0, 0.5, 1, 100), 1, 0.0, given_key=key)


def entries(queue: WaitingQueue) -> int:
    lanes = queue._lanes.values() if isinstance(queue, FairWaitingQueue) else ()
    return len(queue._heap) + sum(len(lane.heap) for lane in lanes)


@pytest.mark.parametrize("kind", [WaitingQueue, FairWaitingQueue])
def test_requests_that_leave_far_behind_the_head_leave_nothing(kind: type[WaitingQueue]) -> None:
    rules = policy()
    queue = kind(rules.ordering, rules.admission)
    queue.add(waiting("head", 0.0))
    for number in range(10 * KEPT_ENTRIES):
        queue.add(waiting(f"r{number}", 1.0 + number))
        queue.key_pending(SLOTS)
        queue.remove(f"r{number}")
        assert queue.first() is queue["head"]
        assert entries(queue) <= 2 * (len(queue) + 1) + KEPT_ENTRIES
    assert len(queue) == 1


@pytest.mark.parametrize("kind", [WaitingQueue, FairWaitingQueue])
def test_requests_that_are_forecast_again_stand_in_the_queue_once(kind: type[WaitingQueue]) -> None:
    rules = policy()
    queue = kind(rules.ordering, rules.admission)
    for number in range(3):
        queue.add(waiting(f"r{number}", float(number)))
    for _ in range(10 * KEPT_ENTRIES):
        queue.forecast("r2", Forecast(2.0, 0.5, 1, 100))
        queue.key_pending(SLOTS)
        assert entries(queue) <= 2 * len(queue) + KEPT_ENTRIES + 1
    left = []
    while (first := queue.first()) is not None:
        left.append(first.request.request_id)
        queue.pop()
    assert left == ["r0", "r1", "r2"]
