"""The gateway's own HTTP server: many connections, and clients that vanish."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from pathlib import Path

from starlette.types import Receive, Scope, Send

from cluster.endpoint.front_door import FrontDoor
from cluster.endpoint.listener import VANISHED_OPTIONS, bind, listening

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Streams:
    """Answers every request with a stream that goes on until all have begun.

    Args:
        count: Streams there are to be.
    """

    def __init__(self, count: int) -> None:
        self._all = asyncio.Barrier(count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self._all.wait()
        await send({"type": "http.response.body", "body": b"all", "more_body": False})


async def nothing() -> None:
    """Nothing is to be done at the end."""


def free_port() -> int:
    with contextlib.closing(bind("127.0.0.1", 0, shared=False)) as bound:
        port: int = bound.getsockname()[1]
        return port


async def answer(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    told = await reader.readuntil(b"all")
    writer.close()
    return told


async def test_more_streams_than_a_process_may_have_files_by_default() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(list(Path("/proc/self/fd").iterdir())) + 30
    port = free_port()
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        async with asyncio.timeout(60), listening(Streams(100), "127.0.0.1", port):
            told = await asyncio.gather(*(answer(port) for _ in range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(b"200 OK" in one for one in told)


async def test_a_client_that_sends_half_a_body_is_told_and_left() -> None:
    port, app = free_port(), Streams(1)
    entrance = FrontDoor(app, None, 10_000, 0.05, None, nothing)
    async with asyncio.timeout(60), listening(entrance, "127.0.0.1", port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf of it")
        told = await reader.read()  # to the connection's end
        writer.close()
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"gateway.body_timeout_s" in told


def test_a_connection_to_a_machine_that_vanished_ends() -> None:
    with bind("127.0.0.1", 0, shared=True) as listener:
        address = listener.getsockname()
        with socket.create_connection(address), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for name, value in VANISHED_OPTIONS.items():
                option = getattr(socket, name)
                assert accepted.getsockopt(socket.IPPROTO_TCP, option) == value
