"""What passes the entrance and how answers leave it, around a small app of the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from cluster.endpoint.api_keys import ApiKeys
from cluster.endpoint.caller import Caller, Failure, current_exchange
from cluster.endpoint.front_door import FrontDoor
from policies.request import RequestClass
from predictor.excerpt import HEAD_CHARS

KEY = "0123456789abcdef"

EVENT = b"text/event-stream; charset=utf-8"

ERROR = b'data: {"error": {"message": "full", "type": "t", "param": null, "code": 429}}\n\n'


class App:
    """Notes who asks and answers with what it is told to."""

    def __init__(
        self,
        status: int = 200,
        kind: bytes = b"text/plain",
        parts: Sequence[bytes] = (),
        end: Exception | None = None,
    ) -> None:
        self.caller = Caller()
        self.body = b""
        self.retry_after_s: int | None = None
        self.failure: Failure | None = None
        self._end = end
        self._start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", kind), (b"allow", b"POST")],
        }
        self._parts = list(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = current_exchange()
        self.caller = exchange.caller
        exchange.retry_after_s = self.retry_after_s
        exchange.failure = self.failure
        self.body = (await receive()).get("body", b"")
        await send(self._start)
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if self._end is not None:
            raise self._end
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def nothing() -> None:
    """Nothing is to be done at the end."""


async def ask(
    app: App, keys: ApiKeys | None = None, body_timeout_s: float = 60.0, **request: Any
) -> httpx.Response:
    entrance = FrontDoor(app, keys, 10_000, body_timeout_s, None, nothing)
    transport = httpx.ASGITransport(app=entrance)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        return await http.post("/v1/chat/completions", **request)


async def test_the_predictor_reads_the_messages_without_their_template() -> None:
    app = App()
    content = [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {}}]
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": content}, "junk"]
    await ask(app, json={"messages": messages})
    assert app.caller.text == "a\nb"
    assert json.loads(app.body)["messages"] == messages
    parts = ["c", None, 7, {"type": "text", "text": "d"}, {"text": ["e"]}]
    told = await ask(app, json={"messages": [{"role": "user", "content": parts}]})
    assert (told.status_code, app.caller.text) == (200, "c\nd")
    await ask(app, json={"input": "c" * 9000})
    assert app.caller.text.startswith("c" * HEAD_CHARS + "\n[")
    await ask(app, json={"prompt": "d"})
    assert app.caller.text == ""


async def test_headers_and_body_say_the_class_and_the_tenant() -> None:
    app = App()
    await ask(app, json={"request_class": "offline", "tenant": "t"})
    assert app.caller == Caller("t", RequestClass.OFFLINE)
    await ask(app, json={}, headers={"x-request-class": "offline", "x-request-timeout": "3"})
    assert app.caller == Caller(request_class=RequestClass.OFFLINE, timeout_s=3.0)
    refused = await ask(app, json={"tenant": "x\ny"})
    assert refused.status_code == 400


async def test_a_key_says_the_tenant() -> None:
    app = App()
    keys = ApiKeys({KEY: "alice"})
    told = await ask(app, keys, json={}, headers={"authorization": f"Bearer {KEY}"})
    assert told.status_code == 200
    assert app.caller.tenant == "alice"
    assert (await ask(app, keys, json={})).status_code == 401


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 9000, b'"text"', b"null"])
async def test_a_body_that_is_no_object_is_left_to_vllm(body: bytes) -> None:
    app = App()
    assert (await ask(app, content=body)).status_code == 200
    assert app.body == body
    assert app.caller == Caller()


async def test_a_body_is_bounded_whatever_it_says_of_its_size() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    app = App()
    assert (await ask(app, content=b"x" * 10_000)).status_code == 200
    assert (await ask(app, content=b"x" * 10_001)).status_code == 413
    refused = await ask(app, content=parts())
    assert refused.status_code == 413
    assert refused.headers["connection"] == "close"


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await asyncio.sleep(60)

    app = App()
    told = await ask(app, body_timeout_s=0.01, content=stalls())
    assert (told.status_code, told.headers["connection"]) == (408, "close")
    error = told.json()["error"]
    assert (error["type"], error["code"]) == ("Request Timeout", 408)
    assert "0.01 s that it may take (gateway.body_timeout_s)" in error["message"]
    assert not app.body, "vLLM's server never saw it"


async def test_a_stream_that_fails_before_it_begins_has_the_errors_status() -> None:
    app = App(200, EVENT, [ERROR, b"data: [DONE]\n\n"])
    app.retry_after_s = 7
    told = await ask(app, json={})
    assert told.status_code == 429
    assert told.headers["retry-after"] == "7"
    assert told.headers["content-type"] == "application/json"
    assert told.json()["error"]["message"] == "full"


async def test_a_stream_of_messages_that_fails_before_it_begins_has_the_errors_status() -> None:
    said = b'event: error\ndata: {"type": "error", "error": {"message": "not a chunk"}}\n\n'
    app = App(200, EVENT, [said])
    app.failure = Failure(HTTPStatus.GATEWAY_TIMEOUT, "its time ran out")
    told = await ask(app, json={})
    assert told.status_code == 504
    assert told.json()["error"] == {"type": "Gateway Timeout", "message": "its time ran out"}
    app.failure = None
    assert (await ask(app, json={})).content == said


async def test_a_stream_of_messages_that_fails_later_tells_what_failed() -> None:
    first = b'event: message_start\ndata: {"type": "message_start"}\n\n'
    about = b'{"type": "internal_error", "message": "2 validation errors for Chunk"}'
    said = b'event: error\ndata: {"type": "error", "error": ' + about + b"}\n\n"
    app = App(200, EVENT, [first, said])
    app.failure = Failure(HTTPStatus.GATEWAY_TIMEOUT, "its time ran out")
    begun, _, told = (await ask(app, json={})).content.partition(b"event: error\ndata: ")
    assert begun == first
    assert json.loads(told) == {
        "type": "error",
        "error": {"type": "Gateway Timeout", "message": "its time ran out"},
    }
    app.failure = None
    assert (await ask(app, json={})).content == first + said


@pytest.mark.parametrize(
    "event",
    [
        ERROR,
        b'event: error\ndata: {"type": "error", "code": "x", "message": "OpenAI\'s"}\n\n',
        b'event: error\ndata: {"type": "error"',
    ],
)
async def test_an_error_of_another_form_passes_as_it_is(event: bytes) -> None:
    app = App(200, EVENT, [b"data: {}\n\n", event])
    app.failure = Failure(HTTPStatus.GATEWAY_TIMEOUT, "its time ran out")
    assert (await ask(app, json={})).content == b"data: {}\n\n" + event


async def test_a_stream_that_its_server_gives_up_ends_with_the_error() -> None:
    app = App(200, EVENT, [b"data: {}\n\n"], end=RuntimeError("response already started"))
    app.failure = Failure(HTTPStatus.GATEWAY_TIMEOUT, "its time ran out")
    told = (await ask(app, json={})).text.removeprefix("data: {}\n\nevent: error\ndata: ")
    assert json.loads(told)["error"] == {
        "message": "its time ran out",
        "type": "Gateway Timeout",
        "param": None,
        "code": 504,
    }
    app.failure = None
    with pytest.raises(RuntimeError):
        await ask(app, json={})
    whole = App(200, b"application/json", [b"{"], end=RuntimeError("no stream"))
    whole.failure = Failure(HTTPStatus.GATEWAY_TIMEOUT, "its time ran out")
    with pytest.raises(RuntimeError):
        await ask(whole, json={})


@pytest.mark.parametrize("first", [b"data: {}\n\n", b": keep-alive\n\n", b'data: {"error\n\n'])
async def test_a_stream_that_has_begun_goes_on(first: bytes) -> None:
    app = App(200, EVENT, [b"", first, ERROR])
    app.retry_after_s = 7
    told = await ask(app, json={})
    assert told.status_code == 200
    assert told.content == first + ERROR
    assert "retry-after" not in told.headers


async def test_errors_of_the_framework_get_the_form_that_clients_read() -> None:
    told = await ask(App(405, b"application/json", [b'{"detail":"Method Not Allowed"}']), json={})
    assert told.status_code == 405
    assert told.json()["error"]["message"] == "Method Not Allowed"
    assert told.headers["allow"] == "POST"
    vllms = await ask(App(400, b"application/json", [b'{"error":{"code":400}}']), json={})
    assert vllms.json() == {"error": {"code": 400}}


async def test_what_is_no_http_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await FrontDoor(App(), None, 10, 60.0, None, nothing)({"type": "websocket"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
