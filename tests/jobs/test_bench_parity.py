"""The comparison of a real replica with its simulation, and how the real one is recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from cluster.config import ClusterConfig, parse_config
from cluster.lifecycle import running_cluster
from cluster.virtual_replica import FleetSpec
from jobs.bench_parity import METRICS, compare, report, simulated, times
from jobs.open_loop import RequestFailedError, run_open_loop
from jobs.parity_recording import Recording, read_dispatches, record
from policies.forecast import Forecast
from replicas.batch_limits import BatchLimits
from replicas.step_time import LinearStepTime, StepWork
from tests.cluster.factories import forecast, replica, request
from tests.cluster.test_cluster import generation
from tests.cluster.test_journal import journaled

LIMITS = BatchLimits(kv_blocks=400, block_size=16, max_num_seqs=8, max_num_batched_tokens=512)
STEP_TIME = LinearStepTime(0.02, 4e-4, 1e-3, 5e-6, 1e-7)
CONFIG = parse_config({"replicas": {"max_model_len": 400}})


def steps(count: int = 400) -> np.ndarray:
    """Steps that take exactly what `STEP_TIME` says, shape (steps, 5)."""
    rng = np.random.default_rng(1)
    prefill = rng.integers(0, 2, count) * rng.integers(10, 200, count)
    decode = rng.integers(1, 9, count)
    works = np.stack((prefill, prefill * (prefill + 1) // 2, decode, decode * 120), axis=1)
    works[:, 3] += rng.integers(0, 100, count)
    seconds = [STEP_TIME.seconds(StepWork(*work)) for work in works.tolist()]
    return np.column_stack((seconds, works))


def a_run(load: float, count: int = 60) -> pd.DataFrame:
    """A run whose times are those of a simulation with `STEP_TIME`."""
    rng = np.random.default_rng(2)
    output = rng.integers(2, 90, count)
    run = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(count)],
            "due_s": rng.exponential(0.25 / load, count).cumsum(),
            "prompt_tokens": rng.integers(10, 200, count),
            "max_tokens": 96,
            "output_tokens": output,
            "request_class": 0,
            "mu": np.log(output) + rng.normal(0, 0.3, count),
            "sigma": 0.4,
            "lower": 5,
            "upper": 96,
        }
    )
    run["submitted_s"] = run["due_s"] + 0.004
    fleet = FleetSpec(1, LIMITS, STEP_TIME, max_model_len=400, look_ahead=2)
    return simulated(run, CONFIG.build_policy(), fleet)


def a_recording(stretched: float = 1.0) -> Recording:
    """A recording that agrees with the simulation but for its latencies being stretched."""
    runs = {load: a_run(load) for load in (0.5, 2.0)}
    for run in runs.values():
        for name in ("first_token_s", "finished_s"):
            run[name] = run["due_s"] + stretched * (run[name] - run["due_s"])
    return Recording(LIMITS, 4.0, steps(), dict.fromkeys(runs, steps()), runs)


def printed(recording: Recording, config: ClusterConfig = CONFIG) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report(recording, config.build_policy(), list(compare(recording, config))))
    return capture.get()


def test_a_run_that_behaves_as_simulated_agrees_in_every_figure() -> None:
    text = printed(a_recording())
    assert "fitted on all at once: 24 of 24 figures within 15%" in text
    assert "fitted on this load: 24 of 24 figures within 15%" in text
    assert "its error over all steps is" in text


@pytest.mark.parametrize(("stretched", "within"), [(1.1, 24), (1.3, 0), (0.8, 0)])
def test_the_bar_is_on_the_ratio(stretched: float, within: int) -> None:
    assert f"all at once: {within} of 24 figures within 15%" in printed(a_recording(stretched))


def test_another_policy_is_another_simulation() -> None:
    fcfs = parse_config({"replicas": {"max_model_len": 400}, "policy": {"name": "fcfs"}})
    recording = a_recording()
    own = {(c.load, c.fitted_on): c.virtual for c in compare(recording, CONFIG)}
    for other in compare(recording, fcfs):
        if other.load == 2.0:
            assert not other.virtual.equals(own[other.load, other.fitted_on])


def test_latencies_count_from_when_a_request_was_due() -> None:
    run = pd.DataFrame(
        {"due_s": [1.0], "first_token_s": [1.5], "finished_s": [3.0], "output_tokens": [4]}
    )
    assert times(run)[list(METRICS)].iloc[0].tolist() == [2.0, 0.5, 500.0]


def test_a_dispatch_is_read_with_the_forecast_it_was_made_with(tmp_path: Path) -> None:
    core, journal = journaled(tmp_path / "journal")
    core.submit(request("a"), forecast(10), 1.0)
    core.submit(request("never"), forecast(10), 1.0)
    core.forecast("a", Forecast(mu=2.5, sigma=0.25, lower=3, upper=44), 2.0)
    core.decide(2.5)  # no replica yet
    core.replica_joined(replica(slots=1), 3.0)
    core.decide(4.0)
    core.forecast("a", forecast(77), 5.0)
    core.decide(5.0)
    journal.close()
    told = read_dispatches(tmp_path / "journal")
    assert told.index.tolist() == ["a"]
    assert told.loc["a"].to_dict() == {
        **{"submitted_s": 1.0, "dispatched_s": 4.0},
        **{"mu": 2.5, "sigma": 0.25, "lower": 3, "upper": 44},
    }


def simulated_replica(tmp_path: Path) -> ClusterConfig:
    return parse_config(
        {
            "journal": str(tmp_path / "journal"),
            "replicas": {"engine": "simulated", "count": 1, "max_num_seqs": 8},
        }
    )


@pytest.mark.usefixtures("ray_here")
def test_a_replica_is_recorded_at_each_load(tmp_path: Path) -> None:
    requests = [generation(i, tokens=10 + i, cap=60) for i in range(30)]
    recording = record(simulated_replica(tmp_path), requests, [1.0, 3.0], seed=5)
    assert list(recording.runs) == list(recording.steps) == [1.0, 3.0]
    assert recording.limits.max_num_seqs == 8
    assert len(recording.steps_at_once) > 10
    for run in recording.runs.values():
        assert run["output_tokens"].tolist() == [10 + i for i in range(30)]
        assert not run.isna().any(axis=None)
        order = run[["due_s", "submitted_s", "dispatched_s", "first_token_s", "finished_s"]]
        assert (np.diff(order.to_numpy(), axis=1) >= 0).all()
    mean_gap_s = [run["due_s"].diff().mean() for run in recording.runs.values()]
    assert mean_gap_s[0] > 2 * mean_gap_s[1], "three times the load, a third of the gaps"


@pytest.mark.usefixtures("ray_here")
def test_a_measurement_with_a_failed_request_is_none(tmp_path: Path) -> None:
    requests = [generation(1), generation(2, cap=50_000)]
    with (
        running_cluster(simulated_replica(tmp_path)) as (controller, _),
        pytest.raises(RequestFailedError, match=r"'r2' failed: .*needs 50020 tokens"),
    ):
        asyncio.run(run_open_loop(controller, requests, [0.0, 0.01]))
