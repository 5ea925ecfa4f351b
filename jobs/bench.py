"""`tiebreak bench`: what the scheduler costs and gives, every figure beside its reference."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from cluster.control.rehearsal import rehearse
from cluster.scheduler import ClusterScheduler, Dispatch
from jobs.bench_faults import faults_command
from jobs.bench_gateway import gateway_command
from jobs.bench_look_ahead import look_ahead_command
from jobs.bench_memory import memory_command
from jobs.bench_mixed import mixed_command
from jobs.bench_observing import observing_command
from jobs.bench_overload import overload_command
from jobs.bench_parity import parity_command
from jobs.bench_predictor import predictor_command
from jobs.bench_pressure import pressure_command
from jobs.bench_scheduler import scheduler_command
from jobs.bench_simulation import simulation_command
from jobs.bench_throughput import compare
from jobs.options import with_config
from policies.bundle import DEFAULT_POLICY, policy
from policies.forecast import Forecast
from policies.ledger import Replica
from policies.request import Request

bench = typer.Typer(help="Measure the scheduler, every figure beside its reference.")
console = Console()

bench.command("faults")(with_config(faults_command))
bench.command("gateway")(with_config(gateway_command))
bench.command("look-ahead")(with_config(look_ahead_command))
bench.command("memory")(with_config(memory_command))
bench.command("mixed")(with_config(mixed_command))
bench.command("observing")(with_config(observing_command))
bench.command("overload")(with_config(overload_command))
bench.command("parity")(with_config(parity_command))
bench.command("predictor")(with_config(predictor_command))
bench.command("pressure")(with_config(pressure_command))
bench.command("scheduler")(scheduler_command)
bench.command("simulation")(simulation_command)

MIB = 1 << 20
REPORT_STEPS = 10
"""Decode steps between two reports of a replica in the core's bench."""


@bench.command()
def core(
    replicas: Annotated[int, typer.Option(min=1, help="Replicas.")] = 64,
    queued: Annotated[int, typer.Option(min=1, help="Requests waiting at the start.")] = 100_000,
    reports: Annotated[int, typer.Option(min=1, help="Replica reports to play.")] = 20_000,
    policy_name: Annotated[str, typer.Option("--policy", help="Policy bundle.")] = DEFAULT_POLICY,
    seed: Annotated[int, typer.Option(help="Of lengths and events.")] = 0,
) -> None:
    """Time the scheduling core alone: decisions and events, with replicas that make progress."""
    started = time.perf_counter()
    rehearse(policy(policy_name))
    ready_s = time.perf_counter() - started
    table = _core(replicas, queued, reports, policy_name, seed)
    table.caption = f"machine code ready in {ready_s:.1f} s (kept on disk, compiled when it is not)"
    table.caption_justify = "left"
    console.print(table)


def _core(replicas: int, queued: int, reports: int, policy_name: str, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    scheduler = ClusterScheduler(policy(policy_name))
    for index in range(replicas):
        scheduler.replica_joined(Replica(f"r{index}", 1024, 16, 256, 8192), 0.0)
    lengths, requests = _workload(rng, queued)
    times: dict[str, list[float]] = {"submit": [], "decision": [], "report": []}
    for request, forecast in requests:
        started = time.perf_counter()
        scheduler.submit(request, forecast, 0.0)
        times["submit"].append(time.perf_counter() - started)
    running: dict[str, dict[str, int]] = {f"r{index}": {} for index in range(replicas)}
    started = time.perf_counter()
    first = [a for a in scheduler.decide(0.0) if isinstance(a, Dispatch)]
    first_s = time.perf_counter() - started
    for action in first:
        running[action.replica_id][action.request.request_id] = 0
    decisions = 0
    for event in range(reports):
        replica_id = f"r{rng.integers(replicas)}"
        tokens = running[replica_id]
        ended = []
        for name in tokens:
            tokens[name] += REPORT_STEPS
            if tokens[name] >= lengths[name]:
                ended.append(name)
        started = time.perf_counter()
        scheduler.progressed(replica_id, tokens, event * 0.01)
        for name in ended:
            scheduler.finished(replica_id, name, lengths[name], event * 0.01)
        reported = time.perf_counter()
        actions = scheduler.decide(event * 0.01)
        decided = time.perf_counter()
        times["report"].append(reported - started)
        # A round that dispatches nothing is a decision too: to keep everybody waiting.
        times["decision"] += [(decided - reported) / max(1, len(actions))] * max(1, len(actions))
        decisions += len(actions)
        for name in ended:
            del tokens[name]
        for dispatch in actions:
            assert isinstance(dispatch, Dispatch)
            running[dispatch.replica_id][dispatch.request.request_id] = 0
    table = Table(
        title=f"core, policy {policy_name}: {replicas} replicas, {queued:,} queued, "
        f"{decisions:,} dispatches; first decision keys all and dispatches {len(first):,} in "
        f"{first_s:.2f} s",
        title_justify="left",
    )
    for column in ("", "median (ms)", "p99 (ms)", "calls"):
        table.add_column(column, justify="right" if column else "left")
    for name, label in (
        ("decision", "per decision"),
        ("report", "per report"),
        ("submit", "submit"),
    ):
        p50, p99 = np.percentile(np.array(times[name]) * 1e3, [50, 99])
        table.add_row(label, f"{p50:.3f}", f"{p99:.3f}", f"{len(times[name]):,}")
    return table


def _workload(
    rng: np.random.Generator, count: int
) -> tuple[dict[str, int], list[tuple[Request, Forecast]]]:
    """Requests with log-t lengths of a median around 150 tokens and prompts of 50 to 1,500."""
    cap = 2048
    mu = rng.normal(5.0, 1.0, count).clip(0.0, 7.5)
    sigma = rng.uniform(0.2, 0.8, count)
    prompts = rng.integers(50, 1500, count)
    drawn = np.exp(mu + sigma * rng.standard_t(3.5, count))
    lengths = np.clip(drawn, 1, cap).astype(int)
    requests = []
    for i in range(count):
        forecast = Forecast(
            mu=float(mu[i]),
            sigma=float(sigma[i]),
            lower=max(1, int(math.exp(mu[i] - 2 * sigma[i]))),
            upper=max(2, int(math.exp(mu[i] + 2 * sigma[i]))),
        )
        requests.append((Request(f"q{i}", int(prompts[i]), cap), forecast))
    return {f"q{i}": int(lengths[i]) for i in range(count)}, requests


@bench.command()
@with_config
def throughput(
    config: ClusterConfig,
    prompts: Annotated[
        Path, typer.Option("--input", help="Prompts, as for `tiebreak generate`.")
    ] = Path("jobs/data/demo_prompts.jsonl"),
    max_tokens: Annotated[int, typer.Option(min=1, help="Of rows that do not say it.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Times both arms are run.")] = 1,
) -> None:
    """Compare the cluster with plain vllm.LLM engines that are pinned and configured alike."""
    console.print(compare(config, str(prompts), max_tokens, rounds))
