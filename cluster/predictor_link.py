"""One predictor actor as the controller sees it: what it owes, what it is owed, how it is."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray

from predictor.messages import Answer, ForecastQuery, Outcome, PredictorStats

CALLS = 4
"""Forecast calls of one predictor at a time: one it works on, the others keep it from waiting."""

QUERIES = 32
"""Most queries of one call: what a predictor forecasts in one pass."""

OUTCOMES = 16_384
"""Outcomes kept for a predictor that does not take them; beyond it the oldest are lost."""

OUTCOMES_PER_CALL = 1024


class PredictorLink:
    """Calls to one predictor actor, which may be frozen or dead.

    A call is never given up: a frozen actor would have to do it all the same once it goes on, and
    then what comes late is still true. So what a frozen one holds is bounded by `CALLS` forecasts,
    and whoever waits for a call must be a task that nobody else waits for.

    Args:
        handle: The actor's.
        timeout_s: Age of an unanswered call above which the actor counts as silent, in seconds.

    Attributes:
        restarts: How often it was found to be another process than before.
    """

    def __init__(self, handle: Any, timeout_s: float) -> None:
        self.handle = handle
        self.stats: PredictorStats | None = None
        self.up = False
        self.error = ""
        self._timeout_s = timeout_s
        self.restarts = 0
        self._open: dict[int, float] = {}
        self._numbers = itertools.count()
        self._forecasting = 0
        self._outcomes: deque[Outcome] = deque(maxlen=OUTCOMES)

    @property
    def silent_s(self) -> float:
        """How long the oldest unanswered call has waited, in seconds; 0: there is none."""
        return time.monotonic() - next(iter(self._open.values())) if self._open else 0.0

    @property
    def answers(self) -> bool:
        """Whether it is loaded and answers in time, as far as is known."""
        return self.up and self.silent_s < self._timeout_s

    @property
    def has_room(self) -> bool:
        """Whether it may be asked now."""
        return self.answers and self._forecasting < CALLS

    def told(self, outcome: Outcome) -> None:
        """Keep an outcome for `deliver`."""
        self._outcomes.append(outcome)

    async def load(self) -> None:
        """Wait until it has loaded; however long that takes, it is no silence.

        Raises:
            RayError: The actor has died.
        """
        self._note(await self.handle.ready.remote())
        self.up, self.error = True, ""

    async def ask(self, queries: Sequence[ForecastQuery]) -> list[Answer]:
        """Its answers, in the order of the queries.

        Raises:
            RayError: The actor has died, or a query is out of range.
        """
        self._forecasting += 1
        try:
            answers: list[Answer] = await self._call("forecast", queries)
            return answers
        finally:
            self._forecasting -= 1

    async def deliver(self) -> None:
        """Give it the outcomes that it has not seen, and look how it is.

        Outcomes of a call that its death ended are given again: they were lost with what it had
        not saved, or a call's worth of them counts twice.

        Raises:
            RayError: The actor has died, or could not learn from a call's outcomes, which are then
                dropped.
        """
        while self._outcomes:
            count = min(len(self._outcomes), OUTCOMES_PER_CALL)
            batch = [self._outcomes.popleft() for _ in range(count)]
            try:
                await self._call("observe", batch)
            except ray.exceptions.RayActorError:
                room = OUTCOMES - len(self._outcomes)
                self._outcomes.extendleft(reversed(batch[max(0, count - room) :]))
                raise
        self._note(await self._call("stats"))

    async def prior(self) -> dict[str, Any]:
        """What its prior has learnt.

        Raises:
            RayError: The actor has died.
        """
        learnt: dict[str, Any] = await self._call("prior")
        return learnt

    async def save(self) -> None:
        """Let it write what it has learnt.

        Raises:
            RayError: The actor has died or cannot write.
        """
        await self._call("save")

    def lost(self, error: BaseException) -> None:
        """A call failed: it is not asked before it has loaded again."""
        self.up = False
        self.error = str(error).strip().partition("\n")[0] or type(error).__name__

    def _note(self, stats: PredictorStats) -> None:
        # Ray may have it back before anybody has missed it.
        if self.stats is not None and stats.born_ns != self.stats.born_ns:
            self.restarts += 1
        self.stats = stats

    async def _call(self, method: str, *args: Any) -> Any:
        number = next(self._numbers)
        self._open[number] = time.monotonic()
        try:
            return await getattr(self.handle, method).remote(*args)
        finally:
            del self._open[number]


def describe(stats: PredictorStats) -> str:
    """What a predictor forecasts with and how good it has been, in words."""
    if not stats.network:
        return "the prior alone, no trained network"
    if stats.network_error is not None:
        return f"prior, the network {stats.network} cannot be used: {stats.network_error}"
    watch = stats.watch
    if watch is None:
        return f"prior, the network {stats.network} is loading"
    served = f"network {stats.network}"
    if not watch.trusted:
        served = f"prior, the network {stats.network} is out of favour: {watch.reason}"
    if not watch.outcomes:
        return f"{served}; no answer has ended yet to judge it by"
    return (
        f"{served}; of the latest {watch.outcomes:,} answers {100 * watch.coverage:.0f} % inside "
        f"the interval (aim {100 * watch.target:.0f} %), rank correlation {watch.rank:.2f} "
        f"(prior {watch.rank_prior:.2f})"
    )
