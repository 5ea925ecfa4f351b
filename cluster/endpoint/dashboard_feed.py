"""Snapshots for everybody who looks at one gateway process, asked for once a second at most."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import ray

from cluster.client import NoClusterError
from cluster.snapshot import ClusterSnapshot

PERIOD_S = 1.05
"""Least time between two questions: a little above the time for which the controller gives out the
same picture again."""


ANSWER_S = 10.0
"""How long an answer is waited for: a restarted controller asks its replicas first."""

Answer = TypeVar("Answer")


class NoAnswerError(RuntimeError):
    """The controller did not answer; the message says why."""


async def answered(asking: Awaitable[Answer], within_s: float = ANSWER_S) -> Answer:
    """The controller's answer.

    Raises:
        NoAnswerError: None came in time, or there is no controller.
    """
    try:
        async with asyncio.timeout(within_s):
            return await asking
    except TimeoutError:
        reason = f"no answer for {within_s:.0f} s; it may be being restarted"
    except NoClusterError as error:
        raise NoAnswerError(str(error)) from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
    raise NoAnswerError(f"the controller does not answer: {reason}")


@dataclass(frozen=True, slots=True)
class Shot:
    """What came of asking once.

    Attributes:
        number: How many were asked for before.
        taken_s: When it was asked for, by the feed's clock.
        snapshot: The snapshot; None: there is none.
        error: Why there is none.
    """

    number: int
    taken_s: float
    snapshot: ClusterSnapshot | None
    error: str = ""


class DashboardFeed:
    """Shares the controller's snapshots between viewers.

    Nothing runs while nobody looks: the first viewer whose snapshot is too old asks, all others
    wait for the same answer.

    Args:
        take: Asks the controller.
        clock: Seconds, ascending.
        period_s: Least time between two questions.
    """

    def __init__(
        self,
        take: Callable[[], Awaitable[ClusterSnapshot]],
        clock: Callable[[], float] = time.monotonic,
        period_s: float = PERIOD_S,
    ) -> None:
        self._take = take
        self._clock = clock
        self._period_s = period_s
        self._asked = 0
        self._latest: Shot | None = None
        self._asking: asyncio.Task[Shot] | None = None
        self._closed = asyncio.Event()

    async def latest(self) -> Shot:
        """What was asked for no more than the period ago, else a new one."""
        shot = self._latest
        if shot is not None and self._clock() - shot.taken_s < self._period_s:
            return shot
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        # A viewer that leaves must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def follow(self) -> AsyncIterator[Shot]:
        """One after another, each picture once, until the feed is closed.

        A viewer that is slow to take them misses some.
        """
        seen: float | None = None
        while not self._closed.is_set():
            shot = await self.latest()
            of_s = None if shot.snapshot is None else shot.snapshot.unix_s
            if of_s is None or of_s != seen:
                seen = of_s
                yield shot
            pause_s = shot.taken_s + self._period_s - self._clock()
            await self._pause(max(pause_s, 0.001))

    def close(self) -> None:
        """End what follows, so that the process can end."""
        self._closed.set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return

    async def _ask(self) -> Shot:
        number, self._asked = self._asked, self._asked + 1
        taken_s = self._clock()
        try:
            self._latest = Shot(number, taken_s, await answered(self._take()))
        except NoAnswerError as error:
            self._latest = Shot(number, self._clock(), None, str(error))
        finally:
            self._asking = None
        return self._latest
