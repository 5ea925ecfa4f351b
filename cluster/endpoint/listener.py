"""An HTTP server inside a Serve replica, which shares its port with the others on its node.

Serve's own proxy is a process between client and gateway, through which every chunk of every
stream has to pass. Sharing the port spares it: the kernel spreads connections over the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.types import ASGIApp

BACKLOG = 2048
"""Connections that may wait to be accepted."""

KEEP_ALIVE_S = 5
"""How long an idle connection is kept open."""

DRAIN_S = 25
"""How long answers may go on once the process is to end; Serve kills it a little later."""


VANISHED_OPTIONS = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}
"""After a minute without a sign of life from a client's machine its connection ends, and with it
the request: a machine that lost power or its network never says that it left. In seconds, tries
and milliseconds; accepted connections inherit them."""


class PortInUseError(RuntimeError):
    """Another program listens at the address."""


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, host: str, port: int) -> AsyncIterator[None]:
    """Serve an app at an address for the block; afterwards answers that have begun are finished.

    Raises:
        PortInUseError: Another program listens there.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    bound = bind(host, port, shared=True)
    _allow_many_connections()
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task])
        bound.close()


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket that listens at an address.

    Args:
        host: Name or number.
        port: Port; 0: a free one.
        shared: Whether others that say the same may bind to it too.

    Raises:
        PortInUseError: It is taken, or it is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortInUseError(_message(host, port, error)) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _end_the_vanished(bound)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise PortInUseError(_message(host, port, error)) from None
    return bound


def _end_the_vanished(bound: socket.socket) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in VANISHED_OPTIONS.items():
        if hasattr(socket, name):  # Linux has them all
            bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _allow_many_connections() -> None:
    """Every stream is an open file, and a process may have 1,024 by many systems' default."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _message(host: str, port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"cannot listen at {host}:{port}: {reason}; choose another --gateway.port"
