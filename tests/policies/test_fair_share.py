"""Fair shares of a waiting queue, against the plain definition."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bundle import policy
from policies.fair_share import KEPT_LANES, FairWaitingQueue
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from policies.waiting import Waiting, WaitingQueue, predicted_tokens

ONLINE, OFFLINE = RequestClass
FCFS = policy("fcfs")


def fair_queue() -> FairWaitingQueue:
    return FairWaitingQueue(FCFS.ordering, FCFS.admission)


def waiting(name: str, tenant: str, key: float = 0.0, offline: bool = False) -> Waiting:
    request_class = OFFLINE if offline else ONLINE
    request = Request(name, 10, 100, arrival_s=key, request_class=request_class, tenant=tenant)
    return Waiting(request, Forecast.exact(20), 1, 0.0)


def add(queue: FairWaitingQueue, *several: Waiting) -> None:
    for one in several:
        queue.add(one)
    queue.key_pending(1)


def serve(queue: FairWaitingQueue, tokens: float) -> str:
    """The next request, charged and finished as it was charged."""
    first = queue.first()
    assert first is not None
    queue.pop()
    queue.charge(first.request, tokens)
    queue.settle(first.request, 0)
    return first.request.request_id


def test_tenants_take_turns_and_inside_one_the_ordering_decides() -> None:
    queue = fair_queue()
    add(queue, *(waiting(f"greedy {i}", "greedy", key=9 - i) for i in range(4)))
    add(queue, *(waiting(f"modest {i}", "modest", key=50 + i) for i in range(2)))
    order = [serve(queue, 10) for _ in range(6)]
    assert order == ["greedy 3", "modest 0", "greedy 2", "modest 1", "greedy 1", "greedy 0"]
    assert queue.first() is None


def test_the_class_comes_before_every_share() -> None:
    queue = fair_queue()
    add(queue, waiting("offline", "poor", offline=True), waiting("online", "rich"))
    add(queue, waiting("online too", "rich"))
    assert [serve(queue, 1000) for _ in range(3)] == ["online", "online too", "offline"]


def test_a_tenant_that_was_away_saves_nothing_up() -> None:
    queue = fair_queue()
    add(queue, *(waiting(f"busy {i}", "busy") for i in range(20)))
    for _ in range(10):
        serve(queue, 10)
    add(queue, *(waiting(f"back {i}", "back") for i in range(10)))
    served = [serve(queue, 10).split()[0] for _ in range(10)]
    assert served.count("back") == 5, "it is as far behind as nobody"


def test_after_everybody_left_the_next_one_starts_where_the_last_one_was() -> None:
    queue = fair_queue()
    add(queue, waiting("a", "first"))
    queue.charge(waiting("x", "first").request, 500)
    assert serve(queue, 1) == "a"
    add(queue, waiting("b", "second"))
    assert queue.counters(ONLINE) == {"first": 501, "second": 501}


def test_what_was_charged_too_much_is_given_back() -> None:
    queue = fair_queue()
    add(queue, *(waiting(f"a{i}", "a") for i in range(2)), *(waiting(f"b{i}", "b") for i in (1, 2)))
    first = queue.first()
    assert first is not None
    queue.pop()
    queue.charge(first.request, 100)
    assert serve(queue, 50) == "b1"
    queue.settle(first.request, -80)
    assert queue.counters(ONLINE) == {"a": 20, "b": 50}
    assert serve(queue, 10) == "a1"


def test_tenants_that_went_are_forgotten() -> None:
    queue = fair_queue()
    add(queue, waiting("stays", "stays"))
    for number in range(3 * KEPT_LANES):
        add(queue, waiting(str(number), f"tenant {number}"))
        queue.remove(str(number))
    assert len(queue.counters(ONLINE)) <= KEPT_LANES + 1
    assert "stays" in queue.counters(ONLINE)


@dataclass
class Plain:
    """The definition, with loops over everything."""

    counters: dict[tuple[int, str], float] = field(default_factory=lambda: defaultdict(float))
    entries: dict[str, Waiting] = field(default_factory=dict)
    left: dict[int, tuple[int, str]] = field(default_factory=dict)

    def lane(self, one: Waiting) -> tuple[int, str]:
        return int(one.request.request_class), one.request.tenant

    def add(self, one: Waiting) -> None:
        lane = self.lane(one)
        active = {self.lane(w) for w in self.entries.values()}
        if lane not in active:
            peers = [self.counters[other] for other in active if other[0] == lane[0]]
            floor = min(peers) if peers else self.counters[self.left.get(lane[0], lane)]
            self.counters[lane] = max(self.counters[lane], floor)
        self.entries[one.request.request_id] = one

    def remove(self, name: str) -> None:
        lane = self.lane(self.entries.pop(name))
        if all(self.lane(w) != lane for w in self.entries.values()):
            self.left[lane[0]] = lane

    def may_be_first(self, one: Waiting) -> bool:
        """Whether nobody stands before it; tenants with equal counters stand in any order."""
        lane = self.lane(one)
        least = min(
            (other[0], self.counters[other]) for other in map(self.lane, self.entries.values())
        )
        peers = [w for w in self.entries.values() if self.lane(w) == lane]
        best = min((w.request.arrival_s, w.sequence) for w in peers)
        return (lane[0], self.counters[lane]) == least and best == (
            one.request.arrival_s,
            one.sequence,
        )


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_queue_does_what_the_definition_says(seed: int) -> None:
    rng = random.Random(seed)
    queue, plain = fair_queue(), Plain()
    running: list[tuple[Waiting, float]] = []
    for number in range(120):
        event = rng.random()
        if event < 0.45:
            one = waiting(str(number), rng.choice("abcd"), rng.randrange(5), rng.random() < 0.3)
            plain.add(one)
            add(queue, one)
        elif event < 0.55 and plain.entries:
            name = rng.choice(list(plain.entries))
            plain.remove(name)
            queue.remove(name)
        elif event < 0.65 and plain.entries:
            name = rng.choice(list(plain.entries))
            queue.forecast(name, Forecast.exact(rng.randint(1, 99)))
            queue.key_pending(1)
        elif event < 0.8 and running:
            one, charged = running.pop(rng.randrange(len(running)))
            more = rng.choice([0, 7, -0.5 * charged])
            queue.settle(one.request, more)
            plain.counters[plain.lane(one)] += more
        elif plain.entries:
            skipped = []
            for _ in range(rng.choice([0, 0, 1, 3])):
                if (first := queue.first()) is not None:
                    queue.pop()
                    skipped.append(first)
            queue.restore(skipped)
            first = queue.first()
            assert first is not None
            assert plain.may_be_first(first)
            queue.pop()
            plain.remove(first.request.request_id)
            charge = rng.randint(1, 50)
            queue.charge(first.request, charge)
            plain.counters[plain.lane(first)] += charge
            running.append((first, charge))
        assert len(queue) == len(plain.entries)
        for precedence in (0, 1):
            for tenant, counter in queue.counters(precedence).items():
                assert counter == plain.counters[precedence, tenant]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 40)), min_size=40, max_size=80),
)
@settings(max_examples=60, deadline=None)
def test_two_tenants_that_always_wait_are_served_alike(costs: list[tuple[str, int]]) -> None:
    """The bound of the paper: nobody is ahead by more than the largest request."""
    queue = fair_queue()
    cost = {f"{i}": tokens for i, (_, tokens) in enumerate(costs)}
    add(queue, *(waiting(str(i), tenant) for i, (tenant, _) in enumerate(costs)))
    served = {"a": 0, "b": 0}
    left = {t: sum(tenant == t for tenant, _ in costs) for t in "ab"}
    while min(left.values()) > 0:
        first = queue.first()
        assert first is not None
        tenant = first.request.tenant
        served[tenant] += cost[serve(queue, cost[first.request.request_id])]
        left[tenant] -= 1
        assert abs(served["a"] - served["b"]) <= max(cost.values())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_with_one_tenant_it_is_the_plain_queue(jobs: list[tuple[int, int]]) -> None:
    tie = policy("tie")
    fair, plain = (kind(tie.ordering, tie.admission) for kind in (FairWaitingQueue, WaitingQueue))
    for number, (arrival_s, tokens) in enumerate(jobs):
        one = waiting(str(number), "only", arrival_s, offline=tokens % 3 == 0)
        for queue in (fair, plain):
            queue.add(replace(one, forecast=Forecast.exact(tokens)))
    orders = []
    for queue in (fair, plain):
        queue.key_pending(4)
        order = []
        while (first := queue.first()) is not None:
            queue.pop()
            order.append(first.request.request_id)
        orders.append(order)
    assert orders[0] == orders[1]


@given(st.floats(-5, 2000), st.integers(1, 300), st.integers(1, 600), st.integers(0, 299))
def test_predicted_tokens_are_the_median_within_what_is_known(
    mu: float, lower: int, cap: int, generated: int
) -> None:
    generated = min(generated, cap - 1)
    forecast = Forecast(mu, 1.0, lower, 10_000)
    predicted = predicted_tokens(Request("x", 5, cap, generated_tokens=generated), forecast)
    assert 1 <= predicted <= cap - generated
    if 0 < mu < 5 and lower < math.exp(mu) < cap and generated < int(math.exp(mu)):
        assert predicted == int(math.exp(mu)) - generated
