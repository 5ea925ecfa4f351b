"""Work that is let through one at a time, for no more than a share of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

LONGEST_PAUSE_S = 1.0
"""Longest pause after one: an answer that took so long was not worked on all that time."""

Answer = TypeVar("Answer")


class Turnstile:
    """Bounds what many who ask take of somebody else's time.

    One who comes while nobody asks is let through at once.

    Args:
        share: Share of the time, at most 1.
        clock: Seconds, ascending.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._pauses = 1 / share - 1
        self._clock = clock
        self._turn = asyncio.Lock()
        self._free_s = clock()

    async def through(self, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Wait for the turn, then do the work."""
        async with self._turn:
            await asyncio.sleep(max(self._free_s - self._clock(), 0.0))
            began_s = self._clock()
            try:
                return await work()
            finally:
                now = self._clock()
                self._free_s = now + min((now - began_s) * self._pauses, LONGEST_PAUSE_S)
