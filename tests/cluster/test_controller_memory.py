"""What the controller remembers of requests and clients, and what replicas remember for it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from cluster.control.clients import Clients
from cluster.control.open_requests import OpenRequests
from cluster.control.orders import Orders
from cluster.control.tickets import submission_of
from cluster.core.decisions import Dispatch
from cluster.messages import ClusterLoad, Dropped, Refused, Submission
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from replicas.protocol import Generation, PromptSlice
from replicas.running_attempt import RunningAttempt


def submission(
    name: str = "r",
    client: str = "c",
    attempt: int = 1,
    request_class: RequestClass = RequestClass.ONLINE,
    **generation: Any,
) -> Submission:
    return Submission(
        Generation(name, client, **{"prompt": b"1234", **generation}, attempt=attempt),
        prompt_tokens=1,
        max_tokens=7,
        request_class=request_class,
        tenant="somebody",
        text="a secret",
        evictions=2,
        strikes=1.5,
    )


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.5, "stop": ["a"], "logit_bias": {5: 1.0}, "seed": None},
        {"extra_args": {"tiebreak": object()}},
    ],
)
def test_a_ticket_has_all_that_a_new_controller_needs_and_no_prompt(
    sampling: dict[str, Any],
) -> None:
    asked = submission(
        prompt=PromptSlice(object(), 0, 4),
        sampling=sampling,
        generated_tokens=3,
        attempt=2,
        request_class=RequestClass.OFFLINE,
    )
    request = Request("r", 1, 7, arrival_s=12.5, request_class=RequestClass.OFFLINE)
    orders = Orders()
    forecast = Forecast(2.0, 0.5, 3, 7)
    orders.start(asked, Dispatch(request, "replica-0", 2, forecast, -3.25, 0.0, 1))
    held = RunningAttempt(orders.starts[0], accepted_s=0.0).held()
    back = submission_of(held.ticket)
    assert held.output_tokens == 3
    assert b"secret" not in held.ticket
    terms = back.generation.terms
    assert terms is not None
    assert terms.key == -3.25
    assert (terms.forecast.mu, terms.forecast.lower, terms.forecast.upper) == (2.0, 3, 7)
    assert terms.evictions == back.evictions == 2
    assert (back.tenant, back.strikes, back.request_class) == ("somebody", 1.5, 1)
    assert (back.generation.client_id, back.generation.attempt) == ("c", 2)
    assert back.generation.sampling.keys() == sampling.keys()


@pytest.mark.parametrize("key", [math.inf, -math.inf, math.nan, 1e300, -1e300])
def test_an_ordering_that_gives_any_number_leaves_the_classes_apart(key: float) -> None:
    orders = Orders()
    for kind, own in [(RequestClass.ONLINE, key), (RequestClass.OFFLINE, 12.5)]:
        request = Request("r", 1, 7, arrival_s=0.0, request_class=kind)
        dispatch = Dispatch(request, "replica-0", 2, Forecast(2.0, 0.5, 3, 7), own, 0.0, 1)
        orders.start(submission(request_class=kind), dispatch)
    online, offline = orders.starts
    assert online.priority < offline.priority
    assert abs(online.priority) < 1 << 63


def test_open_requests_are_found_by_client_and_age() -> None:
    known = OpenRequests()
    known.add(submission("a", "c"), 1.0)
    known.add(submission("b", "c", request_class=RequestClass.OFFLINE), 2.0)
    known.add(submission("a", "d", attempt=3), 5.0)
    assert len(known) == 2
    assert known.attempts_of("c") == {"b": 1}
    assert known.attempts_of("d") == {"a": 3}
    assert not list(known.since_before(4.0, RequestClass.ONLINE))
    (old,) = known.since_before(5.0, RequestClass.ONLINE)
    assert old.generation.request_id == "a"
    assert known.discard("a") is old
    assert known.discard("a") is None
    assert known.attempts_of("d") == {}
    assert "a" not in known


class Moment(float):
    """A time that counts how often one of its kind is looked at."""

    looked = 0

    def __gt__(self, other: float) -> bool:
        Moment.looked += 1
        return super().__gt__(other)

    def __le__(self, other: float) -> bool:
        Moment.looked += 1
        return super().__le__(other)


def test_those_that_came_later_or_are_of_another_class_are_not_looked_at() -> None:
    known = OpenRequests()
    for number in range(50):
        known.add(submission(f"job/{number}", request_class=RequestClass.OFFLINE), Moment(0.0))
    for number in range(50):
        known.add(submission(f"r{number}"), Moment(number))
    Moment.looked = 0
    overdue = [s.generation.request_id for s in known.since_before(2.0, RequestClass.ONLINE)]
    assert overdue == ["r0", "r1", "r2"]
    assert Moment.looked <= len(overdue) + 1


async def test_load_is_told_to_those_who_follow_it_when_it_changes() -> None:
    clients = Clients(timeout_s=0.4)
    assert not clients.follow_load
    assert await clients.take("job", 0, follows_load=False) == (0, [])
    first = asyncio.create_task(clients.take("gateway", 0, follows_load=True))
    await asyncio.sleep(0)
    for _ in range(3):
        clients.tell_load(ClusterLoad(waiting=1))
    assert await first == (1, [ClusterLoad(waiting=1)])
    clients.tell_load(ClusterLoad(waiting=2))
    assert await clients.take("gateway", 1, follows_load=True) == (2, [ClusterLoad(waiting=2)])
    assert await clients.take("job", 0, follows_load=False) == (0, [])


async def test_a_silent_client_is_forgotten_and_told_so_when_it_comes_back() -> None:
    clients = Clients(timeout_s=60.0)
    clients.tell("a", [Refused("r", "no")])
    assert clients.take_out_lost() == []
    clients.meet("a").last_read_s -= 61.0
    assert clients.take_out_lost() == ["a"]
    assert len(clients) == 0
    clients.gave_up("a", {"r": 4})
    assert await clients.take("a", 0, follows_load=False) == (1, [Dropped({"r": 4})])
