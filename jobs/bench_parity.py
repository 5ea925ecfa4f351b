"""The simulation against a real replica: the same requests in both, figure beside figure."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table

from cluster.call import GenerationRequest
from cluster.config import ClusterConfig
from cluster.controller import TICK_S
from cluster.prompts import PromptEncoder
from cluster.simulation import simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from jobs.errors import InputError
from jobs.parity_recording import Recording, record
from jobs.reading.inputs import open_input
from jobs.reading.rows import JobRow
from policies.bundle import Policy
from replicas.calibration import FitError, error_of, fit

BAR = 0.15
"""Largest relative deviation of a simulated figure from the real one that passes."""

STATISTICS: dict[str, Callable[[pd.Series], float]] = {
    "mean": lambda values: float(values.mean()),
    "p50": lambda values: float(values.quantile(0.5)),
    "p90": lambda values: float(values.quantile(0.9)),
    "p99": lambda values: float(values.quantile(0.99)),
}

METRICS = ("latency (s)", "TTFT (s)", "per token (ms)")

console = Console()


def parity_command(
    config: ClusterConfig,
    prompts: Annotated[
        Path, typer.Option("--input", help="Prompts, as for `tiebreak generate`.")
    ] = Path("jobs/data/demo_prompts.jsonl"),
    max_tokens: Annotated[int, typer.Option(min=1, help="Most output tokens of each.")] = 96,
    loads: Annotated[
        str, typer.Option(help="Arrival rates as shares of the capacity, with commas between.")
    ] = "0.5,1,2",
    seed: Annotated[int, typer.Option(help="Of the Poisson arrivals.")] = 0,
    rows: Annotated[
        Path | None, typer.Option(help="Parquet file for every request, real and simulated.")
    ] = None,
) -> None:
    """Compare one real replica with its simulation: latencies of the same requests."""
    try:
        shares = [float(load) for load in loads.split(",")]
        if not all(0 < share < float("inf") for share in shares):
            raise ValueError
    except ValueError:
        raise InputError(f"--loads is {loads!r}: give positive numbers like 0.5,1,2") from None
    recording = record_parity(config, str(prompts), max_tokens, shares, seed)
    comparisons = list(compare(recording, config))
    console.print(report(recording, config.build_policy(), comparisons), highlight=False)
    if rows is not None:
        tables = [run.assign(load=load, arm="real") for load, run in recording.runs.items()]
        tables += [c.virtual.assign(load=c.load, arm=c.fitted_on) for c in comparisons]
        pd.concat(tables).to_parquet(rows)


def record_parity(
    config: ClusterConfig, input_uri: str, max_tokens: int, loads: Sequence[float], seed: int
) -> Recording:
    """Run one replica of the configured cluster at each load.

    It runs without prefix caching, of which the simulation has none; the requests are greedy and of
    the online class, so that no token waits for company on its way here.

    Args:
        config: Of the cluster.
        input_uri: Prompts, as for `tiebreak generate`.
        max_tokens: Most output tokens of each.
        loads: Arrival rates as shares of what the replica finishes when all come at once.
        seed: Of the Poisson arrivals.

    Raises:
        InputError: The prompts cannot be read, or a cluster runs already.
    """
    encoder = PromptEncoder(config.model)
    requests = [
        GenerationRequest(
            request_id=row.row_id,
            prompt_token_ids=encoder.encode(
                row.messages if row.messages is not None else row.prompt or ""
            ),
            max_tokens=min(max_tokens, int(row.sampling.get("max_tokens", max_tokens))),
            sampling={"temperature": 0.0},
        )
        for row in open_input(input_uri).rows()
        if isinstance(row, JobRow)
    ]
    with tempfile.TemporaryDirectory() as folder:
        return record(_alone(config, Path(folder) / "journal"), requests, loads, seed)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load in the simulation.

    Attributes:
        load: As a share of the capacity.
        fitted_on: Which steps the step time was fitted on.
        error: Of that step time on the steps of this load.
        virtual: The rows of the recorded run with simulated times.
    """

    load: float
    fitted_on: str
    error: FitError
    virtual: pd.DataFrame


def compare(recording: Recording, config: ClusterConfig) -> Iterator[Comparison]:
    """Simulate every recorded load, with step times of two fits.

    That on the steps of the run at once says how well a calibration carries over; that on the steps
    of the load itself leaves only queueing, batching and decisions to differ.
    """
    at_once = fit(recording.steps_at_once)
    fleet = FleetSpec(
        replicas=1,
        limits=recording.limits,
        step_time=at_once.step_time,
        max_model_len=config.replicas.max_model_len,
        look_ahead=config.replicas.slots_ahead,
    )
    policy = config.build_policy()
    for load, run in recording.runs.items():
        steps = recording.steps[load]
        for name, fitted in (("all at once", at_once), ("this load", fit(steps))):
            spec = replace(fleet, step_time=fitted.step_time)
            error = error_of(fitted.step_time, steps)
            yield Comparison(load, name, error, simulated(run, policy, spec))


