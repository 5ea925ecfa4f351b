"""The live page's routes over a cluster that answers what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
from starlette.types import Receive, Scope, Send

from cluster.client import NoClusterError
from cluster.endpoint.api_keys import ApiKeys
from cluster.endpoint.dashboard import Dashboard
from cluster.endpoint.front_door import FrontDoor
from cluster.snapshot import ClusterSnapshot, Explanation
from tests.cluster.snapshots import (
    explanation,
    snapshot,
)

ALICE, ROOT = "alice-key-0123456789", "root-key-0123456789"
KEYS = ApiKeys({ALICE: "alice", ROOT: "root"})


class Cluster:
    """Answers with a snapshot, or an error, and counts how often it was asked."""

    def __init__(self, *answers: ClusterSnapshot | Exception) -> None:
        self.answers = list(answers) or [snapshot()]
        self.asked = 0
        self.explaining = False
        self.explained_to: list[str | None] = []

    async def snapshot(self) -> ClusterSnapshot:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def explain(self, request_id: str, tenant: str | None) -> Explanation | None:
        assert not self.explaining, "one after another"
        self.explaining = True
        await asyncio.sleep(0)
        self.explaining = False
        self.explained_to.append(tenant)
        if request_id == "broken":
            raise NoClusterError("no cluster")
        return explanation(request_id) if request_id.startswith("request") else None


async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"vLLM's"})


async def nothing() -> None:
    """Nothing is to be done at the end."""


def door(dashboard: Dashboard, keys: ApiKeys | None = None) -> FrontDoor:
    return FrontDoor(dashboard, keys, 10_000, 60.0, None, nothing)


async def get(
    path: str,
    *,
    cluster: Cluster | None = None,
    keys: ApiKeys | None = None,
    operators: Sequence[str] = (),
    key: str = "",
    method: str = "GET",
    **headers: str,
) -> httpx.Response:
    app = door(Dashboard(elsewhere, cluster or Cluster(), operators), keys)
    if key:
        headers["authorization"] = f"Bearer {key}"
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        return await http.request(method, path, headers=headers)
