"""The controller's side of the predictor: ask without waiting, and never be without a forecast."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.config import ClusterConfig
from cluster.messages import Submission
from policies.forecast import Forecast
from policies.request import Request
from predictor.actor import PredictorActor
from predictor.messages import ForecastQuery, Outcome
from predictor.prior import PriorForecaster
from replicas.embedded_model import cache_folder
from replicas.protocol import Finished

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 1.0
"""How long the predictor may take for a batch before its requests keep their prior."""

BATCH = 512
"""Most requests of one call; what arrives during a call goes into the next."""

SYNC_INTERVAL_S = 5.0
"""How often finished lengths go to the predictor and its prior comes back."""


class Forecasting:
    """Asks the predictor actor in batches, one call at a time.

    Every request has a forecast from the moment it arrives: that of a local copy of the prior. The
    actor's answer replaces it when it comes. When the actor is dead or slow nothing waits.

    Args:
        config: The cluster's configuration.
        arrived: Called on the event loop with forecasts by request id.
    """

    def __init__(
        self, config: ClusterConfig, arrived: Callable[[dict[str, Forecast]], None]
    ) -> None:
        self._model = config.model
        self._coverage = config.predictor.coverage
        self._path = state_path(config)
        self._arrived = arrived
        self._prior = PriorForecaster(coverage=self._coverage)
        self._actor: Any = None
        self._questions: list[ForecastQuery] = []
        self._outcomes: list[Outcome] = []
        self._asked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.state = "not started"

    def start(self) -> None:
        """Create the actor and begin to ask."""
        self._actor = (
            ray.remote(PredictorActor)
            .options(num_cpus=0, max_restarts=-1, max_concurrency=100)
            .remote(str(self._path), coverage=self._coverage)
        )
        self.state = "starting"
        self._tasks = [
            asyncio.create_task(self._answer_forever()),
            asyncio.create_task(self._sync_forever()),
        ]

    def prior(self, requests: Sequence[Request]) -> list[Forecast]:
        """Forecasts from the local copy of the prior, at once."""
        if not requests:
            return []
        return self._prior.forecast(
            self._model,
            np.array([r.prompt_tokens for r in requests]),
            np.array([r.max_tokens for r in requests]),
        )

    def ask(self, requests: Sequence[Request]) -> None:
        """Ask the predictor; the answer comes through `arrived`, or not at all."""
        self._questions += [
            ForecastQuery(r.request_id, self._model, r.prompt_tokens, r.max_tokens)
            for r in requests
        ]
        if self._questions:
            self._asked.set()

    def observe(self, submission: Submission, ended: Finished) -> None:
        """Learn from a finished answer; one cut off at its cap is known only from below."""
        if ended.finish_reason not in ("stop", "length") or ended.output_tokens < 1:
            return
        self._outcomes.append(
            Outcome(
                model=self._model,
                prompt_tokens=submission.prompt_tokens,
                output_tokens=ended.output_tokens,
                censored=ended.finish_reason == "length",
            )
        )

    async def stop(self) -> None:
        """Save what was learnt and end the actor."""
        for task in self._tasks:
            task.cancel()
        if self._actor is not None:
            with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
                async with asyncio.timeout(5.0):
                    await self._actor.observe.remote(self._outcomes)
                    await self._actor.save.remote()
            ray.kill(self._actor)

    async def _answer_forever(self) -> None:
        while True:
            await self._asked.wait()
            batch, self._questions = self._questions[:BATCH], self._questions[BATCH:]
            if not self._questions:
                self._asked.clear()
            forecasts = await self._call("forecast", batch)
            if forecasts is not None:
                self._arrived(dict(zip((q.request_id for q in batch), forecasts, strict=True)))

    async def _sync_forever(self) -> None:
        while True:
            outcomes, self._outcomes = self._outcomes, []
            if await self._call("observe", outcomes) is None:
                self._outcomes = outcomes + self._outcomes[: BATCH - len(outcomes)]
            if (learnt := await self._call("prior")) is not None:
                self._prior.load_state(learnt)
            await asyncio.sleep(SYNC_INTERVAL_S)

    async def _call(self, method: str, *args: Any) -> Any:
        """The actor's answer, or None when it has none in time."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S if self.state == "prior" else 30.0):
                answer = await getattr(self._actor, method).remote(*args)
        except (TimeoutError, ray.exceptions.RayError) as error:
            if not self.state.startswith("unavailable"):
                logger.warning(
                    "the predictor does not answer, requests run on the prior: %r", error
                )
            self.state = f"unavailable ({type(error).__name__}); requests run on the prior"
            return None
        self.state = "prior"
        return answer


def state_path(config: ClusterConfig) -> Path:
    """Where the predictor keeps what it learnt."""
    if config.predictor.state is not None:
        return Path(config.predictor.state).expanduser()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.model).strip("-")
    return cache_folder() / "predictor" / f"{name}.json"
