"""The way from a decision to the engine takes time, in which the engine goes on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cluster.simulation import simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from policies.bundle import policy
from replicas.batch_limits import BatchLimits
from replicas.step_time import LinearStepTime

STEP_S = 0.5


def simulated(
    arrival_s: list[float], output_tokens: list[int], *, slots: int, latency_s: float
) -> pd.DataFrame:
    """Shortest first with known lengths on one replica with `slots` and one place of look-ahead."""
    n = len(arrival_s)
    lengths = np.array(output_tokens)
    chunk = WorkloadChunk(
        arrival_s=np.array(arrival_s),
        prompt_tokens=np.full(n, 10),
        max_tokens=np.full(n, 100),
        output_tokens=lengths,
        request_class=np.zeros(n, np.int64),
        mu=np.log(lengths),
        sigma=np.zeros(n),
        lower=lengths,
        upper=lengths,
    )
    fleet = FleetSpec(
        1,
        BatchLimits(kv_blocks=100, block_size=16, max_num_seqs=slots, max_num_batched_tokens=64),
        LinearStepTime(STEP_S, 0.0, 0.0, 0.0),
        look_ahead=1,
        dispatch_latency_s=latency_s,
    )
    batches: list[pa.RecordBatch] = []
    simulate(policy("sjf", ordering_options={"gamma": 1.0}), [chunk], fleet, rows=batches.append)
    return pa.Table.from_batches(batches).to_pandas().set_index("request").sort_index()


@pytest.mark.parametrize("latency_s", [0.0, 0.125, 2.0])
def test_a_lone_request_waits_for_its_message(latency_s: float) -> None:
    rows = simulated([1.0], [4], slots=2, latency_s=latency_s)
    assert rows["dispatched_s"].tolist() == [1.0]
    assert rows["first_token_s"].tolist() == [1.0 + latency_s + STEP_S]
    assert rows["finished_s"].tolist() == [1.0 + latency_s + 4 * STEP_S]


@pytest.mark.parametrize(("latency_s", "second"), [(0.0, 2), (0.125, 1)])
def test_a_freed_slot_goes_to_what_the_replica_holds(latency_s: float, second: int) -> None:
    # 0 runs, 1 is in the place of look-ahead, 2 is shorter but waits in the cluster.
    rows = simulated([0.0, 0.3, 0.6], [4, 9, 3], slots=1, latency_s=latency_s)
    assert rows["first_token_s"].drop(0).idxmin() == second
