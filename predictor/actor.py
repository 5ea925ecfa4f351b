"""The predictor as an actor: it forecasts in batches, learns from outcomes and keeps its state."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from policies.forecast import Forecast
from policies.length_histogram import MAX_TOKENS
from predictor.batching import BATCH, PATIENCE_S, ROOM
from predictor.messages import Answer, ForecastQuery, LogT, Outcome, PredictorStats
from predictor.metrics import PredictorMetrics, open_metrics
from predictor.prior import HALF_LIFE_SAMPLES, PriorForecaster, write_state
from predictor.watched_network import Source, WatchedNetwork

logger = logging.getLogger(__name__)

SAVE_EVERY_OUTCOMES = 1000
"""Outcomes after which the state is written again."""

SAVE_INTERVAL_S = 30.0
"""Longest time that an outcome stays unwritten while the process lives."""


class PredictorActor:
    """Holds the prior and perhaps a network. Whoever creates it makes it a Ray actor.

    Queries are answered by the network if it is trusted and has an answer, else by the prior; no
    fault of the network is an error of the call. The network is loaded in the background from the
    first call on.

    The state is written in the background after every `save_every_outcomes` outcomes, at the latest
    `save_interval_s` after an outcome, and when Ray ends the actor in good order. Failing to write
    never fails a forecast; `stats` reports it. A killed actor that Ray restarts continues from the
    files: the prior's at `path`, what was learnt of the network beside it.

    Args:
        path: Where the state is kept; None: nowhere.
        coverage: Share of answers that an interval should contain.
        half_life_samples: Answers after which one counts half.
        save_every_outcomes: See above, at least 1.
        save_interval_s: See above, above 0.
        source: Where the network comes from; None, or one without a name: there is none.
        room: Queries that may wait for the network.
        batch: Most queries of one pass of the network.
        patience_s: How long a query waits for others to share its pass, in seconds.
        writes: Whether the state is written; of several predictors with one `path` only one should.

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
        *,
        source: Source | None = None,
        room: int = ROOM,
        batch: int = BATCH,
        patience_s: float = PATIENCE_S,
        writes: bool = True,
    ) -> None:
        if save_every_outcomes < 1 or not save_interval_s > 0:
            raise ValueError(
                f"save_every_outcomes is {save_every_outcomes} and save_interval_s is "
                f"{save_interval_s}, must be >= 1 and > 0"
            )
        self._path = None if path is None else Path(path)
        self._writes = writes and self._path is not None
        self._save_every_outcomes = save_every_outcomes
        self._save_interval_s = save_interval_s
        self._born_ns = time.time_ns()
        self._load_warning: str | None = None
        self._prior = PriorForecaster(coverage, half_life_samples)
        if self._path is not None:
            self._prior, self._load_warning = PriorForecaster.load(
                self._path, coverage, half_life_samples, writes=writes
            )
        if self._load_warning is not None:
            logger.warning(self._load_warning)
        self._network: WatchedNetwork | None = None
        if source is not None and source.name:
            self._network = WatchedNetwork(
                source,
                coverage=coverage,
                room=room,
                batch=batch,
                patience_s=patience_s,
                state=None if self._path is None else _read_watch(_watch_path(self._path)),
            )
        self._metrics: PredictorMetrics = open_metrics()
        self._unsaved = 0
        self._save_due = asyncio.Event()
        self._saving = asyncio.Lock()
        self._writing = threading.Lock()
        self._is_over = False
        self._saver: asyncio.Task[None] | None = None
        self._forecasts = self._learned = self._outcomes = self._rejected = self._saves = 0
        self._last_rejection: str | None = None
        self._save_error: str | None = None

    async def ready(self) -> PredictorStats:
        """Wait until the network is loaded or has failed to; then `stats`."""
        if self._network is not None:
            await self._network.ready()
        return await self.stats()

    async def forecast(self, batch: Sequence[ForecastQuery]) -> list[Answer]:
        """Answers in the order of the queries, once the last of them is there.

        Queries that find no room in the network's queue, or that it fails on, have the prior's.

        Raises:
            ValueError: A query has a size that is out of range; none is answered.
        """
        priors = self._prior_of(batch)
        said: list[LogT | None] = [None] * len(batch)
        served: list[Forecast | None] = [None] * len(batch)
        if self._network is not None:
            said = await self._network.ask(batch)
            served = self._network.forecasts(batch, said)
        self._forecasts += len(batch)
        self._learned += sum(forecast is not None for forecast in served)
        return [
            Answer(forecast or prior, learned)
            for forecast, prior, learned in zip(served, priors, said, strict=True)
        ]

    async def observe(self, batch: Sequence[Outcome]) -> int:
        """Learn from outcomes, the latest last; the number learnt from.

        Outcomes that are out of range are counted in `stats` and dropped.
        """
        self._judge_network(batch)
        learnt = self._learn(batch)
        self._outcomes += learnt
        self._unsaved += learnt
        if self._writes and self._unsaved:
            if self._saver is None:
                self._saver = asyncio.create_task(self._save_forever())
            if self._unsaved >= self._save_every_outcomes:
                self._save_due.set()
        return learnt

    def _prior_of(self, batch: Sequence[ForecastQuery]) -> list[Forecast]:
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(batch):
            rows.setdefault(query.model, []).append(row)
        priors: dict[int, Forecast] = {}
        for model, at in rows.items():
            forecasts = self._prior.forecast(
                model, [batch[i].prompt_tokens for i in at], [batch[i].max_tokens for i in at]
            )
            priors.update(zip(at, forecasts, strict=True))
        return [priors[row] for row in range(len(batch))]

    def _judge_network(self, batch: Sequence[Outcome]) -> None:
        """Before the prior learns from the outcomes: it must not know them either."""
        if self._network is None:
            return
        told = [
            outcome
            for outcome in batch
            if outcome.learned is not None
            and 1 <= outcome.prompt_tokens <= MAX_TOKENS
            and 1 <= outcome.output_tokens <= MAX_TOKENS
        ]
        queries = [
            ForecastQuery("", outcome.model, outcome.prompt_tokens, MAX_TOKENS) for outcome in told
        ]
        try:
            self._network.observe(told, self._prior_of(queries))
        except Exception:
            logger.exception("%d outcomes did not count for the network", len(told))

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
        network = self._network
        stats = PredictorStats(
            forecasts=self._forecasts,
            learned=self._learned,
            outcomes=self._outcomes,
            rejected=self._rejected,
            last_rejection=self._last_rejection,
            saves=self._saves,
            save_error=self._save_error,
            load_warning=self._load_warning,
            born_ns=self._born_ns,
        )
        if network is not None:
            stats = msgspec.structs.replace(
                stats,
                cached=network.cached,
                failed=network.failed,
                overflowed=network.overflowed,
                last_failure=network.last_failure,
                network=network.name,
                network_error=network.error,
                watch=network.watch_stats(),
            )
        self._metrics.update(stats)
        return stats

    async def save(self) -> None:
        """Write the state now, unless it has no place.

        Raises:
            OSError: A file cannot be written.
        """
        if not self._writes:
            return
        async with self._saving:
            unsaved = self._unsaved
            states = self._states()
            try:
                await asyncio.to_thread(self._write, states)
            except OSError as error:
                self._save_error = str(error)
                raise
            self._saved(unsaved)

    def _states(self) -> dict[Path, dict[str, Any]]:
        """What is to be written where."""
        assert self._path is not None, "only who writes comes here"
        states = {self._path: self._prior.state()}
        watch = self._network.state() if self._network is not None else None
        if watch is not None:
            states[_watch_path(self._path)] = watch
        return states

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
        if self._writes and self._unsaved:
            self._write(self._states(), last=True)
            self._saved(self._unsaved)

    def _write(self, states: dict[Path, dict[str, Any]], *, last: bool = False) -> None:
        """Write one state after the other, so that an older one never replaces the last."""
        with self._writing:
            if self._is_over:
                return
            self._is_over = last
            for path, state in states.items():
                write_state(path, state)


def _watch_path(path: Path) -> Path:
    """Beside the prior's state."""
    return path.with_name(f"{path.stem}.watch.json")


def _read_watch(path: Path) -> dict[str, Any] | None:
    """What was saved of the watch; None where there is nothing usable."""
    try:
        state = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        logger.warning("the network begins without its past, %s is unusable: %s", path, error)
        return None
    return state if isinstance(state, dict) else None
