"""The live page's routes: what they tell, and who may see what."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgspec
import pytest
import ray

from cluster.client import NoClusterError
from cluster.endpoint.dashboard import Dashboard
from cluster.endpoint.dashboard_feed import NoAnswerError, answered
from cluster.endpoint.dashboard_view import Scene, Viewer, shown
from cluster.endpoint.routes import EVENTS, SNAPSHOT
from predictor.messages import PredictorStats
from tests.cluster.dashboards import ALICE, KEYS, ROOT, Cluster, elsewhere, get
from tests.cluster.snapshots import (
    snapshot,
    waiting,
)


async def test_a_snapshot_is_the_controllers_and_what_it_means() -> None:
    told = (await get(SNAPSHOT)).json()
    taken = snapshot()
    assert told["status"]["finished"] == taken.status.finished
    assert told["energy"]["totals"]["metered_joules"] == taken.energy.totals.metered_joules
    assert {r["status"]["replica_id"] for r in told["replicas"]} == {
        r.status.replica_id for r in taken.replicas
    }
    assert len(told["latencies"]) == len(taken.latencies)
    assert told["summary"]["forecasts"]["short"] == "Good"


async def test_an_explanation_or_a_sentence_that_there_is_none() -> None:
    assert (await get("/tiebreak/requests/request-5")).json()["request_id"] == "request-5"
    assert (await get("/tiebreak/requests/request%2F5")).json()["request_id"] == "request/5"
    unknown = await get("/tiebreak/requests/no-such")
    assert unknown.status_code == 404
    assert "'no-such'" in unknown.json()["error"]["message"]
    assert (await get("/tiebreak/requests/broken")).status_code == 503


async def test_without_a_cluster_it_says_so() -> None:
    gone = Cluster(NoClusterError("no Tiebreak cluster runs here"))
    told = await get(SNAPSHOT, cluster=gone)
    assert told.status_code == 503
    assert "no Tiebreak cluster" in told.json()["error"]["message"]


async def test_a_controller_that_does_not_answer_is_not_waited_for_longer() -> None:
    with pytest.raises(NoAnswerError, match="no answer for 0 s"):
        await answered(asyncio.sleep(60, "late"), within_s=0.01)

    async def failing() -> None:
        raise ray.exceptions.RayActorError

    with pytest.raises(NoAnswerError, match="does not answer"):
        await answered(failing())


# Keys and tenants.


async def test_the_page_is_open_and_its_data_needs_a_key() -> None:
    for path in ("/dashboard", "/dashboard/app.js"):
        assert (await get(path, keys=KEYS)).status_code == 200
    for path in (SNAPSHOT, EVENTS, "/tiebreak/requests/request-1", "/dashboardx"):
        assert (await get(path, keys=KEYS)).status_code == 401
    assert (await get(SNAPSHOT, keys=KEYS, key=ALICE)).status_code == 200


async def test_a_tenant_sees_its_own_requests_and_an_operator_everybodys() -> None:
    own = (await get(SNAPSHOT, keys=KEYS, key=ALICE, operators=["root"])).json()
    assert {item["tenant"] for item in own["head"]} == {"alice"}
    assert {v["name"] for v in own["latencies"] if v["by"] == "tenant"} == {"alice"}
    assert {r["status"]["node"] for r in own["replicas"]} == {""}
    assert "its process ended" not in json.dumps(own["replicas"])
    assert "bob" not in json.dumps(own)
    everything = (await get(SNAPSHOT, keys=KEYS, key=ROOT, operators=["root"])).json()
    assert {item["tenant"] for item in everything["head"]} == {"alice", "bob"}
    foreign = await get("/tiebreak/requests/request-1", keys=KEYS, key=ROOT)
    unknown = await get("/tiebreak/requests/no-such", keys=KEYS, key=ROOT)
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json()["error"]["message"] == unknown.json()["error"]["message"].replace(
        "no-such", "request-1"
    )


async def test_the_controller_is_asked_for_a_tenants_requests_one_after_another() -> None:
    cluster = Cluster()
    await get("/tiebreak/requests/request-2", keys=KEYS, key=ALICE, cluster=cluster)
    await get(
        "/tiebreak/requests/request-2", keys=KEYS, key=ROOT, cluster=cluster, operators=["root"]
    )
    await get("/tiebreak/requests/request-2", cluster=cluster)
    assert cluster.explained_to == ["alice", None, None]
    transport = httpx.ASGITransport(app=Dashboard(elsewhere, cluster))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        told = await asyncio.gather(*(http.get("/tiebreak/requests/request-2") for _ in range(5)))
    assert {answer.status_code for answer in told} == {200}


async def test_a_tenant_whose_name_is_only_claimed_is_no_reason_to_hide_or_show() -> None:
    told = (await get(SNAPSHOT, **{"x-tenant": "alice"})).json()
    assert {item["tenant"] for item in told["head"]} == {"alice", "bob"}


def test_the_summary_of_a_tenant_names_nobody_elses_request() -> None:
    taken = snapshot(head=[waiting(1, tenant="bob"), waiting(2, tenant="alice")])
    text = shown(Scene.of(taken), Viewer("alice")).summary.queue.text
    assert "request-1" not in text
    assert "At place 2, request-2: waits for memory" in text


def test_a_tenant_is_not_told_of_files_and_errors() -> None:
    taken = snapshot()
    status = msgspec.structs.replace(
        taken.status,
        journal="/secret/journal",
        rows="/secret/rows: 3 rows",
        predictor="prior, the network /secret/network cannot be used",
        predictors=[PredictorStats(network="/secret/network", load_warning="/secret/state")],
    )
    taken = msgspec.structs.replace(taken, status=status)
    assert b"/secret" in msgspec.json.encode(shown(Scene.of(taken), Viewer()))
    assert b"/secret" not in msgspec.json.encode(shown(Scene.of(taken), Viewer("alice")))
