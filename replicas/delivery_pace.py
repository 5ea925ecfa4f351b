"""When output leaves a replica: at once where somebody reads it, else in company."""

from __future__ import annotations

import asyncio
import contextlib

from replicas.protocol import Engine

PER_REQUEST_S = 0.001
"""Pause between deliveries for each request that is running, while somebody reads along: a reader
then gets about a thousand deltas a second from a replica, however many requests it runs."""

LONGEST_PAUSE_S = 0.05
"""The longest that this becomes."""

OFFLINE_PAUSE_S = 0.5
"""Pause while nobody reads along: the work that the loss of this process can cost."""

END_PAUSE_S = 0.02
"""How long the end of a request waits for other ends while nobody reads along."""


class DeliveryPace:
    """Waits for what should be delivered next.

    While anybody reads along, a first or last token goes at once, and others with the step that
    makes them as long as few requests run. While nobody does, only what has ended goes, and the
    rest once in a while: on a machine whose cores decode, every message costs tokens.

    Args:
        engine: Whose output it is.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._everything_s = 0.0  # when everything went last

    async def due(self, requests: int, *, read_along: bool) -> bool:
        """Wait until output should go, or until it is time to look after other things.

        Args:
            requests: How many are running.
            read_along: Whether somebody reads along.

        Returns:
            Whether everything that there is should go; otherwise what has ended.
        """
        if read_along:
            await self._output(min(LONGEST_PAUSE_S, requests * PER_REQUEST_S))
        elif await _is_set_within(self._engine.output_ready, OFFLINE_PAUSE_S):
            await asyncio.sleep(END_PAUSE_S)
        now = asyncio.get_running_loop().time()
        everything = read_along or now - self._everything_s >= OFFLINE_PAUSE_S
        if everything:
            self._everything_s = now
        return everything

    async def _output(self, pause_s: float) -> None:
        left_s = self._everything_s + pause_s - asyncio.get_running_loop().time()
        if left_s > 0 and await _is_set_within(self._engine.output_ready, left_s):
            return
        await _is_set_within(self._engine.output_made, LONGEST_PAUSE_S)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
