"""What every HTTP request passes before vLLM's server sees it: size, key, class, tenant, time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.endpoint.answer_filter import AnswerFilter, error_messages
from cluster.endpoint.api_keys import ApiKeys
from cluster.endpoint.caller import (
    EXCHANGE,
    BadCallerError,
    Caller,
    Exchange,
    ForeignTenantError,
    caller_of_headers,
)
from cluster.endpoint.routes import is_open
from predictor.excerpt import chat_excerpt, excerpt

Headers = Mapping[str, str]


class RejectedError(Exception):
    """A request that is answered before vLLM sees it.

    Attributes:
        status: With this status.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class FrontDoor:
    """An ASGI app around vLLM's.

    Args:
        app: VLLM's server.
        keys: Who may come in; None: everybody.
        max_body_bytes: Largest body.
        body_timeout_s: Longest time in which a body comes in.
        longest_s: Longest time of any request, in seconds; None: no limit.
        on_shutdown: What to do before the process ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys | None,
        max_body_bytes: int,
        body_timeout_s: float,
        longest_s: float | None,
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._longest_s = longest_s
        self._on_shutdown = on_shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the life of the process."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            exchange, receive = await self._enter(scope, receive)
        except ClientGoneError:
            return
        except RejectedError as error:
            for message in error_messages(error.status, str(error)):
                await send(message)
            return
        token = EXCHANGE.set(exchange)
        answer = AnswerFilter(send, exchange)
        try:
            await self._app(scope, receive, answer)
        except Exception:
            # An engine's error ends a stream of vLLM's Responses in the middle.
            if not await answer.break_off():
                raise
        finally:
            EXCHANGE.reset(token)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._on_shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def _enter(self, scope: Scope, receive: Receive) -> tuple[Exchange, Receive]:
        """Who asks, and a `receive` that gives the body, which is read here.

        Raises:
            RejectedError: The request is not let in.
            ClientGoneError: Nobody waits for an answer.
        """
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        tenant = self._tenant(scope, headers)
        try:
            caller = caller_of_headers(headers, tenant=tenant, longest_s=self._longest_s)
            if scope["method"] != "POST":
                return Exchange(caller), receive
            body = await self._body_in_time(headers, receive)
            return Exchange(_with_body(caller, body)), _replaying(body, receive)
        except ForeignTenantError as error:
            raise RejectedError(HTTPStatus.FORBIDDEN, str(error)) from None
        except BadCallerError as error:
            raise RejectedError(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _tenant(self, scope: Scope, headers: Headers) -> str | None:
        open_to_all = scope["method"] == "OPTIONS" or is_open(scope["path"])
        if self._keys is None or open_to_all:
            return None
        tenant = self._keys.tenant(headers.get("authorization"), headers.get("x-api-key"))
        if tenant is None:
            raise RejectedError(
                HTTPStatus.UNAUTHORIZED,
                "no valid API key: send the header `Authorization: Bearer KEY`",
            )
        return tenant

    async def _body_in_time(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. What has come of it takes memory while the rest is waited for."""
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await self._body(headers, receive)
        except TimeoutError:
            raise RejectedError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come in within the {self._body_timeout_s:g} s that it may take "
                "(gateway.body_timeout_s): send it faster, or less of it",
            ) from None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, read no further than to its limit."""
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> RejectedError:
        return RejectedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has more than the {self._max_body_bytes:,} bytes that are let in "
            "(gateway.max_body_bytes)",
        )


class _Body(msgspec.Struct):
    """The fields of a body that matter before vLLM reads it, whatever they hold."""

    request_class: Any = None
    tenant: Any = None
    messages: Any = None
    input: Any = None


_decode_body = msgspec.json.Decoder(_Body).decode


def _with_body(caller: Caller, body: bytes) -> Caller:
    """The caller with what the body says of it. A body that is no JSON is for vLLM to refuse."""
    try:
        said = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return caller
    caller = caller.says(_text("tenant", said.tenant), _text("request_class", said.request_class))
    return dataclasses.replace(caller, text=_chat_text(said))


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadCallerError(f"{name} is {json.dumps(value)[:64]}, must be a text")
    return value


def _chat_text(said: _Body) -> str:
    """What the predictor may read of a conversation, without the model's template around it."""
    for conversation in (said.messages, said.input):
        if isinstance(conversation, str):
            return excerpt(conversation)
        if isinstance(conversation, list):
            return chat_excerpt([m for m in conversation if isinstance(m, dict)])
    return ""


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then what else comes: that the client has left."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
