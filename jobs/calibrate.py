"""`tiebreak calibrate`: the step time of one replica, fitted to steps that it is made to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from cluster.lifecycle import StartError, connect_ray
from cluster.membership.engine_choice import engine_spec, uses_gpus
from policies.batch import Floats
from replicas.calibration import Calibration, fit, save_step_time
from replicas.protocol import EngineInfo, EngineStartError
from replicas.step_sweep import SweepActor
from replicas.step_time import StepTimeError

console = Console()
messages = Console(stderr=True)


def calibrate(
    config: ClusterConfig,
    output: Annotated[Path, typer.Option(help="File to write; `simulate --step` reads it.")] = Path(
        "out/step_time.yaml"
    ),
    output_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens that each request of the sweep produces.")
    ] = 32,
    seed: Annotated[int, typer.Option(help="Of the prompts and the mixed part.")] = 0,
) -> None:
    """Measure the steps of one replica over prompt lengths and batch sizes, and fit a step time.

    Run it where nothing else runs: whatever takes time from the replica counts as its own.
    """
    with messages.status("measuring one replica: a few minutes"):
        info, steps = _measure(config, output_tokens, seed)
    calibration = fit(steps)
    engine = f"{info.kind}, {config.model}, max_num_seqs {info.max_num_seqs}"
    save_step_time(output, calibration, engine)
    console.print(report(calibration, engine))
    console.print(f"wrote {output}", highlight=False)


def report(calibration: Calibration, engine: str) -> Table:
    """The coefficients and how well they foretell steps that were held out."""
    error, step_time = calibration.error, calibration.step_time
    assert step_time.measured is not None, "it was fitted"
    table = Table(
        title=f"step time of {engine}: {calibration.steps:,} steps, {calibration.outliers:,} "
        "outliers left out",
        title_justify="left",
        caption=f"on {error.steps:,} steps held out: relative error {error.median:.1%} (median), "
        f"{error.p90:.1%} (p90), {error.total:+.1%} (sum of all); R2 {error.r2:.3f}",
        caption_justify="left",
    )
    table.add_column("coefficient")
    table.add_column("microseconds", justify="right")
    table.add_column("measured up to", justify="right")
    most = step_time.measured
    for name, seconds, limit in (
        ("per step", step_time.base_s, ""),
        ("per prompt token", step_time.per_prefill_token_s, f"{most.prefill_tokens:,}"),
        ("per query-key pair of prefill", step_time.per_prefill_pair_s, f"{most.prefill_pairs:,}"),
        ("per decoding request", step_time.per_decode_token_s, f"{most.decode_tokens:,}"),
        ("per KV token attended to", step_time.per_kv_token_s, f"{most.context_tokens:,}"),
    ):
        table.add_row(name, f"{seconds * 1e6:,.4g}", limit)
    return table


def _measure(config: ClusterConfig, output_tokens: int, seed: int) -> tuple[EngineInfo, Floats]:
    """Run the sweep on an engine of its own, placed by Ray as a replica would be."""
    started_ray = connect_ray(config.ray.address)
    on_gpu, replicas = uses_gpus(config), config.replicas
    cores = 0 if on_gpu or replicas.engine == "simulated" else replicas.cpus_per_replica
    actor: Any = ray.remote(SweepActor)
    placed = actor.options(
        num_cpus=cores,
        num_gpus=replicas.tensor_parallel_size if on_gpu else 0,
        resources=replicas.resources,
    ).remote()
    try:
        ray.get(placed.__ray_ready__.remote(), timeout=replicas.placement_timeout_s)
        measured: tuple[EngineInfo, Floats] = ray.get(
            placed.measure.remote(
                engine_spec(config, on_gpu, plain=True), cores, output_tokens, seed
            )
        )
    except ray.exceptions.GetTimeoutError as error:
        raise StartError(
            f"Ray found no room for a replica within {replicas.placement_timeout_s:g} s: other "
            "replicas may hold the accelerators or cores; `tiebreak down` stops a cluster"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EngineStartError):
            raise StartError(str(error.cause)) from error
        if isinstance(error.cause, StepTimeError):
            raise StepTimeError(str(error.cause)) from error
        raise
    finally:
        ray.kill(placed)
        if started_ray:
            ray.shutdown()
    return measured
