"""A look at the order of a queue, against the order in which it is taken."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import waiting as module
from policies.bundle import policy, policy_names
from policies.fair_share import FairWaitingQueue, price
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from policies.waiting import Waiting, WaitingQueue, predicted_tokens

POLICIES = [name for name in policy_names() if name != "h_sf"]
SLOTS = 8


def forecast(rng: random.Random) -> Forecast:
    return Forecast(rng.uniform(1, 6), 0.5, 1, 500)


def waiting(name: str, rng: random.Random) -> Waiting:
    request = Request(
        name,
        rng.randint(1, 100),
        200,
        arrival_s=rng.uniform(0, 100),
        request_class=rng.choice(list(RequestClass)),
        tenant=rng.choice(["a", "b", "c"]),
    )
    one = Waiting(request, forecast(rng), 1, 0.0)
    one.predicted_tokens = predicted_tokens(request, one.forecast)
    if rng.random() < 0.1:
        one.given_key = rng.uniform(0, 10)
    return one


def queue(rng: random.Random, policy_name: str, *, fair: bool, count: int = 60) -> WaitingQueue:
    """Requests that came, left, were passed over and forecast again; some have no keys yet."""
    kind = FairWaitingQueue if fair else WaitingQueue
    rules = policy(policy_name)
    made = kind(rules.ordering, rules.admission)
    names: list[str] = []
    for number in range(count):
        event = rng.random()
        if event < 0.7 or not names:
            names.append(f"r{number}")
            made.add(waiting(names[-1], rng))
        elif event < 0.8:
            made.forecast(rng.choice(names), forecast(rng))
        elif event < 0.9:
            made.remove(names.pop(rng.randrange(len(names))))
        else:
            made.key_pending(SLOTS)
            if (first := made.first()) is not None:
                made.pop()
                if rng.random() < 0.5:
                    made.restore([first])
                else:
                    names.remove(first.request.request_id)
    return made


def taken(made: WaitingQueue) -> list[tuple[str, float, int]]:
    """Everything in the order in which it leaves, tenants being charged as they are served."""
    order = []
    made.key_pending(SLOTS)
    while (first := made.first()) is not None:
        made.pop()
        if isinstance(made, FairWaitingQueue):
            made.charge(first.request, price(first))
        order.append((first.request.request_id, first.key, first.estimate))
    return order


@given(st.integers(0, 2**32), st.sampled_from(POLICIES), st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_look_at_the_queue_tells_the_order_and_changes_nothing(
    seed: int, policy_name: str, fair: bool
) -> None:
    made = queue(random.Random(seed), policy_name, fair=fair)
    untouched = copy.deepcopy(made)
    seen = [(p.waiting.request.request_id, p.key, p.estimate) for p in made.peek(1000, SLOTS)]
    for name, key, estimate in seen:
        place = made.place(name, SLOTS)
        assert (place.key, place.estimate) == (key, estimate)
        made.estimated_place(name, SLOTS)
    assert [(p.waiting.request.request_id, *p[1:]) for p in made.peek(3, SLOTS)] == seen[:3]
    assert seen == taken(untouched) == taken(made)


@given(st.integers(0, 2**32), st.sampled_from(POLICIES))
@settings(max_examples=50, deadline=None)
def test_a_place_that_is_counted_among_all_is_the_place(seed: int, policy_name: str) -> None:
    made = queue(random.Random(seed), policy_name, fair=False)
    for position, place in enumerate(made.peek(1000, SLOTS), 1):
        assert made.estimated_place(place.waiting.request.request_id, SLOTS) == position


@pytest.mark.parametrize("fair", [False, True])
def test_a_place_that_is_estimated_from_a_sample_is_near(
    monkeypatch: pytest.MonkeyPatch, fair: bool
) -> None:
    made = queue(random.Random(1), "tie", fair=fair, count=4000)
    monkeypatch.setattr(module, "SAMPLED", 1000)
    for position, place in enumerate(made.peek(4000, SLOTS), 1):
        if position % 100 == 0:
            estimated = made.estimated_place(place.waiting.request.request_id, SLOTS)
            assert abs(estimated - position) < 0.1 * len(made)


def test_of_very_many_without_keys_the_first_that_came_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PREVIEWED", 10)
    rules, rng = policy("fcfs"), random.Random(0)
    made = WaitingQueue(rules.ordering, rules.admission)
    for number in range(11):
        made.add(waiting(f"r{number}", rng))
    assert not made.is_previewed
    assert {p.waiting.request.request_id for p in made.peek(20, 8)} == {
        f"r{number}" for number in range(10)
    }
    made.key_pending(SLOTS)
    assert made.is_previewed
    assert len(made.peek(20, 8)) == 11
