"""How an engine's own scheduler tells its replica which requests wait inside the engine.

The scheduler lives in vLLM's engine-core process, a child of the replica's. It sends the complete
set as one datagram to a Unix socket, whose path the child inherits in an environment variable: the
path differs from run to run, and vLLM's configuration is part of its compile cache's key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from replicas.protocol import Stalled

logger = logging.getLogger(__name__)

SOCKET_VARIABLE = "TIEBREAK_STALL_SOCKET"
"""Environment variable with the path of the socket."""

DATAGRAM_BYTES = 1 << 16
"""Largest datagram: over a thousand requests, and well within a socket's default send buffer."""

_LONGEST_FOLDER = 64  # bytes; with the names below it, within the 107 that a socket's path may have

_Report = dict[str, tuple[int, int]]  # output tokens and evictions by request id


class StallReporter:
    """The engine's end. It never blocks and never fails: scheduling goes on whoever listens."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._received: dict[str, Stalled] | None = None
        self._warned = False

    @classmethod
    def from_environment(cls) -> StallReporter | None:
        """The reporter to the socket that the environment names; None when it names none."""
        path = os.environ.get(SOCKET_VARIABLE)
        return cls(path) if path else None

    def send(self, stalled: Mapping[str, Stalled]) -> bool:
        """Report all requests that wait, the first to go on first.

        Nothing is sent twice in a row, so it may be called after every step. Of more requests than
        a datagram holds the first are sent.

        Returns:
            Whether the set got through. If not, because the socket was full or nobody listens, try
            again after the next step.
        """
        if stalled == self._received:
            return True
        try:
            self._socket.sendto(encode(stalled), self._path)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._warned:
                logger.warning("requests that wait cannot be reported: %s: %s", self._path, error)
            self._warned = True
            return False
        self._received = dict(stalled)
        self._warned = False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class StallListener:
    """The replica's end, made on its event loop before the engine's process starts.

    Attributes:
        latest: The requests that wait, by id, as the latest report has them.
        changed: Set when `latest` changes; whoever awaits it clears it.
    """

    def __init__(self, changed: asyncio.Event | None = None) -> None:
        """Listen, and name the socket in the environment."""
        self.latest: dict[str, Stalled] = {}
        self.changed = changed or asyncio.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="tiebreak-", dir=_short_folder()))
        self._path = str(self._folder / "stalled")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)
        os.environ[SOCKET_VARIABLE] = self._path

    def forget(self, request_ids: Iterable[str]) -> None:
        """Take out requests that the engine is told to abort; idle, it would not report that."""
        for request_id in request_ids:
            if self.latest.pop(request_id, None) is not None:
                self.changed.set()

    def close(self) -> None:
        """Stop listening; engines that start from now on report to nobody."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if os.environ.get(SOCKET_VARIABLE) == self._path:
            del os.environ[SOCKET_VARIABLE]

    def _read(self) -> None:
        """Take what has arrived; of several reports the last one counts."""
        datagram = None
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self._socket.recv(DATAGRAM_BYTES)
        if datagram is None:
            return
        latest = decode(datagram)
        if latest != self.latest:
            self.latest = latest
            self.changed.set()


def encode(stalled: Mapping[str, Stalled]) -> bytes:
    """A report as a datagram, cut to the first requests when not all fit."""
    count = len(stalled)
    while True:
        report = {i: (s.tokens, s.evictions) for i, s in islice(stalled.items(), count)}
        datagram = msgspec.msgpack.encode(report)
        if len(datagram) <= DATAGRAM_BYTES:
            return datagram
        count = min(count - 1, count * DATAGRAM_BYTES // len(datagram))


def decode(datagram: bytes) -> dict[str, Stalled]:
    """The requests in a datagram, in the order in which they were reported."""
    report = msgspec.msgpack.decode(datagram, type=_Report)
    return {i: Stalled(tokens, evictions) for i, (tokens, evictions) in report.items()}


def _short_folder() -> str | None:
    """Where a socket's path is short enough; None: the usual folder for temporary files."""
    return "/tmp" if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER else None
