"""The closed loop: a network that misleads costs little, because it is noticed while it serves."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from cluster.simulation import simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from jobs.simulating.watched import WatchedWorkload
from policies.bundle import policy
from predictor.conformal import Calibration, calibrate
from predictor.messages import Outcome
from predictor.prior import PriorForecaster
from replicas.batch_limits import BatchLimits
from tests.cluster.simulated import LINEAR

REQUESTS = 10_000
HALF = REQUESTS // 2
CAP = 2048
A_FEW_HUNDRED = 900

# Memory for all that can run at once: what differs is the order alone, not what memory admits. At
# 30 requests/s the queue grows until the arrivals end, to about 3,000.
FLEET = FleetSpec(1, BatchLimits(8192, 16, 64, 2048), LINEAR)
RATE = 30.0


def requests(count: int, seed: int, factor: float = 1.0) -> WorkloadChunk:
    """Requests and what a useful network says of them; `factor` stretches the second half."""
    rng = np.random.default_rng(seed)
    mu, sigma = rng.normal(5, 0.9, count), rng.uniform(0.2, 0.6, count)
    answers = np.exp(mu + sigma * rng.standard_t(3.5, count))
    answers[count // 2 :] *= factor
    noise = 0.43 * rng.standard_normal(count)
    return WorkloadChunk(
        arrival_s=np.cumsum(rng.exponential(1 / RATE, count)),
        prompt_tokens=rng.integers(20, 500, count),
        max_tokens=np.full(count, CAP),
        output_tokens=np.ceil(answers).clip(1, CAP).astype(np.int64),
        request_class=np.zeros(count, np.int64),
        mu=5 + 0.65 * (mu - 5) + noise,
        sigma=0.45 * np.exp(0.3 * rng.standard_normal(count)),
        lower=np.ones(count, np.int64),
        upper=np.full(count, CAP),
    )


@functools.cache
def history() -> tuple[Calibration, list[Outcome]]:
    """The network's calibration, and what the prior has seen, both from other requests."""
    past = requests(3000, seed=99)
    cut = past.output_tokens >= CAP
    columns = (past.prompt_tokens.tolist(), past.output_tokens.tolist(), cut.tolist())
    outcomes = [Outcome("simulated", *row) for row in zip(*columns, strict=True)]
    answers = past.output_tokens[:, None]
    return calibrate(past.mu, past.sigma, answers, cut[:, None]), outcomes


def useful(seed: int, factor: float = 1.0, count: int = REQUESTS) -> WorkloadChunk:
    chunk = requests(count, seed, factor)
    mu, sigma = history()[0].corrected(chunk.mu, chunk.sigma)
    return replace(chunk, mu=mu, sigma=sigma)


def exchanged(chunk: WorkloadChunk, start: int = 0) -> WorkloadChunk:
    """From `start` on every request has another one's forecast."""
    rows = np.arange(len(chunk))
    rows[start:] = np.roll(rows[start:], 1)
    return replace(chunk, mu=chunk.mu[rows], sigma=chunk.sigma[rows])


def reversed_order(chunk: WorkloadChunk, start: int = 0) -> WorkloadChunk:
    """From `start` on what is forecast long was forecast short."""
    mu = chunk.mu.copy()
    mu[start:] = 2 * mu.mean() - mu[start:]
    return replace(chunk, mu=mu)


class Run(NamedTuple):
    workload: WatchedWorkload
    rows: pd.DataFrame

    @property
    def latency_s(self) -> float:
        return float((self.rows.finished_s - self.rows.arrival_s).mean())

    def coverage(self, start: int) -> float:
        late = self.rows[self.rows.request >= start]
        return float(late.output_tokens.between(late.lower, late.upper).mean())


def run(chunk: WorkloadChunk, heeded: bool = True) -> Run:
    """The default policy over a network that is watched or not."""
    calibration, outcomes = history()
    prior = PriorForecaster()
    prior.observe_many(outcomes)
    workload = WatchedWorkload([chunk], calibration, prior, heeded=heeded)
    batches: list[pa.RecordBatch] = []
    result = workload.run(policy(), FLEET, batches.append)
    assert result.finished == workload.outcomes == len(chunk)
    return Run(workload, pa.Table.from_batches(batches).to_pandas())


@functools.cache
def fcfs_latency_s(seed: int, factor: float = 1.0) -> float:
    batches: list[pa.RecordBatch] = []
    simulate(policy("fcfs"), [requests(REQUESTS, seed, factor)], FLEET, rows=batches.append)
    rows = pa.Table.from_batches(batches).to_pandas()
    return float((rows.finished_s - rows.arrival_s).mean())


def test_a_network_that_knows_nothing_costs_nothing_over_fcfs() -> None:
    spoilt = run(exchanged(useful(seed=1)))
    assert len(spoilt.workload.lost) == 1
    assert spoilt.workload.lost[0] <= A_FEW_HUNDRED
    assert spoilt.workload.regained == []
    assert spoilt.latency_s <= 1.02 * fcfs_latency_s(1)
    # A random order has the mean of first come, first served; but the prior, which knows the
    # prompts' lengths, does better, and that is what an unwatched network takes away.
    unwatched = run(exchanged(useful(seed=1)), heeded=False)
    assert unwatched.latency_s > 1.03 * spoilt.latency_s


def test_a_network_that_turns_to_the_reverse_costs_nothing_over_fcfs() -> None:
    spoilt = run(reversed_order(useful(seed=1), HALF))
    assert len(spoilt.workload.lost) == 1
    assert HALF / 2 < spoilt.workload.lost[0] <= HALF + A_FEW_HUNDRED
    assert spoilt.latency_s <= 1.02 * fcfs_latency_s(1)


def test_an_unwatched_network_in_reverse_costs_much() -> None:
    assert run(reversed_order(useful(seed=1)), heeded=False).latency_s > 1.2 * fcfs_latency_s(1)
    spoilt = run(reversed_order(useful(seed=1)))
    assert spoilt.workload.lost[0] <= 200
    assert spoilt.latency_s <= 1.02 * fcfs_latency_s(1)


def test_lengths_that_triple_cost_neither_latency_nor_coverage() -> None:
    shifted = useful(seed=1, factor=3.0)
    watched = run(shifted)
    assert watched.workload.lost == []
    assert watched.latency_s <= 1.02 * fcfs_latency_s(1, 3.0)
    assert abs(watched.coverage(HALF + 1000) - 0.9) < 0.06
    unwatched = run(shifted, heeded=False)
    assert unwatched.coverage(HALF + 1000) < 0.75


def test_forecasts_know_nothing_of_answers_that_have_not_finished() -> None:
    chunk = useful(seed=2, count=600)
    changed = chunk.output_tokens.copy()
    changed[300:] = 1
    first, second = (
        run(c).rows.set_index("request").sort_index().loc[:299, ["mu", "sigma", "lower", "upper"]]
        for c in (chunk, replace(chunk, output_tokens=changed))
    )
    pd.testing.assert_frame_equal(first, second)
    said = pd.DataFrame({"mu": chunk.mu, "sigma": chunk.sigma}).loc[:299]
    corrected = (first[["mu", "sigma"]] != said).any(axis=1)
    assert not corrected.loc[:31].any()
    assert corrected.loc[250:].all()


def test_a_run_is_repeatable() -> None:
    chunk = exchanged(useful(seed=3, count=800))
    first, second = run(chunk), run(chunk)
    pd.testing.assert_frame_equal(first.rows, second.rows)
    assert first.workload.watch.state() == second.workload.watch.state()
