"""Items for one reader across a connection that may lose a reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """A mailbox that is read by long polling and forgets nothing before it is acknowledged.

    The reader passes the number of the last batch it received. A batch whose reply was lost is
    sent again under its old number; everything that came meanwhile follows in the next one, so
    batches grow by themselves when the reader is slow.

    Attributes:
        last_read_s: `time.monotonic()` of the reader's latest sign of life.
    """

    def __init__(self) -> None:
        self.last_read_s = time.monotonic()
        self._pending: list[T] = []
        self._sent: list[T] = []
        self._number = 0
        self._filled = asyncio.Event()
        self._readers = 0

    def put(self, items: Iterable[T]) -> None:
        """Add items and wake the reader."""
        self._pending.extend(items)
        if self._pending:
            self._filled.set()

    async def take(self, received: int, timeout_s: float) -> tuple[int, list[T]]:
        """The next batch.

        Args:
            received: Number of the last batch the reader has, 0 for none.
            timeout_s: How long to wait for items before answering with an empty batch.

        Returns:
            The batch's number, to be acknowledged by the next call, and its items.
        """
        self.last_read_s = time.monotonic()
        if self._sent and received != self._number:
            return self._number, self._sent
        self._sent = []
        self._readers += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._filled.wait()
        except TimeoutError:
            return received, []
        finally:
            self._readers -= 1
            self.last_read_s = time.monotonic()
        if self._sent:
            # The same reader asked twice, having lost its connection: both calls get one batch.
            return self._number, self._sent
        self._sent, self._pending = self._pending, []
        self._filled.clear()
        self._number += 1
        return self._number, self._sent

    @property
    def is_read(self) -> bool:
        """Whether the reader has acknowledged everything."""
        return not self._pending and not self._sent

    def idle_s(self) -> float:
        """Seconds since the reader was last seen; 0 while it waits, even if this process stood."""
        return 0.0 if self._readers else time.monotonic() - self.last_read_s
