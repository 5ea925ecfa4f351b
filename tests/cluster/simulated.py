"""Workloads and fleets for tests of the simulation."""

import numpy as np
import pandas as pd
import pyarrow as pa

from cluster.simulation import SimulationResult, simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from policies.bundle import Policy, policy
from replicas.batch_limits import BatchLimits
from replicas.step_time import LinearStepTime

LINEAR = LinearStepTime(6e-3, 3e-5, 2e-5, 4e-8)


def chunk(
    count: int, rate: float = 0.0, seed: int = 0, offline_share: float = 0.0, start_s: float = 0.0
) -> WorkloadChunk:
    """Requests with log-t lengths and their true distributions as forecasts; rate 0: at once."""
    rng = np.random.default_rng(seed)
    mu, sigma = rng.normal(4.5, 0.9, count).clip(0, 6.5), rng.uniform(0.2, 0.6, count)
    output = np.exp(mu + sigma * rng.standard_t(3.5, count)).clip(1, 1024).astype(np.int64)
    gaps = rng.exponential(1 / rate, count) if rate else np.zeros(count)
    return WorkloadChunk(
        arrival_s=start_s + np.cumsum(gaps),
        prompt_tokens=rng.integers(20, 500, count),
        max_tokens=np.full(count, 1024),
        output_tokens=output,
        request_class=(rng.random(count) < offline_share).astype(np.int64),
        mu=mu,
        sigma=sigma,
        lower=np.exp(mu - 1.5 * sigma).clip(1, 1024).astype(np.int64),
        upper=np.exp(mu + 1.5 * sigma).clip(1, 1024).astype(np.int64),
    )


def fleet(replicas: int = 1, kv_blocks: int = 512, max_num_seqs: int = 64) -> FleetSpec:
    return FleetSpec(replicas, BatchLimits(kv_blocks, 16, max_num_seqs, 1024), LINEAR)


def rows_of(
    workload: list[WorkloadChunk], spec: FleetSpec, decide: Policy | str = "tiebreak"
) -> tuple[SimulationResult, pd.DataFrame]:
    """The result, and the rows in the order of finishing."""
    batches: list[pa.RecordBatch] = []
    decide = policy(decide) if isinstance(decide, str) else decide
    result = simulate(decide, workload, spec, rows=batches.append)
    return result, pa.Table.from_batches(batches).to_pandas() if batches else pd.DataFrame()
