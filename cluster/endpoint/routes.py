"""Which endpoints the gateway serves: vLLM's and its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

SERVED = {
    "/v1/models": "The model.",
    "/v1/chat/completions": "Chat: tools, structured output, logprobs, streaming.",
    "/v1/completions": "Completions of texts or token ids: echo, logprobs, streaming.",
    "/v1/responses": "OpenAI's Responses, kept by nobody: `store` has no effect.",
    "/v1/messages": "Anthropic's Messages.",
    "/v1/messages/count_tokens": "Tokens of such a message.",
    "/tokenize": "Tokens of a text or a chat.",
    "/detokenize": "The text of tokens.",
    "/health": "200 while requests are served or will be; 503 otherwise.",
    "/ping": "The same.",
    "/version": "vLLM's version.",
    "/metrics": "Prometheus metrics of the gateway process that answers.",
    "/openapi.json": "This interface.",
    "/docs": "The same, to read.",
}
"""Paths and what they are for. Everything else that vLLM's server offers is for one engine, or for
those who run it, and answers 404."""

DASHBOARD = "/dashboard"
"""The live page; its files lie below."""

SNAPSHOT = "/tiebreak/snapshot"
EVENTS = "/tiebreak/events"
REQUESTS = "/tiebreak/requests/"

INSIGHTS = {
    DASHBOARD: "The live page.",
    SNAPSHOT: "The cluster now: `cluster.snapshot.ClusterSnapshot` and its summary, as JSON.",
    EVENTS: "The same once a second, as server-sent events.",
    f"{REQUESTS}{{id}}": "What is known of a request, and why it waits (`tiebreak why`).",
}
"""Paths that Tiebreak answers itself (`cluster.endpoint.dashboard`)."""

OPEN = frozenset({"/health", "/ping", "/version", "/metrics", DASHBOARD})
"""Paths that need no API key: they tell nothing of anybody's requests."""


def is_open(path: str) -> bool:
    """Whether a path needs no API key."""
    return path in OPEN or path.startswith(f"{DASHBOARD}/")


def keep_served(app: FastAPI) -> None:
    """Take the other endpoints out of the app."""
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) in SERVED
    ]
    app.openapi_schema = None