def simulated(run: pd.DataFrame, policy: Policy, fleet: FleetSpec) -> pd.DataFrame:
    """A recorded run in virtual time: its rows, with simulated times.

    A message takes what it took from the sender to the controller, in the median: one until the
    controller knows of a request or of the end of one, one from there to the replica, and one with
    the answer's tokens to the sender.
    """
    message_s = float((run["submitted_s"] - run["due_s"]).median())
    fleet = replace(fleet, dispatch_latency_s=2 * message_s + TICK_S)
    ints = ("prompt_tokens", "max_tokens", "output_tokens", "request_class", "lower", "upper")
    chunk = WorkloadChunk(
        arrival_s=run["due_s"].to_numpy(np.float64),
        mu=run["mu"].to_numpy(np.float64),
        sigma=run["sigma"].to_numpy(np.float64),
        **{name: run[name].to_numpy(np.int64) for name in ints},
    )
    batches: list[pa.RecordBatch] = []
    simulate(policy, [chunk], fleet, rows=batches.append)
    rows = pa.Table.from_batches(batches).to_pandas().sort_values("request")
    return run.assign(
        dispatched_s=rows["dispatched_s"].to_numpy(np.float64),
        first_token_s=rows["first_token_s"].to_numpy(np.float64) + message_s,
        finished_s=rows["finished_s"].to_numpy(np.float64) + message_s,
    )


def report(
    recording: Recording, policy: Policy, comparisons: Sequence[Comparison]
) -> RenderableType:
    """Real and simulated figures with their ratios."""
    fits = list(dict.fromkeys(comparison.fitted_on for comparison in comparisons))
    table = Table("load", "", "", "real", box=None, pad_edge=False)
    for name in fits:
        table.add_column(f"fitted on {name}", justify="right")
        table.add_column("/ real", justify="right")
    ratios: dict[str, list[float]] = {name: [] for name in fits}
    for load, run in recording.runs.items():
        real = times(run)
        virtual = {c.fitted_on: times(c.virtual) for c in comparisons if c.load == load}
        for metric in METRICS:
            for label, statistic in STATISTICS.items():
                measured = statistic(real[metric])
                cells = [f"{measured:,.3g}"]
                for name in fits:
                    predicted = statistic(virtual[name][metric])
                    ratios[name].append(predicted / measured)
                    cells += [f"{predicted:,.3g}", _coloured(predicted / measured)]
                table.add_row(f"{load:g}", metric, label, *cells)
    lines = []
    for name in fits:
        within = sum(abs(ratio - 1) <= BAR for ratio in ratios[name])
        errors = [f"{c.error.total:+.1%} at {c.load:g}" for c in comparisons if c.fitted_on == name]
        lines.append(
            f"step time fitted on {name}: {within} of {len(ratios[name])} figures within "
            f"{BAR:.0%}; its error over all steps is {', '.join(errors)}"
        )
    return Group(
        f"one replica against its simulation, policy {policy.name}, {recording.requests:,} "
        f"requests per load, capacity (all at once) {recording.capacity_per_s:.2f} requests/s",
        table,
        *lines,
    )


def _coloured(ratio: float) -> str:
    return f"[{'green' if abs(ratio - 1) <= BAR else 'red'}]{ratio:.2f}[/]"


def times(run: pd.DataFrame) -> pd.DataFrame:
    """`METRICS` of every request, from when it was due."""
    latency_s = run["finished_s"] - run["due_s"]
    per_token_ms = 1e3 * latency_s / run["output_tokens"]
    columns = (latency_s, run["first_token_s"] - run["due_s"], per_token_ms)
    return pd.DataFrame(dict(zip(METRICS, columns, strict=True)))


def _alone(config: ClusterConfig, journal: Path) -> ClusterConfig:
    """The configuration with one replica that computes every prompt, and with a journal."""
    replicas = config.replicas
    engine_args = replicas.engine_args
    if replicas.engine == "vllm":
        engine_args = {"enable_prefix_caching": False} | engine_args
    return config.model_copy(
        update={
            "journal": str(journal),
            "replicas": replicas.model_copy(update={"count": 1, "engine_args": engine_args}),
        }
    )
