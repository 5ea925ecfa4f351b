"""The predictor as an actor: it forecasts in batches, learns from outcomes and keeps its state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.forecast import Forecast
from predictor.messages import ForecastQuery, Outcome, PredictorStats
from predictor.prior import HALF_LIFE_SAMPLES, PriorForecaster, write_state

logger = logging.getLogger(__name__)

SAVE_EVERY_OUTCOMES = 1000
"""Outcomes after which the state is written again."""

SAVE_INTERVAL_S = 30.0
"""Longest time that an outcome stays unwritten while the process lives."""


class PredictorActor:
    """Holds the forecaster. Whoever creates it makes it a Ray actor.

    The state is written in the background after every `save_every_outcomes` outcomes, at the latest
    `save_interval_s` after an outcome, and when Ray ends the actor in good order. Failing to write
    never fails a forecast; `stats` reports it. A killed actor that Ray restarts continues from the
    file.

    Args:
        path: Where the state is kept; None: nowhere.
        coverage: Share of answers that an interval should contain.
        half_life_samples: Answers after which one counts half.
        save_every_outcomes: See above, at least 1.
        save_interval_s: See above, above 0.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | None,
        coverage: float = 0.9,
        half_life_samples: float = HALF_LIFE_SAMPLES,
        save_every_outcomes: int = SAVE_EVERY_OUTCOMES,
        save_interval_s: float = SAVE_INTERVAL_S,
    ) -> None:
        if save_every_outcomes < 1 or not save_interval_s > 0:
            raise ValueError(
                f"save_every_outcomes is {save_every_outcomes} and save_interval_s is "
                f"{save_interval_s}, must be >= 1 and > 0"
            )
        self._path = None if path is None else Path(path)
        self._save_every_outcomes = save_every_outcomes
        self._save_interval_s = save_interval_s
        self._load_warning: str | None = None
        if self._path is None:
            self._prior = PriorForecaster(coverage, half_life_samples)
        else:
            self._prior, self._load_warning = PriorForecaster.load(
                self._path, coverage, half_life_samples
            )
        if self._load_warning is not None:
            logger.warning(self._load_warning)
        self._unsaved = 0
        self._save_due = asyncio.Event()
        self._saving = asyncio.Lock()
        self._saver: asyncio.Task[None] | None = None
        self._forecasts = self._outcomes = self._rejected = self._saves = 0
        self._last_rejection: str | None = None
        self._save_error: str | None = None

    async def forecast(self, batch: Sequence[ForecastQuery]) -> list[Forecast]:
        """Forecasts in the order of the queries.

        Raises:
            ValueError: A query has a size that is out of range; none is answered.
        """
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(batch):
            rows.setdefault(query.model, []).append(row)
        answers: dict[int, Forecast] = {}
        for model, at in rows.items():
            forecasts = self._prior.forecast(
                model, [batch[i].prompt_tokens for i in at], [batch[i].max_tokens for i in at]
            )
            answers.update(zip(at, forecasts, strict=True))
        self._forecasts += len(batch)
        return [answers[row] for row in range(len(batch))]

    async def observe(self, batch: Sequence[Outcome]) -> int:
        """Learn from outcomes, the latest last; the number learnt from.

        Outcomes that are out of range are counted in `stats` and dropped.
        """
        learnt = self._learn(batch)
        self._outcomes += learnt
        self._unsaved += learnt
        if self._path is not None and self._unsaved:
            if self._saver is None:
                self._saver = asyncio.create_task(self._save_forever())
            if self._unsaved >= self._save_every_outcomes:
                self._save_due.set()
        return learnt

    def _learn(self, batch: Sequence[Outcome]) -> int:
        try:
            self._prior.observe_many(batch)
            return len(batch)
        except ValueError as error:
            if len(batch) == 1:
                self._rejected += 1
                self._last_rejection = f"{batch[0]}: {error}"
                return 0
        middle = len(batch) // 2
        return self._learn(batch[:middle]) + self._learn(batch[middle:])

    async def prior(self) -> dict[str, Any]:
        """What was learnt so far, for a copy of the forecaster (`PriorForecaster.load_state`)."""
        return self._prior.state()

    async def stats(self) -> PredictorStats:
        """What happened since the start."""
        return PredictorStats(
            forecasts=self._forecasts,
            outcomes=self._outcomes,
            rejected=self._rejected,
            last_rejection=self._last_rejection,
            saves=self._saves,
            save_error=self._save_error,
            load_warning=self._load_warning,
        )

    async def save(self) -> None:
        """Write the state now, unless it has no place.

        Raises:
            OSError: The file cannot be written.
        """
        if self._path is None:
            return
        async with self._saving:
            unsaved, state = self._unsaved, self._prior.state()
            try:
                await asyncio.to_thread(write_state, self._path, state)
            except OSError as error:
                self._save_error = str(error)
                raise
            self._saved(unsaved)

    def _saved(self, outcomes: int) -> None:
        self._unsaved -= outcomes
        self._saves += 1
        self._save_error = None

    async def _save_forever(self) -> None:
        """Wait for outcomes to be due, write them, and begin again."""
        while True:
            try:
                async with asyncio.timeout(self._save_interval_s):
                    await self._save_due.wait()
            except TimeoutError:
                pass
            self._save_due.clear()
            if not self._unsaved:
                continue
            try:
                await self.save()
            except OSError as error:
                logger.warning("the predictor's state is not saved: %s", error)

    def __ray_shutdown__(self) -> None:
        """Called by Ray when the actor ends in good order: write what is not written yet."""
        if self._path is not None and self._unsaved:
            self._prior.save(self._path)
            self._saved(self._unsaved)
