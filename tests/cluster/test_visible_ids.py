"""Requests are found by what their HTTP clients know of them, each tenant's by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.open_requests import OpenRequests
from cluster.statistics.row_ring import RowRing
from cluster.visible_ids import VisibleIds
from tests.cluster.controlled import Controlled

NAMES, TENANTS = ("chatcmpl-a", "cmpl-b-0", "cmpl-b-1"), ("alice", "bob")


@pytest.mark.parametrize(
    ("request_id", "told"),
    [
        ("chatcmpl-abc-0123456789ab-0", "chatcmpl-abc"),
        ("chatcmpl-my-own-7-0123456789ab-1", "chatcmpl-my-own-7"),
        ("cmpl-abc-3-0123456789ab-0", "cmpl-abc"),
        ("resp_abc_0-0123456789ab-0", "resp_abc"),
        ("cmpl-abc-00ff00ff00ff00ff-beam-2-0123456789ab-0", "cmpl-abc"),
    ],
)
def test_an_answers_id_finds_its_request(request_id: str, told: str) -> None:
    ids = VisibleIds()
    ids.add(request_id, "alice")
    assert ids.first(told, "alice") == ids.latest(told, None) == request_id
    assert ids.first(told, "bob") is None
    assert ids.first(told[:-1], None) is None
    ids.discard(request_id, "alice")
    assert (ids.first(told, "alice"), ids.latest(told, None), len(ids)) == (None, None, 0)


def test_a_jobs_ids_take_no_room() -> None:
    ids = VisibleIds()
    for request_id in ("nightly-run-7/12", "r", "r-1", "r-x-y"):
        ids.add(request_id, "alice")
    assert not len(ids)


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.sampled_from(NAMES), st.integers(0, 2), st.sampled_from(TENANTS)
        ),
        max_size=30,
    )
)
def test_first_and_latest_are_those_of_all_that_are_known(
    steps: list[tuple[bool, str, int, str]],
) -> None:
    ids, known = VisibleIds(), dict[tuple[str, str], str]()
    for is_added, name, index, tenant in steps:
        request_id = f"{name}-{tenant}-{index}"
        known.pop((request_id, tenant), None)
        if is_added:
            known[request_id, tenant] = name
            ids.add(request_id, tenant)
        else:
            ids.discard(request_id, tenant)
    for asked in (*NAMES, "cmpl-b"):
        for whose in (None, *TENANTS):
            right = [
                request_id
                for (request_id, tenant), name in known.items()
                if whose in (None, tenant) and asked in (name, name.rpartition("-")[0])
            ]
            first, latest = (right[0], right[-1]) if right else (None, None)
            assert (ids.first(asked, whose), ids.latest(asked, whose)) == (first, latest)
    assert bool(len(ids)) == bool(known)


async def told(cluster: Controlled, name: str, tenant: str | None = None) -> tuple[str, str]:
    explanation = await cluster.control.explain(name, tenant)
    return (explanation.tenant, explanation.state) if explanation else ("", "")


async def test_two_tenants_with_one_name_are_each_told_of_their_own() -> None:
    cluster = Controlled()
    cluster.join("a", slots=1)
    await cluster.submit("chatcmpl-x-aa-0", tenant="alice")
    await cluster.submit("chatcmpl-x-bb-0", tenant="bob")
    assert await told(cluster, "chatcmpl-x", "alice") == ("alice", "waiting")
    assert await told(cluster, "chatcmpl-x", "bob") == ("bob", "waiting")
    assert await told(cluster, "chatcmpl-x") == ("alice", "waiting")
    assert await told(cluster, "chatcmpl-x", "carol") == ("", "")
    (where,) = await cluster.decide()
    await cluster.end(where, "a", 5)
    ended, other = ("alice", "bob") if "-aa-" in where else ("bob", "alice")
    assert await told(cluster, "chatcmpl-x", ended) == (ended, "finished")
    assert await told(cluster, "chatcmpl-x", other) == (other, "waiting")


async def test_a_whole_id_is_nobody_elses_to_ask_for() -> None:
    cluster = Controlled()
    cluster.join("a")
    await cluster.submit("r", tenant="alice")
    for state in ("waiting", "running", "recalled"):
        if state == "running":
            await cluster.decide()
        elif state == "recalled":
            cluster.lose("a", "process")
        assert await told(cluster, "r", "alice") == await told(cluster, "r") == ("alice", state)
        assert await told(cluster, "r", "bob") == ("", "")
    await cluster.submit("r-bb-0", tenant="bob")
    assert await told(cluster, "r", "bob") == ("bob", "waiting")


async def test_nothing_is_left_of_what_is_forgotten() -> None:
    cluster = Controlled(statistics={"kept": 3})
    cluster.join("a")
    names = [f"chatcmpl-x-aa-{n}" for n in range(6)]
    for name in names:
        await cluster.submit(name)
    await cluster.decide()
    for name in names:
        await cluster.end(name, "a", 5)
    opened: OpenRequests = cluster.state.open
    rows: RowRing = cluster.state.statistics._finished.rows
    assert (len(opened), len(opened.visible)) == (0, 0)
    assert rows.visible.first("chatcmpl-x", None) == names[3]
    assert rows.visible.latest("chatcmpl-x", "default") == names[5]
