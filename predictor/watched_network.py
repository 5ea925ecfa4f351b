"""A network in service: asked in batches, and served only while it forecasts well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from policies.batch import Floats
from policies.forecast import Forecast
from policies.length_histogram import MAX_TOKENS
from predictor.batching import BATCH, PATIENCE_S, MicroBatcher
from predictor.calibrations import Calibrations
from predictor.messages import ForecastQuery, LogT, Outcome, WatchStats
from predictor.prompts import Prompts
from predictor.watch import ForecastWatch, WatchStateError

logger = logging.getLogger(__name__)

LARGEST_MU = 50.0
"""Above the logarithm of any length that exists; a network that says more is broken."""


class Network(Protocol):
    """What forecasts from the text of a prompt (`predictor.learned.LearnedForecaster`)."""

    @property
    def calibration(self) -> Calibrations:
        """What corrects its mu and sigma, and quantiles of the residuals on prompts not learnt."""

    @property
    def cache_hits(self) -> int:
        """Prompts whose text was known already."""

    @property
    def last_failure(self) -> str | None:
        """Why the latest row without an answer had none; None: none was."""

    def predict(self, prompts: Prompts) -> tuple[Floats, Floats]:
        """Calibrated mu and sigma, each (n,); NaN where there is no answer."""


class Source(Protocol):
    """Where a network comes from (`predictor.network_source.NetworkSource`)."""

    @property
    def name(self) -> str:
        """What reports call it; empty where there is none."""

    @property
    def model(self) -> str:
        """Whose answers it forecasts here."""

    def load(self) -> Network:
        """The network; may take seconds, and raise whatever keeps it from being used."""


class WatchedNetwork:
    """Asks a network in batches of concurrent callers' queries and watches its forecasts.

    A network that cannot be loaded is reported in `error` and answers nothing. One that fails on a
    batch leaves that batch without an answer. The watch judges it by outcomes; out of trust it is
    still asked, but `forecasts` serves none.

    Args:
        source: Makes the network, in the thread in which it will be asked.
        coverage: Share of answers that an interval should contain.
        room: Queries that may wait.
        batch: Most queries of one pass.
        patience_s: How long a query waits for others to share its pass, in seconds.
        state: What `state` returned of it in an earlier life; that of another network is ignored.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        source: Source,
        *,
        coverage: float,
        room: int,
        batch: int = BATCH,
        patience_s: float = PATIENCE_S,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.name = source.name
        self.error: str | None = None
        self.failed = 0
        self.overflowed = 0
        self.last_failure: str | None = None
        self._source = source
        self._coverage = coverage
        self._state = state
        self._network: Network | None = None
        self._watch: ForecastWatch | None = None
        self._batcher = MicroBatcher[ForecastQuery, LogT | str](
            self._predict, batch=batch, patience_s=patience_s, room=room
        )
        self._loading: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Wait until it is loaded or has failed to."""
        await asyncio.shield(self._start())

    async def ask(self, queries: Sequence[ForecastQuery]) -> list[LogT | None]:
        """What the network says, in the order of the queries; None where it has no answer.

        While it loads, queries wait in the queue.
        """
        said: list[LogT | None] = [None] * len(queries)
        self._start()
        if self.error is not None:
            return said
        readable = [row for row, query in enumerate(queries) if query.text.strip()]
        if len(readable) < len(queries):
            self._fail(len(queries) - len(readable), "a query has no text")
        replies = await self._batcher.ask([queries[row] for row in readable])
        for row, reply in zip(readable, replies, strict=True):
            if reply is None:
                self.overflowed += 1
            elif isinstance(reply, str):
                self._fail(1, reply)
            else:
                said[row] = reply
        return said

    def forecasts(
        self, queries: Sequence[ForecastQuery], said: Sequence[LogT | None]
    ) -> list[Forecast | None]:
        """Forecasts made of what the network said, corrected by what was learnt of its errors.

        Returns:
            In the order of the queries; None where the prior must serve, everywhere while the
            network is out of trust.
        """
        served: list[Forecast | None] = [None] * len(queries)
        told = [(row, answer) for row, answer in enumerate(said) if answer is not None]
        if self._watch is None or not self._watch.trusted or not told:
            return served
        rows = [row for row, _ in told]
        mu, sigma = _columns([answer for _, answer in told])
        bounded = self._watch.forecasts(
            mu, sigma, np.array([queries[row].max_tokens for row in rows], np.int64)
        )
        columns = (bounded.mu, bounded.sigma, bounded.lower, bounded.upper)
        values = zip(rows, *(column.tolist() for column in columns), strict=True)
        for row, location, scale, lower, upper in values:
            served[row] = Forecast(location, scale, lower, upper, source="learned")
        return served

    def observe(self, outcomes: Sequence[Outcome], priors: Sequence[Forecast]) -> None:
        """Judge the network by outcomes that it had spoken of, the latest last.

        Args:
            outcomes: How long answers were.
            priors: What it competes with: the prior's forecasts, which know nothing of these
                outcomes yet.
        """
        told = [
            (outcome, outcome.learned, prior)
            for outcome, prior in zip(outcomes, priors, strict=True)
            if outcome.learned is not None and _is_sound(outcome.learned)
        ]
        if self._watch is None or not told:
            return
        mu, sigma = _columns([learned for _, learned, _ in told])
        prior_mu, prior_sigma = _columns([prior for _, _, prior in told])
        seen = [outcome for outcome, _, _ in told]
        trusted = self._watch.trusted
        self._watch.observe(
            mu,
            sigma,
            prior_mu,
            prior_sigma,
            np.array([outcome.output_tokens for outcome in seen], np.int64),
            np.array([outcome.censored for outcome in seen], np.bool_),
            np.array([min(outcome.max_tokens, MAX_TOKENS) for outcome in seen], np.int64),
        )
        if trusted and not self._watch.trusted:
            reason = self._watch.stats().reason
            logger.warning("network %s is out of favour, the prior serves: %s", self.name, reason)
        elif self._watch.trusted and not trusted:
            logger.warning("network %s is back in favour", self.name)

    @property
    def cached(self) -> int:
        """Queries whose text was known already."""
        return self._network.cache_hits if self._network is not None else 0

    def watch_stats(self) -> WatchStats | None:
        """How good it has been lately; None: it is not loaded."""
        return self._watch.stats() if self._watch is not None else None

    def state(self) -> dict[str, Any] | None:
        """What was learnt of its errors, as values that JSON can hold; None: it is not loaded."""
        if self._watch is None:
            return None
        state: dict[str, Any] = msgspec.to_builtins(self._watch.state())
        return state

    def _start(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_network())
        return self._loading

    async def _load_network(self) -> None:
        try:
            await self._batcher.run(self._load_in_thread)
        except Exception as error:
            self.error = str(error) or type(error).__name__
            logger.warning("network %s is not used, the prior serves: %s", self.name, self.error)

    def _load_in_thread(self) -> None:
        network = self._source.load()
        watch = ForecastWatch(network.calibration.of(self._source.model), self._coverage)
        if self._state is not None:
            try:
                watch.load_state(self._state)
            except WatchStateError as error:
                logger.warning("network %s begins without its past: %s", self.name, error)
        self._network, self._watch = network, watch

    def _predict(self, queries: list[ForecastQuery]) -> list[LogT | str]:
        """One pass, in the batches' thread: a distribution, or why there is none."""
        if self._network is None:
            return ["the network is not loaded"] * len(queries)
        try:
            mu, sigma = self._network.predict(Prompts.of(queries))
            if not len(mu) == len(sigma) == len(queries):
                raise ValueError(f"{len(mu)} mu, {len(sigma)} sigma for {len(queries)} prompts")
        except Exception as error:
            logger.exception("network %s failed on %d prompts", self.name, len(queries))
            return [f"{type(error).__name__}: {error}"] * len(queries)
        said = [LogT(*row) for row in zip(mu.tolist(), sigma.tolist(), strict=True)]
        if all(map(_is_sound, said)):
            return list(said)
        reason = self._network.last_failure or "the answer is not finite"
        return [answer if _is_sound(answer) else reason for answer in said]

    def _fail(self, queries: int, reason: str) -> None:
        self.failed += queries
        self.last_failure = reason


def _is_sound(answer: LogT) -> bool:
    """Whether it is a distribution, of lengths that exist."""
    return abs(answer.mu) <= LARGEST_MU and 0 < answer.sigma <= LARGEST_MU


def _columns(distributions: Sequence[LogT | Forecast]) -> tuple[Floats, Floats]:
    """Mu and sigma, each (n,)."""
    mu = np.array([distribution.mu for distribution in distributions], np.float64)
    return mu, np.array([distribution.sigma for distribution in distributions], np.float64)
