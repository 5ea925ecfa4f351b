"""The live page and what it reads, in front of vLLM's server."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.endpoint.caller import Caller, current_exchange
from cluster.endpoint.dashboard_assets import PAGE, DashboardAssets
from cluster.endpoint.dashboard_feed import DashboardFeed, NoAnswerError, Shot, answered
from cluster.endpoint.dashboard_view import SHOWN_REPLICAS, Viewer, Views
from cluster.endpoint.routes import DASHBOARD, EVENTS, REQUESTS, SNAPSHOT
from cluster.endpoint.turnstile import Turnstile
from cluster.snapshot import ClusterSnapshot, Explanation

MOST_VIEWERS = 200
"""Streams that one gateway process keeps open."""

MOST_TIME = 0.25
"""Share of the time in which one gateway process may have the controller explain requests."""

GROUPS = ("all", "class", "tenant", "replica", "policy")
"""By what a stream can be asked to tell percentiles."""

WINDOWS = ("60", "300", "900", "0")
"""Over how many seconds."""

_PRIVATE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Insight(Protocol):
    """Where snapshots and explanations come from: the controller, through a client.

    Both raise `NoClusterError` or `ray.exceptions.RayError` when it does not answer.
    """

    async def snapshot(self) -> ClusterSnapshot:
        """The cluster now."""

    async def explain(self, request_id: str, tenant: str | None) -> Explanation | None:
        """What is known of a request of a tenant (None: of anybody's); None: nothing is."""


class Dashboard:
    """An ASGI app that answers for the page and passes all other requests on.

    Args:
        app: Who answers the others.
        insight: Whom to ask.
        operators: Tenants whose keys show everybody's requests; others see their own.
    """

    def __init__(self, app: ASGIApp, insight: Insight, operators: Sequence[str] = ()) -> None:
        self._app = app
        self._insight = insight
        self._operators = frozenset(operators)
        self._assets = DashboardAssets()
        self._feed = DashboardFeed(insight.snapshot)
        self._views = Views()
        self._explaining = Turnstile(MOST_TIME)
        self._streams = 0

    def close(self) -> None:
        """End the streams, so that the process can end."""
        self._feed.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "")
        ours = path == DASHBOARD or path.startswith((f"{DASHBOARD}/", "/tiebreak/"))
        if scope["type"] != "http" or not ours:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        allowed = ("GET",) if path == EVENTS else ("GET", "HEAD")
        if request.method not in allowed:
            answer = _error(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{path} is only read: use GET", {"allow": "GET"}
            )
        else:
            answer = await self._answer(request, path)
        await answer(scope, receive, send)

    async def _answer(self, request: Request, path: str) -> Response:
        viewer = self._viewer(current_exchange().caller)
        if path == SNAPSHOT:
            return await self._snapshot(viewer)
        if path == EVENTS:
            return self._events(request, viewer)
        if path.startswith(REQUESTS):
            return await self._explanation(path.removeprefix(REQUESTS), viewer)
        return self._asset(request, path)

    def _viewer(self, caller: Caller) -> Viewer:
        """Without keys everybody sees everything; a tenant that a header names proves nothing."""
        sees_all = not caller.fixed_tenant or caller.tenant in self._operators
        return Viewer(None if sees_all else caller.tenant)

    def _asset(self, request: Request, path: str) -> Response:
        if path == f"{DASHBOARD}/":
            # Relative, so that it holds behind a proxy that adds a prefix.
            return RedirectResponse("../dashboard", HTTPStatus.PERMANENT_REDIRECT)
        name = PAGE if path == DASHBOARD else path.removeprefix(f"{DASHBOARD}/")
        return self._assets.answer(name, request.headers) or _error(
            HTTPStatus.NOT_FOUND, f"there is no {path}: the page is at {DASHBOARD}"
        )

    async def _snapshot(self, viewer: Viewer) -> Response:
        shot = await self._feed.latest()
        if shot.snapshot is None:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, shot.error)
        body = self._views.encoded(shot, viewer)
        return Response(body, headers=_PRIVATE, media_type="application/json")

    def _events(self, request: Request, viewer: Viewer) -> Response:
        if self._streams >= MOST_VIEWERS:
            return _error(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._streams} pages are open here, at most {MOST_VIEWERS} may be: close some",
                {"retry-after": "30"},
            )
        return StreamingResponse(
            self._stream(_asked(request, viewer)),
            headers={**_PRIVATE, "x-accel-buffering": "no"},
            media_type="text/event-stream",
        )

    async def _stream(self, viewer: Viewer) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            async for shot in self._feed.follow():
                yield self._event(shot, viewer)
        finally:
            self._streams -= 1

    def _event(self, shot: Shot, viewer: Viewer) -> bytes:
        if shot.snapshot is None:
            return b"event: trouble\ndata: " + msgspec.json.encode(shot.error) + b"\n\n"
        body = self._views.encoded(shot, viewer)
        return b"event: snapshot\ndata: " + body + b"\n\n"

    async def _explanation(self, request_id: str, viewer: Viewer) -> Response:
        asking = self._explaining.through(lambda: self._insight.explain(request_id, viewer.tenant))
        try:
            explanation = await answered(asking)
        except NoAnswerError as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        # Another tenant's request is not there at all: whether an id exists is theirs to know.
        if explanation is None or not viewer.may_see(explanation.tenant):
            return _error(
                HTTPStatus.NOT_FOUND,
                f"nothing is known of request {request_id[:200]!r}: check the id; requests that "
                "ended long ago are forgotten (`tiebreak report` reads what was written down)",
            )
        body = msgspec.json.encode(explanation)
        return Response(body, headers=_PRIVATE, media_type="application/json")


def _asked(request: Request, viewer: Viewer) -> Viewer:
    """The viewer with what the query says; nonsense in it says nothing."""
    query = request.query_params
    window = query.get("window", "")
    return dataclasses.replace(
        viewer,
        most_replicas=None if query.get("replicas") == "all" else SHOWN_REPLICAS,
        by=query.get("by", "") if query.get("by") in GROUPS else "",
        window_s=int(window) if window in WINDOWS else None,
    )


def _error(status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": status.phrase, "param": None, "code": int(status)}
    return JSONResponse({"error": error}, status, headers={**_PRIVATE, **(headers or {})})
