"""The controller's side of the predictor: ask without waiting, and never be without a forecast."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.config import ClusterConfig
from cluster.messages import Submission
from cluster.predictor_link import QUERIES, PredictorLink, describe
from cluster.questions import Questions, question_of
from policies.forecast import Forecast
from policies.request import Request
from predictor.actor import PredictorActor
from predictor.messages import ForecastQuery, LogT, Outcome, PredictorStats
from predictor.network_source import AUTO, NONE, NetworkSource
from predictor.prior import PriorForecaster
from replicas.embedded_model import cache_folder
from replicas.protocol import Finished

logger = logging.getLogger(__name__)

LOAD_PATIENCE_S = 60.0
"""How long the start of a cluster waits for its predictors, in seconds."""

LOAD_LOOK_S = 0.05

SYNC_INTERVAL_S = 5.0
"""How often finished lengths go to the predictors and the prior comes back."""

RETRY_S = 1.0
"""Pause before a predictor that died is called again."""

RESTART_S = 60.0
"""Silence after which a predictor is killed, so that Ray starts it anew."""


class Forecasting:
    """Asks the predictor actors, several calls at a time and the actors in turn.

    Every request has a forecast from the moment it arrives: that of a local copy of the prior. An
    answer replaces it when it comes. When an actor is dead or slow nothing waits: its calls are
    held by tasks of their own, the other actors are asked, and what nobody answers keeps its prior.

    Every actor learns from all outcomes, so that any of them can answer for the others; the first
    one writes the state that all of them begin with.

    Args:
        config: The cluster's configuration.
        arrived: Called on the event loop with forecasts by request id.
        is_open: Whether a request is known to the cluster and has not ended.
        restarted: Called when an actor was found to be another process than before.
    """

    def __init__(
        self,
        config: ClusterConfig,
        arrived: Callable[[dict[str, Forecast]], None],
        is_open: Callable[[str], bool],
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._model = config.model
        self._arrived = arrived
        self._is_open = is_open
        self._restarted = restarted
        self._prior = PriorForecaster(coverage=config.predictor.coverage)
        self._synced = False
        self._questions = Questions(config.predictor.queue)
        self._learned: dict[str, LogT] = {}
        self._links: list[PredictorLink] = []
        self._turns: deque[PredictorLink] = deque()
        self._may_ask = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Create the actors and begin to ask."""
        self.follow(_predictors(self._config))

    def follow(self, handles: Sequence[Any]) -> None:
        """Begin to ask these actors, in turn; the first one writes the state."""
        timeout_s = self._config.predictor.timeout_s
        self._links = [PredictorLink(handle, timeout_s) for handle in handles]
        self._turns.extend(self._links)
        self._spawn(self._ask_forever())
        self._spawn(self._restart_the_silent())
        for link in self._links:
            self._spawn(self._follow(link))

    async def settled(self) -> None:
        """Wait until every predictor has loaded or failed to, or `LOAD_PATIENCE_S` have passed.

        A start may wait for it, a request never does.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOAD_PATIENCE_S):
                while not all(link.up or link.error for link in self._links):
                    await asyncio.sleep(LOAD_LOOK_S)

    def prior(self, requests: Sequence[Request]) -> list[Forecast]:
        """Forecasts from the local copy of the prior, at once."""
        if not requests:
            return []
        return self._prior.forecast(
            self._model,
            np.array([r.prompt_tokens for r in requests]),
            np.array([r.max_tokens for r in requests]),
        )

    def ask(self, submissions: Sequence[Submission]) -> None:
        """Ask the predictor; the answer comes through `arrived`, or not at all.

        What has no text is asked for only as long as the local copy may not have all that the
        predictor's prior knows.
        """
        network = any(map(_may_have_network, self._links))
        for submission in submissions:
            if (submission.text and network) or not self._synced:
                question = question_of(submission, self._model)
                self._questions.add(question, submission.request_class)
        if self._questions:
            self._may_ask.set()

    def dispatched(self, request_id: str) -> None:
        """The request runs: others need their forecast more."""
        self._questions.dispatched(request_id)

    def forget(self, request_id: str) -> None:
        """The request ended or is not known any more."""
        self._questions.forget(request_id)
        self._learned.pop(request_id, None)

    def observe(self, submission: Submission, ended: Finished) -> None:
        """Learn from a finished answer; one cut off at its cap is known only from below."""
        learned = self._learned.pop(ended.request_id, None)
        self._questions.forget(ended.request_id)
        if ended.finish_reason not in ("stop", "length") or ended.output_tokens < 1:
            return
        outcome = Outcome(
            model=self._model,
            prompt_tokens=submission.prompt_tokens,
            output_tokens=ended.output_tokens,
            censored=ended.finish_reason == "length",
            max_tokens=submission.max_tokens,
            learned=learned,
        )
        for link in self._links:
            link.told(outcome)

    @property
    def remembered(self) -> int:
        """Requests that something is kept of: questions and what the network said."""
        return len(self._questions) + len(self._learned)

    @property
    def stats(self) -> list[PredictorStats]:
        """The latest news of each actor that has told any."""
        return [link.stats for link in self._links if link.stats is not None]

    @property
    def state(self) -> str:
        """Who forecasts, in words."""
        if not self._links:
            return "not started"
        answering = [link for link in self._links if link.answers]
        if not answering:
            error = next((link.error for link in self._links if link.error), "")
            if all(link.stats is None for link in self._links) and not error:
                return "prior, the predictor is starting"
            return f"prior, the predictor does not answer{f' ({error})' if error else ''}"
        said = [describe(link.stats) for link in answering if link.stats is not None]
        if len(answering) < len(self._links):
            said.append(f"{len(answering)} of {len(self._links)} predictors answer")
        return "; ".join([*said[:1], *said[len(answering) :]])

    async def stop(self) -> None:
        """Save what was learnt and end the actors."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(5.0):
                for link in self._links[:1]:
                    if link.answers:
                        await link.deliver()
                        await link.save()
        for link in self._links:
            ray.kill(link.handle)

    # To and from the actors.

    async def _ask_forever(self) -> None:
        while True:
            await self._may_ask.wait()
            self._may_ask.clear()
            while self._questions and (link := self._next_link()) is not None:
                self._spawn(self._ask(link, self._questions.take(QUERIES)))
                # The call counts from the moment its task has begun.
                await asyncio.sleep(0)

    def _next_link(self) -> PredictorLink | None:
        """An actor that may be asked, each in its turn."""
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            if self._turns[-1].has_room:
                return self._turns[-1]
        return None

    async def _ask(self, link: PredictorLink, queries: list[ForecastQuery]) -> None:
        try:
            answers = await link.ask(queries)
        except ray.exceptions.RayTaskError:
            logger.exception("the predictor refused %d queries", len(queries))
            return
        except ray.exceptions.RayError as error:
            link.lost(error)
            return
        finally:
            self._may_ask.set()
        forecasts: dict[str, Forecast] = {}
        for query, answer in zip(queries, answers, strict=True):
            if self._is_open(query.request_id):
                forecasts[query.request_id] = answer.forecast
                if answer.learned is not None:
                    self._learned[query.request_id] = answer.learned
        self._arrived(forecasts)

    async def _follow(self, link: PredictorLink) -> None:
        """Keep an actor informed while it lives, and wait for it while it does not."""
        told = ""
        restarts = 0
        while True:
            try:
                await link.load()
                told = ""
                while link.up:
                    await self._sync(link)
                    for _ in range(link.restarts - restarts):
                        self._restarted()
                    restarts = link.restarts
                    await asyncio.sleep(SYNC_INTERVAL_S)
            except ray.exceptions.RayError as error:
                link.lost(error)
            if link.error != told:
                told = link.error
                logger.warning("a predictor does not answer, the prior serves: %s", told)
            await asyncio.sleep(RETRY_S)

    async def _sync(self, link: PredictorLink) -> None:
        await link.deliver()
        if link is next((other for other in self._links if other.answers), None):
            self._prior.load_state(await link.prior())
            self._synced = True
        self._may_ask.set()

    async def _restart_the_silent(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            for link in self._links:
                if link.up and link.silent_s > RESTART_S:
                    logger.warning("a predictor was silent for %.0f s: killing it", link.silent_s)
                    link.up = False
                    ray.kill(link.handle, no_restart=False)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the forecasts failed", exc_info=error)


def _predictors(config: ClusterConfig) -> list[Any]:
    """Handles of new predictor actors."""
    options = config.predictor
    actor = ray.remote(PredictorActor).options(
        num_cpus=0, num_gpus=options.num_gpus, max_restarts=-1, max_concurrency=1000
    )
    return [
        actor.remote(
            str(state_path(config)),
            coverage=options.coverage,
            source=network_source(config),
            writes=index == 0,
        )
        for index in range(options.actors)
    ]


def network_source(config: ClusterConfig) -> NetworkSource:
    """The network that a cluster asks for.

    None is shipped for simulated engines: what they answer has nothing to do with the prompt.
    """
    network = config.predictor.network
    if network == AUTO and config.replicas.engine == "simulated":
        network = NONE
    device = "cuda" if config.predictor.num_gpus else "cpu"
    return NetworkSource(network, config.model, device)


def state_path(config: ClusterConfig) -> Path:
    """Where the predictor keeps what it learnt."""
    if config.predictor.state is not None:
        return Path(config.predictor.state)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.model).strip("-")
    return cache_folder() / "predictor" / f"{name}.json"


def _may_have_network(link: PredictorLink) -> bool:
    """Whether it has a network, or may have one once it is loaded."""
    stats = link.stats
    return stats is None or (bool(stats.network) and stats.network_error is None)
