"""Simulated requests forecast by a trained network that reads their prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from cluster.workload import WorkloadError
from jobs.simulating.forecasts import Forecaster, PriorForecast
from jobs.simulating.prompt_table import PromptTable
from jobs.simulating.truth import Truth
from policies.batch import Floats
from predictor.prompts import Prompts


class Network(Protocol):
    """What `predictor.learned.LearnedForecaster` does for a simulation."""

    def predict(self, prompts: Prompts) -> tuple[Floats, Floats]:
        """Mu and sigma, each (n,), NaN where there is no answer."""


class LearnedForecast:
    """Forecasts of a trained network; the prior's where it has no answer, as in production.

    A prompt is read once, however many requests draw it.

    Args:
        load: Loads the network, once, when the first workload is built.
    """

    def __init__(self, load: Callable[[], Network]) -> None:
        self._load = load
        self._network: Network | None = None
        self._known: WeakKeyDictionary[PromptTable, dict[int, tuple[Floats, Floats]]] = (
            WeakKeyDictionary()
        )

    def learn(self, history: Truth) -> Forecaster:
        """Lets the prior learn; the network has learnt before.

        Raises:
            WorkloadError: These requests have no prompts.
            ArtifactError: The network cannot be loaded.
        """
        if history.prompts is None:
            raise WorkloadError(
                "the learned forecast reads prompts, and these lengths come without: choose "
                "--lengths castillo, with --castillo FILE for labels of your own"
            )
        if self._network is None:
            self._network = self._load()
        prior = PriorForecast().learn(history)

        def forecast(truth: Truth, random: np.random.Generator) -> tuple[Floats, Floats]:
            mu, sigma = self._predict(truth)
            unknown = np.isnan(mu)
            if unknown.any():
                prior_mu, prior_sigma = prior(truth, random)
                mu, sigma = (
                    np.where(unknown, prior_mu, mu),
                    np.where(unknown, prior_sigma, sigma),
                )
            return mu, sigma

        return forecast

    def _predict(self, truth: Truth) -> tuple[Floats, Floats]:
        """Mu and sigma, each (n,); all requests of a simulated workload have one cap."""
        assert truth.prompts is not None, "learn() refuses requests without prompts"
        table, cap = truth.prompts.table, int(truth.max_tokens[0])
        by_cap = self._known.setdefault(table, {})
        if cap not in by_cap:
            assert self._network is not None, "learn() loads it"
            prompts = table.prompts
            capped = replace(prompts, max_tokens=np.full(len(prompts), cap, np.int64))
            by_cap[cap] = self._network.predict(capped)
        mu, sigma = by_cap[cap]
        return mu[truth.prompts.rows], sigma[truth.prompts.rows]
