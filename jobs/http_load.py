"""Requests to an OpenAI endpoint over HTTP, each seen as its sender sees it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

OK = 200


@dataclass(slots=True)
class HttpAnswer:
    """What came back for one request; times on this machine's monotonic clock.

    Attributes:
        due_s: When it was meant to be sent: latencies count from here.
        status: HTTP status; 0: the connection failed.
        headers: Of the answer.
        arrivals_s: When pieces of the text came.
        ended_s: When the answer was complete, or failed.
        text: All of it.
        output_tokens: As the server counted them.
        finish_reason: Of the answer; empty: it was cut off.
        error: Why it failed; empty: it did not.
    """

    due_s: float
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    arrivals_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    text: str = ""
    output_tokens: int = 0
    finish_reason: str = ""
    error: str = ""

    @property
    def answered(self) -> bool:
        """Whether the whole answer came."""
        return self.status == OK and bool(self.finish_reason) and not self.error

    @property
    def ttft_s(self) -> float:
        """Seconds to the first piece of text."""
        return self.arrivals_s[0] - self.due_s

    @property
    def latency_s(self) -> float:
        """Seconds to the end."""
        return self.ended_s - self.due_s


class HttpLoad:
    """A sender of completions requests, with as many connections as it needs.

    Args:
        url: Of the server, without `/v1`.
        headers: Of every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url.rstrip("/") + "/v1/completions"
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> HttpLoad:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def send(
        self,
        body: Mapping[str, Any],
        *,
        due_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        answer: HttpAnswer | None = None,
    ) -> HttpAnswer:
        """Send a request, as a stream, and read its answer to the end.

        Args:
            body: Of `/v1/completions`.
            due_s: When it was meant to be sent; None: now.
            headers: Of this request.
            answer: Is filled as the answer comes; None: a new one.

        Returns:
            The answer; whatever went wrong is in it.
        """
        answer = answer or HttpAnswer(0.0)
        answer.due_s = time.monotonic() if due_s is None else due_s
        whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self._session.post(self._url, json=whole, headers=headers) as response:
                answer.status, answer.headers = response.status, dict(response.headers)
                if response.status != OK:
                    answer.error = await response.text()
                else:
                    async for event in _events(response):
                        _note(answer, event)
        except (aiohttp.ClientError, OSError) as error:
            answer.error = answer.error or repr(error)
        if not (answer.error or answer.finish_reason):
            answer.error = "the answer was cut off"
        answer.ended_s = time.monotonic()
        return answer

    async def closed_loop(
        self, bodies: Sequence[Mapping[str, Any]], concurrency: int
    ) -> list[HttpAnswer]:
        """All bodies in their order, so many at a time."""
        left = iter(bodies)

        async def sender() -> list[HttpAnswer]:
            return [await self.send(body) for body in left]

        answers = await asyncio.gather(*(sender() for _ in range(concurrency)))
        return [answer for each in answers for answer in each]

    async def open_loop(
        self,
        bodies: Sequence[Mapping[str, Any]],
        due_s: Sequence[float],
        headers: Mapping[str, str] | None = None,
    ) -> list[HttpAnswer]:
        """Each body when it is due, in seconds from now, whatever has become of the others."""
        start_s = time.monotonic()

        async def one(body: Mapping[str, Any], due_s: float) -> HttpAnswer:
            await asyncio.sleep(start_s + due_s - time.monotonic())
            return await self.send(body, due_s=start_s + due_s, headers=headers)

        pairs = zip(bodies, due_s, strict=True)
        return list(await asyncio.gather(*(one(body, due) for body, due in pairs)))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def _note(answer: HttpAnswer, event: dict[str, Any]) -> None:
    if error := event.get("error"):
        answer.error = str(error.get("message", error) if isinstance(error, dict) else error)
    for choice in event.get("choices", ()):
        if choice["text"]:
            answer.arrivals_s.append(time.monotonic())
            answer.text += choice["text"]
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
    if usage := event.get("usage"):
        answer.output_tokens = usage["completion_tokens"]


def percentiles(values: Sequence[float], *ranks: float) -> list[float]:
    """These percentiles; nan where there are no values."""
    if not values:
        return [float("nan")] * len(ranks)
    found: list[float] = np.percentile(values, ranks).tolist()
    return found
