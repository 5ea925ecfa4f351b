"""The HTTP load against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from jobs.http_load import HttpAnswer, HttpLoad

PIECES = [" a", " b", " c"]


def event(text: str, finish_reason: str | None = None, **further: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice], **further}).encode() + b"\n\n"


async def answer(request: web.Request) -> web.StreamResponse:
    """What the body's field `behaviour` asks for."""
    body = await request.json()
    if body["behaviour"] == "full":
        return web.json_response({"error": "full"}, status=429, headers={"Retry-After": "7"})
    response = web.StreamResponse()
    await response.prepare(request)
    for piece in PIECES:
        await response.write(event(piece))
        await asyncio.sleep(0.01)
    if body["behaviour"] == "cut":
        assert request.transport is not None
        request.transport.close()
    elif body["behaviour"] == "error":
        await response.write(b'data: {"error": {"message": "no engine", "code": 500}}\n\n')
    else:
        await response.write(event("", "stop"))
        await response.write(b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n')
        await response.write(b"data: [DONE]\n\n")
    return response


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def sent(behaviour: str) -> HttpAnswer:
    async with server() as url, HttpLoad(url) as load:
        return await load.send({"behaviour": behaviour})


async def test_a_whole_answer() -> None:
    got = await sent("whole")
    assert got.answered
    assert (got.text, got.output_tokens, got.finish_reason) == ("".join(PIECES), 5, "stop")
    assert len(got.arrivals_s) == len(PIECES)
    assert 0 < got.ttft_s < got.latency_s


async def test_whatever_goes_wrong_is_in_the_answer() -> None:
    refused, cut, failed = [await sent(what) for what in ("full", "cut", "error")]
    assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
    assert (failed.status, failed.error) == (200, "no engine")
    assert cut.text == "".join(PIECES)
    assert cut.error
    assert not any(got.answered for got in (refused, cut, failed))
    async with HttpLoad("http://127.0.0.1:9") as load:
        nobody = await load.send({})
    assert nobody.status == 0
    assert nobody.error


async def test_a_closed_loop_sends_each_body_once() -> None:
    bodies = [{"behaviour": "whole"}] * 7
    async with server() as url, HttpLoad(url) as load:
        answers = await load.closed_loop(bodies, 3)
    assert len(answers) == len(bodies)
    assert all(got.answered for got in answers)


async def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    due_s = [0.0, 0.05, 0.1]
    async with server() as url, HttpLoad(url) as load:
        answers = await load.open_loop([{"behaviour": "whole"}] * 3, due_s)
    assert [round(got.due_s - answers[0].due_s, 6) for got in answers] == due_s
