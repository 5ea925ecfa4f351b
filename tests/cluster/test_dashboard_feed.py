"""How seldom the controller is asked for the live page, and the streams that tell it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from cluster.client import NoClusterError
from cluster.endpoint import dashboard_view
from cluster.endpoint.dashboard import MOST_VIEWERS, Dashboard
from cluster.endpoint.dashboard_feed import DashboardFeed, Shot
from cluster.endpoint.dashboard_view import SHOWN_REPLICAS, Viewer, Views
from cluster.endpoint.routes import EVENTS
from cluster.snapshot import ClusterSnapshot
from tests.cluster.dashboards import Cluster, elsewhere
from tests.cluster.snapshots import (
    many,
    snapshot,
)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def test_however_many_viewers_it_is_asked_once_a_period() -> None:
    cluster, clock = Cluster(), Clock()
    feed = DashboardFeed(cluster.snapshot, clock)
    assert cluster.asked == 0
    shots = await asyncio.gather(*(feed.latest() for _ in range(50)))
    assert cluster.asked == 1
    assert {shot.number for shot in shots} == {0}
    clock.now_s += 0.9
    await feed.latest()
    assert cluster.asked == 1
    clock.now_s += 0.3
    assert (await feed.latest()).number == 1
    assert cluster.asked == 2


async def test_a_viewer_that_leaves_does_not_take_the_answer_from_the_others() -> None:
    release = asyncio.Event()

    async def slow() -> ClusterSnapshot:
        await release.wait()
        return snapshot()

    feed = DashboardFeed(slow)
    leaving, staying = (asyncio.create_task(feed.latest()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    release.set()
    assert (await staying).snapshot is not None


async def test_streams_end_when_the_process_does_and_trouble_is_told() -> None:
    cluster = Cluster(snapshot(), NoClusterError("gone"), snapshot(unix_s=1.0))
    feed = DashboardFeed(cluster.snapshot, period_s=0.01)
    seen = []
    async for shot in feed.follow():
        seen.append(shot.error)
        if len(seen) == 3:
            feed.close()
    assert seen == ["", "gone", ""]


async def test_the_same_picture_is_not_told_twice() -> None:
    cluster = Cluster(snapshot(), snapshot(), snapshot(unix_s=1.0), snapshot(unix_s=2.0))
    feed = DashboardFeed(cluster.snapshot, period_s=0.01)
    seen = []
    async for shot in feed.follow():
        assert shot.snapshot is not None
        seen.append(shot.snapshot.unix_s)
        if seen[-1] == 2.0:
            feed.close()
    assert seen == [snapshot().unix_s, 1.0, 2.0]


async def test_events_are_what_a_browser_reads() -> None:
    cluster = Cluster(many(200), NoClusterError("gone"))
    dashboard = Dashboard(elsewhere, cluster)
    stream = read_events(dashboard, "by=tenant&window=300")
    name, told = await anext(stream)
    assert name == "snapshot"
    assert len(told["replicas"]) == SHOWN_REPLICAS
    assert told["replica_count"] == 200
    assert {(v["by"], v["window_s"]) for v in told["latencies"]} == {("all", 300), ("tenant", 300)}
    assert await anext(stream) == ("trouble", "gone")
    await stream.aclose()
    name, told = await anext(read_events(Dashboard(elsewhere, Cluster(many(200))), "replicas=all"))
    assert len(told["replicas"]) == 200


async def test_a_new_picture_is_encoded_anew_for_every_kind_of_viewer() -> None:
    pictures = [snapshot(unix_s=float(n), rank_correlation=n / 10) for n in range(3)]
    views = Views()
    for number, picture in enumerate(pictures):
        for viewer in (Viewer(), Viewer("alice"), Viewer(by="class")):
            told = json.loads(views.encoded(Shot(number, 0.0, picture), viewer))
            assert (told["unix_s"], told["tenant"]) == (float(number), viewer.tenant)


def test_a_picture_is_ordered_and_put_into_words_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(name: str) -> Callable[[Any], Any]:
        real = getattr(dashboard_view, name)

        def note(argument: Any) -> Any:
            made.append(name)
            return real(argument)

        return note

    for name in ("by_pressure", "summarise"):
        monkeypatch.setattr(dashboard_view, name, noted(name))
    views = Views()
    for number in range(2):
        for viewer in (Viewer(), Viewer("alice"), Viewer("bob"), Viewer(by="class")):
            views.encoded(Shot(number, 0.0, snapshot()), viewer)
    assert made == ["by_pressure", "summarise"] * 2


async def test_no_more_streams_than_the_process_can_bear() -> None:
    dashboard = Dashboard(elsewhere, Cluster())
    open_streams = [read_events(dashboard, "") for _ in range(MOST_VIEWERS)]
    for stream in open_streams:
        await anext(stream)
    transport = httpx.ASGITransport(app=dashboard)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        refused = await http.get(EVENTS)
    assert refused.status_code == 503
    await open_streams[0].aclose()
    assert (await anext(read_events(dashboard, "")))[0] == "snapshot"
    dashboard.close()


async def read_events(dashboard: Dashboard, query: str) -> AsyncIterator[tuple[str, Any]]:
    """The events of a stream; httpx's own transport would wait for its end."""
    sent: asyncio.Queue[Any] = asyncio.Queue()
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": EVENTS,
        "query_string": query.encode(),
        "headers": [],
    }
    task = asyncio.create_task(dashboard(scope, receive, sent.put))
    try:
        start = await sent.get()
        assert dict(start["headers"])[b"content-type"].startswith(b"text/event-stream")
        while True:
            event, data, *_ = (await sent.get())["body"].decode().split("\n")
            yield event.removeprefix("event: "), json.loads(data.removeprefix("data: "))
    finally:
        gone.set()
        await task
