"""The journal: what the scheduling core was told and what it decided, one JSON line each.

The first line of every session is an object, the `Header`; the others are arrays that begin with
the name of the event. Requests and replicas are named once and numbered from then on. Sizes, counts
and names only: no prompt and no answer ever gets here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from pathlib import Path

import msgspec

from cluster.journal_events import Event, Header

logger = logging.getLogger(__name__)

FLUSH_S = 0.05
"""How long lines wait in memory for company: what the death of this process can lose."""

PENDING_BYTES = 64 << 20
"""Most bytes that may wait for a slow disk before the recording ends."""

CLOSE_TIMEOUT_S = 5.0
"""How long the last lines may take to reach the file when the journal is closed."""


class Journal:
    """An append-only journal file, written by a thread of its own.

    The caller never waits for the disk. When the file cannot be written, or takes less than comes,
    the recording ends for good, with one line in the log: a journal has no gaps.

    Args:
        path: The file; made with its folders when it is missing, continued when it is there.
        header: Begins the session.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._error = ""
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._handed_bytes = 0
        self._written_bytes = 0
        self._handed: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._stop(error.strerror or str(error))
            return
        if _ends_torn(file):
            self._buffer += b"\n"
        self.add(header)
        self._thread = threading.Thread(
            target=self._write_forever, args=(file,), name="tiebreak-journal", daemon=True
        )
        self._thread.start()

    @property
    def state(self) -> str:
        """For people: where it is written, or why no longer."""
        return f"{self.path}: recording ended: {self._error}" if self._error else str(self.path)

    @property
    def recording(self) -> bool:
        """Whether lines still reach the file, as far as is known."""
        return not self._error

    def add(self, line: Header | Event) -> None:
        """Append a line; it reaches the file after the next `flush`."""
        if not self._error:
            self._encoder.encode_into(line, self._buffer, -1)
            self._buffer += b"\n"

    def flush(self) -> None:
        """Hand what was added to the thread."""
        if self._error or not self._buffer:
            self._buffer.clear()
            return
        pending = self._handed_bytes - self._written_bytes
        if pending > PENDING_BYTES:
            self._stop(f"{pending >> 20} MiB wait for a disk that takes less than is recorded")
            return
        self._handed_bytes += len(self._buffer)
        self._handed.put(bytes(self._buffer))
        self._buffer.clear()

    def close(self) -> None:
        """Write what is left, within `CLOSE_TIMEOUT_S`."""
        self.flush()
        self._handed.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _write_forever(self, file: int) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, file)
            while (first := self._handed.get()) is not None and not self._error:
                # One write for all that comes meanwhile, whatever the rate of decisions.
                time.sleep(FLUSH_S)
                batch = [first]
                last = False
                with contextlib.suppress(queue.Empty):
                    while not last:
                        lines = self._handed.get_nowait()
                        last = lines is None
                        batch += [lines] if lines is not None else []
                try:
                    _write_all(file, b"".join(batch))
                except OSError as error:
                    self._stop(error.strerror or str(error))
                    return
                self._written_bytes += sum(map(len, batch))
                if last:
                    return

    def _stop(self, reason: str) -> None:
        self._error = reason
        logger.error("the journal %s is not recorded any more: %s", self.path, reason)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _ends_torn(file: int) -> bool:
    """Whether the file's last line was cut off when its writer died."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
