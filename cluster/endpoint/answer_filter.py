"""The way back out: every error in OpenAI's form, with its status, and Retry-After."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Send

from cluster.endpoint.caller import Exchange, Failure

_ERROR_EVENTS = (b'data: {"error"', b"event: error")
"""How vLLM's server tells an error inside a stream."""

_BODY_UNREAD = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT)
"""Answers before the request's end, after which nothing more can come over the connection."""

_OF_THE_BODY = frozenset({b"content-length", b"content-type"})


class AnswerFilter:
    """An ASGI `send` that stands before the connection's own.

    VLLM's server begins a stream with status 200 before it knows whether there will be one. The
    beginning is kept back here until the first event: when that is an error, the client gets the
    error's status and body, as if it had not asked for a stream, and its own retries work. The
    errors of the web framework (no such path, a body in no known encoding) get the same form. An
    error later in a stream stays an event, which tells what failed.

    Args:
        send: The connection's.
        exchange: The request's.
    """

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self._exchange = exchange
        self._held: Message | None = None
        self._replaced = False
        self._streams = False

    async def __call__(self, message: Message) -> None:
        """Pass a message of vLLM's server on."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self._held = message
            return
        start, self._held = self._held, None
        if start is None:
            told = self._corrected(message) if self._streams else message
            self._streams = self._streams and message.get("more_body", False)
            await self._send(told)
            return
        body = message.get("body", b"")
        if not body and message.get("more_body", False):
            self._held = start
            return
        error = _error_in(start, body, self._exchange.failure)
        self._replaced = error is not None
        self._streams = error is None and message.get("more_body", False) and _is_stream(start)
        for passed in error if error is not None else (start, message):
            await self._send(self._with_retry_after(passed))

    async def break_off(self) -> bool:
        """End a stream whose server has given it up, with the request's error as its last event.

        Returns:
            False when there is no such stream, or no error of the request's.
        """
        failure = self._exchange.failure
        if failure is None or not self._streams:
            return False
        self._streams = False
        told = json.dumps(_error(failure.status, failure.text))
        body = f"event: error\ndata: {told}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        return True

    def _corrected(self, message: Message) -> Message:
        """An event of a stream; one of an error in Anthropic's form tells the request's error."""
        body, failure = message.get("body", b""), self._exchange.failure
        if failure is None or not (body.startswith(_ERROR_EVENTS) and _is_anthropics(body)):
            return message
        told = json.dumps(_anthropic_error(failure))
        return {**message, "body": f"event: error\ndata: {told}\n\n".encode()}

    def _with_retry_after(self, message: Message) -> Message:
        seconds = self._exchange.retry_after_s
        if seconds is None or message.get("status", 0) < HTTPStatus.BAD_REQUEST:
            return message
        headers = [*message["headers"], (b"retry-after", str(seconds).encode())]
        return {**message, "headers": headers}


def error_messages(
    status: HTTPStatus, text: str, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Iterator[Message]:
    """An answer with an error in the form of OpenAI's and vLLM's.

    Args:
        status: Its status.
        text: What went wrong.
        headers: Further ones.
    """
    return _json_messages(status, _error(status, text), headers)


def _error(status: HTTPStatus, text: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": status.phrase, "param": None, "code": int(status)}}


def _anthropic_error(failure: Failure) -> dict[str, Any]:
    said = {"type": failure.status.phrase, "message": failure.text}
    return {"type": "error", "error": said}


def _is_anthropics(event: bytes) -> bool:
    """Whether an error has Anthropic's form, in which vLLM tells what its converter ran into."""
    told = _data_of(event)
    error = told.get("error")
    return told.get("type") == "error" and isinstance(error, dict) and "code" not in error


def _data_of(event: bytes) -> dict[str, Any]:
    lines = (line[6:] for line in event.split(b"\n") if line.startswith(b"data: "))
    return _decoded(next(lines, b""))


def _json_messages(
    status: int, content: Any, further: Sequence[tuple[bytes, bytes]] = ()
) -> Iterator[Message]:
    body = json.dumps(content).encode()
    headers = [
        *further,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in _BODY_UNREAD:
        headers.append((b"connection", b"close"))
    yield {"type": "http.response.start", "status": int(status), "headers": headers}
    yield {"type": "http.response.body", "body": body, "more_body": False}


def _is_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and bytes(value).startswith(b"text/event-stream")
        for name, value in start["headers"]
    )


def _error_in(start: Message, body: bytes, failure: Failure | None) -> Iterator[Message] | None:
    """The error that an answer is, where it does not have an error's form yet."""
    status: int = start["status"]
    if status == HTTPStatus.OK and body.startswith(_ERROR_EVENTS):
        told = _data_of(body)
        error = told.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int) and 400 <= code < 600:
            return _json_messages(code, told)
        if failure is not None:
            return _json_messages(failure.status, _anthropic_error(failure))
    elif status >= HTTPStatus.BAD_REQUEST and body.startswith(b'{"detail"'):
        detail = _decoded(body).get("detail")
        if isinstance(detail, str):
            kept = [(k, v) for k, v in start["headers"] if k.lower() not in _OF_THE_BODY]
            return error_messages(HTTPStatus(status), detail, kept)
    return None


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(text)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}
