"""A simulated workload whose forecasts come from a network that is watched while it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from cluster.simulated_rows import RowSink
from cluster.simulation import SimulationResult, simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from policies.batch import Floats, Ints
from policies.bundle import Policy
from predictor.conformal import Calibration
from predictor.messages import Outcome
from predictor.prior import PriorForecaster
from predictor.watch import ForecastWatch

ARRIVALS_AT_ONCE = 16
"""Requests that are forecast together, as their arrivals are reached."""

OUTCOMES_AT_ONCE = 16
"""Finished requests that are learnt from together."""

_MODEL = "simulated"


class WatchedWorkload:
    """The closed loop of the predictor: forecasts on arrival, learning from what has finished.

    The workload's own mu and sigma are what a network says of its requests. They reach the
    scheduler as they would in production: corrected by a `ForecastWatch`, or replaced by those of a
    `PriorForecaster` while the network is out of favour; and both are told of every answer when it
    has finished, never before. It goes through its requests once.

    Args:
        workload: The requests, in order of arrival, each with a number of its own or none.
        calibration: Of the network, as made on held-out requests.
        prior: What was known before the first request; it learns on.
        coverage: Share of answers that the intervals should contain.
        heeded: Whether the watch has a say. Without it the network is served as it was calibrated:
            the control that shows what the watch is worth.

    Attributes:
        watch: What watches the network.
        outcomes: Finished requests that were learnt from.
        lost: At which `outcomes` the network fell out of favour.
        regained: At which it came back.
    """

    def __init__(
        self,
        workload: Iterable[WorkloadChunk],
        calibration: Calibration,
        prior: PriorForecaster | None = None,
        *,
        coverage: float = 0.9,
        heeded: bool = True,
    ) -> None:
        self._workload = workload
        self._prior = PriorForecaster(coverage) if prior is None else prior
        self._offline = ForecastWatch(calibration, coverage)
        self._heeded = heeded
        self._said: dict[int, tuple[float, float]] = {}
        self.watch = ForecastWatch(calibration, coverage)
        self.outcomes = 0
        self.lost: list[int] = []
        self.regained: list[int] = []

    def run(
        self, policy: Policy, fleet: FleetSpec, rows: RowSink | None = None
    ) -> SimulationResult:
        """Simulate the workload to its end, once.

        Args:
            policy: What the scheduler decides with.
            fleet: The replicas.
            rows: Receives the finished requests in batches.
        """

        def learn(batch: pa.RecordBatch) -> None:
            self._learn(batch)
            if rows is not None:
                rows(batch)

        return simulate(policy, self, fleet, rows=learn, rows_at_once=OUTCOMES_AT_ONCE)

    def __iter__(self) -> Iterator[WorkloadChunk]:
        first = 0
        for chunk in self._workload:
            for start in range(0, len(chunk), ARRIVALS_AT_ONCE):
                part = chunk.take(slice(start, start + ARRIVALS_AT_ONCE))
                numbers = (
                    np.arange(first, first + len(part)) if part.number is None else part.number
                )
                first += len(part)
                yield self._forecast(part, numbers)

    def _forecast(self, part: WorkloadChunk, numbers: Ints) -> WorkloadChunk:
        said = zip(part.mu.tolist(), part.sigma.tolist(), strict=True)
        self._said.update(zip(numbers.tolist(), said, strict=True))
        if self._heeded and not self.watch.trusted:
            forecasts = self._prior.forecast(_MODEL, part.prompt_tokens, part.max_tokens)
            return replace(
                part,
                mu=np.array([forecast.mu for forecast in forecasts]),
                sigma=np.array([forecast.sigma for forecast in forecasts]),
                lower=np.array([forecast.lower for forecast in forecasts]),
                upper=np.array([forecast.upper for forecast in forecasts]),
            )
        watch = self.watch if self._heeded else self._offline
        return replace(part, **watch.forecasts(part.mu, part.sigma, part.max_tokens)._asdict())

    def _learn(self, batch: pa.RecordBatch) -> None:
        number, prompt, cap, tokens = (
            batch.column(name).to_numpy().astype(np.int64)
            for name in ("request", "prompt_tokens", "max_tokens", "output_tokens")
        )
        said = np.array([self._said.pop(int(n)) for n in number])
        prior_mu, prior_sigma = self._prior_of(prompt, cap)
        cut = tokens >= cap
        self.watch.observe(said[:, 0], said[:, 1], prior_mu, prior_sigma, tokens, cut, cap)
        columns = (prompt.tolist(), tokens.tolist(), cut.tolist())
        self._prior.observe_many([Outcome(_MODEL, *row) for row in zip(*columns, strict=True)])
        self.outcomes += len(number)
        in_favour = len(self.lost) == len(self.regained)
        if in_favour and not self.watch.trusted:
            self.lost.append(self.outcomes)
        elif not in_favour and self.watch.trusted:
            self.regained.append(self.outcomes)

    def _prior_of(self, prompt_tokens: Ints, max_tokens: Ints) -> tuple[Floats, Floats]:
        forecasts = self._prior.forecast(_MODEL, prompt_tokens, max_tokens)
        mu = np.array([forecast.mu for forecast in forecasts])
        return mu, np.array([forecast.sigma for forecast in forecasts])
