"""What a real replica did with given requests, and all that a simulation of it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import ray

from cluster.asking import asked
from cluster.call import GenerationRequest
from cluster.config import ClusterConfig
from cluster.journal_events import Decided, Forecasted, Length, Submitted
from cluster.journal_reader import JournalReader
from cluster.lifecycle import running_cluster
from cluster.membership.engine_choice import engine_spec, uses_gpus
from cluster.messages import NAMESPACE, ClusterStatus, ReplicaStatus
from jobs.errors import InputError
from jobs.open_loop import run_open_loop
from policies.batch import Floats
from replicas.batch_limits import BatchLimits
from replicas.simulated_engine import SimulatedEngineOptions
from replicas.step_log import STEPS_KEPT

WARM_UP_REQUESTS = 8
"""Sent before anything is measured: an engine's first steps are slower than all that follow."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One replica at several loads.

    Attributes:
        limits: What the replica holds and computes at once.
        capacity_per_s: Requests per second when all came at once.
        steps_at_once: The replica's steps in that run, shape `(steps, 5)` as of `StepLog.read`.
        steps: By load, its steps.
        runs: By load as a share of the capacity, one row per request in order of arrival: `due_s`,
            `submitted_s`, `dispatched_s`, `first_token_s` and `finished_s` in seconds from the
            start, `prompt_tokens`, `max_tokens`, `output_tokens`, and `mu`, `sigma`, `lower` and
            `upper` of the forecast that it was dispatched with.
    """

    limits: BatchLimits
    capacity_per_s: float
    steps_at_once: Floats
    steps: dict[float, Floats]
    runs: dict[float, pd.DataFrame]

    @property
    def requests(self) -> int:
        """Requests of each run."""
        return max(map(len, self.runs.values()))


def record(
    config: ClusterConfig, requests: Sequence[GenerationRequest], loads: Sequence[float], seed: int
) -> Recording:
    """Measure the capacity with all requests at once, then send them again at each load.

    Args:
        config: Of a cluster with one replica, whose journal is a file on this machine.
        requests: What to send.
        loads: Arrival rates as shares of the capacity.
        seed: Of the Poisson arrivals.

    Raises:
        InputError: A cluster runs already, which would be measured with its own settings.
    """
    assert config.journal is not None, "forecasts and dispatches come from the journal"
    rng = np.random.default_rng(seed)
    steps: dict[float, Floats] = {}
    runs: dict[float, pd.DataFrame] = {}
    with running_cluster(config) as (controller, joined):
        if joined:
            raise InputError("a cluster runs already: `tiebreak down` first, this starts its own")
        status: ClusterStatus = asked(controller.status)
        (replica,) = status.replicas
        limits = _limits(config, replica)
        watch = _StepWatch(replica.replica_id)
        _run(controller, requests[:WARM_UP_REQUESTS], "warm-up", np.zeros(WARM_UP_REQUESTS))
        watch.new_steps()
        at_once = _run(controller, requests, "at-once", np.zeros(len(requests)))
        steps_at_once = watch.new_steps()
        capacity_per_s = len(requests) / float(at_once["finished_s"].max())
        for load in loads:
            gaps_s = rng.exponential(1.0 / (load * capacity_per_s), len(requests))
            runs[load] = _run(controller, requests, f"load-{load:g}", gaps_s.cumsum())
            steps[load] = watch.new_steps()
    dispatches = read_dispatches(Path(config.journal))
    for load, run in runs.items():
        told = dispatches.loc[run["request_id"]].reset_index(drop=True)
        told[["submitted_s", "dispatched_s"]] -= run.attrs["start_s"]
        runs[load] = pd.concat([run, told], axis=1)
    return Recording(limits, capacity_per_s, steps_at_once, steps, runs)


class _StepWatch:
    """Tells a replica's steps apart by when they were asked for."""

    def __init__(self, replica_id: str) -> None:
        self._actor: Any = ray.get_actor(replica_id, namespace=NAMESPACE)
        self._seen = 0

    def new_steps(self) -> Floats:
        """The steps since the last call, as far as the replica still has them."""
        steps: Floats = ray.get(self._actor.steps.remote())
        # A full log drops its oldest: all that is left is of the latest, longest run.
        new = steps[self._seen :] if len(steps) < STEPS_KEPT else steps
        self._seen = len(steps)
        return new


def _run(
    controller: Any, requests: Sequence[GenerationRequest], name: str, due_s: Floats
) -> pd.DataFrame:
    """Send requests, under ids of this run, and tell what became of each."""
    named = [
        msgspec.structs.replace(request, request_id=f"{name}/{index}")
        for index, request in enumerate(requests)
    ]
    run = asyncio.run(run_open_loop(controller, named, due_s.tolist()[: len(named)]))
    frame = pd.DataFrame([asdict(observed) for observed in run.observed])
    frame["prompt_tokens"] = [len(request.prompt_token_ids) for request in named]
    frame["max_tokens"] = [request.max_tokens for request in named]
    frame["request_class"] = [int(request.request_class) for request in named]
    frame.attrs["start_s"] = run.start_s
    return frame


def read_dispatches(journal: Path) -> pd.DataFrame:
    """When each request of a journal was submitted and first dispatched, and on which forecast.

    Returns:
        By request id: `submitted_s` and `dispatched_s` of the controller's clock, and the
        forecast's `mu`, `sigma`, `lower` and `upper`.

    Raises:
        JournalError: The journal cannot be read.
    """
    reader = JournalReader(journal)
    forecasts: dict[str, Length] = {}
    submitted_s: dict[str, float] = {}
    rows: dict[str, dict[str, float]] = {}
    for entry in reader:
        match entry:
            case Submitted():
                forecasts[entry.request_id] = entry.forecast
                submitted_s.setdefault(entry.request_id, entry.now)
            case Forecasted():
                forecasts[reader.request_id(entry.request)] = entry.forecast
            case Decided():
                for action in entry.actions:
                    request_id = reader.request_id(action.request)
                    if action.attempt and request_id not in rows:
                        forecast = msgspec.structs.asdict(forecasts[request_id])
                        del forecast["source"]
                        times = {"submitted_s": submitted_s[request_id], "dispatched_s": entry.now}
                        rows[request_id] = times | forecast
    return pd.DataFrame.from_dict(rows, orient="index")


def _limits(config: ClusterConfig, replica: ReplicaStatus) -> BatchLimits:
    args = engine_spec(config, uses_gpus(config)).args
    if config.replicas.engine == "simulated":
        return SimulatedEngineOptions(**args).limits
    if "max_num_batched_tokens" not in args:
        raise InputError(
            "the simulation needs to know how many tokens a step may compute: set "
            "--replicas.engine_args '{max_num_batched_tokens: 8192}'"
        )
    budget = int(args["max_num_batched_tokens"])
    return BatchLimits(replica.kv_blocks, replica.block_size, replica.slots, budget)
