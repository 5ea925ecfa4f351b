"""Tenants of a class share what the scheduling core dispatches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.scheduler import ClusterScheduler
from policies.bundle import policy
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from tests.cluster.factories import dispatched, replica, request


def sharing_core(*, slots: int = 1, fair_share: bool = True) -> ClusterScheduler:
    core = ClusterScheduler(policy("fcfs"), fair_share=fair_share)
    core.replica_joined(replica(slots=slots, blocks=1000), 0.0)
    return core


def of(tenant: str, number: int, **sizes: int) -> Request:
    name = f"{tenant}-{number}"
    return replace(request(name, arrival_s=float(number), **sizes), tenant=tenant)


def submit(core: ClusterScheduler, *requests: Request, tokens: int = 20) -> None:
    for one in requests:
        core.submit(one, Forecast.exact(tokens), now=0.0)


def serve(core: ClusterScheduler, count: int, tokens: int = 20) -> list[str]:
    """Requests in the order in which one replica runs them, each alone."""
    order = []
    for _ in range(count):
        ((name, where),) = dispatched(core)
        core.finished(where, name, tokens, now=0.0)
        order.append(name)
    return order


def counters(core: ClusterScheduler) -> dict[str, float]:
    shares = core._waiting.shares
    assert shares is not None
    return shares.counters(RequestClass.ONLINE)


@pytest.mark.parametrize(
    ("fair_share", "expected"),
    [
        (True, ["flood-0", "drop-50", "flood-1", "drop-51", "flood-2"]),
        (False, ["flood-0", "flood-1", "flood-2", "flood-3", "flood-4"]),
    ],
)
def test_a_tenant_that_floods_the_queue_waits_for_itself_only(
    fair_share: bool, expected: list[str]
) -> None:
    core = sharing_core(fair_share=fair_share)
    submit(core, *(of("flood", number) for number in range(30)))
    submit(core, of("drop", 50), of("drop", 51))
    assert serve(core, 5) == expected


def test_a_dispatch_is_charged_as_predicted_and_corrected_when_it_has_finished() -> None:
    core = sharing_core()
    submit(core, of("a", 1, prompt=30), tokens=50)
    core.decide(0.0)
    assert counters(core) == {"a": 30 + 2 * 50}
    core.finished("a", "a-1", 80, now=1.0)
    assert counters(core) == {"a": 30 + 2 * 80}


@pytest.mark.parametrize("end", ["cancelled", "lost", "superseded"])
def test_who_leaves_early_has_cost_what_was_made(end: str) -> None:
    core = sharing_core()
    submit(core, of("a", 1, prompt=30), tokens=50)
    core.decide(0.0)
    core.progressed("a", {"a-1": 8}, now=1.0)
    if end == "cancelled":
        core.cancel("a-1", now=1.0)
    elif end == "lost":
        core.replica_lost("a", now=1.0)
    else:
        again = replace(of("a", 1, prompt=30), generated_tokens=8)
        core.submit(again, Forecast.exact(50), now=1.0, attempt=2)
    assert counters(core) == {"a": 30 + 2 * 8}


def test_a_request_that_goes_on_pays_for_its_prompt_once() -> None:
    core = sharing_core()
    submit(core, of("a", 1, prompt=30), tokens=50)
    core.decide(0.0)
    core.evicted("a", "a-1", 10, now=1.0)
    core.decide(1.0)
    core.finished("a", "a-1", 50, now=2.0)
    assert counters(core) == {"a": 30 + 2 * 50}


def test_online_tenants_and_offline_tenants_do_not_share() -> None:
    core = sharing_core()
    offline = replace(of("a", 9), request_class=RequestClass.OFFLINE)
    submit(core, offline, *(of("b", number) for number in range(3)))
    assert serve(core, 4) == ["b-0", "b-1", "b-2", "a-9"]
