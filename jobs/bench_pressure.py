"""`tiebreak bench pressure`: real engines short of memory, scheduled by vLLM, by the papers, by us.

All arms answer the same prompts with the same forecasts, arriving at the same times, one cluster
after the other. Lengths are what the model gives, greedily, under each request's own cap.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig, parse_config
from cluster.forecasting import network_source, state_path
from cluster.lifecycle import running_cluster
from cluster.prompts import PromptEncoder
from jobs.errors import InputError
from jobs.reading.inputs import JobRow, open_input
from policies.forecast import Forecast
from policies.request import RequestClass
from predictor.actor import PredictorActor
from predictor.messages import ForecastQuery

console = Console()

EVERYTHING = 1_000_000
"""A look-ahead that sends every request to an engine as soon as it comes."""


class Arm(msgspec.Struct, frozen=True):
    """One way to schedule.

    Attributes:
        name: What tables call it.
        policy: Policy bundle.
        scheduler: Inside the engines, `vllm` or `projected`.
        look_ahead: Requests that an engine is sent beyond its memory; None: as configured.
        engine_args: Further arguments of the engines.
        ordering: Another ordering than the bundle's.
    """

    name: str
    policy: str
    scheduler: str
    look_ahead: int | None = None
    engine_args: dict[str, Any] = {}
    ordering: str | None = None


ARMS = (
    Arm("vLLM, fcfs", "fcfs", "vllm", EVERYTHING, {"scheduling_policy": "fcfs"}),
    Arm("vLLM, priority (TIE score)", "tie", "vllm", EVERYTHING),
    Arm("TIE order, greedy admission", "tie", "vllm"),
    Arm("A_min", "a_min", "projected"),
    Arm("tiebreak", "tiebreak", "projected"),
    Arm("tiebreak in TIE order", "tiebreak", "projected", ordering="tie"),
)


class Row(msgspec.Struct, frozen=True):
    """What became of one request; seconds from when it was meant to be sent."""

    latency_s: float
    finished_s: float
    output_tokens: int
    prompt_tokens: int
    preemptions: int
    recomputed_tokens: int
    attempts: int


class Run(msgspec.Struct, frozen=True):
    """One arm under one seed."""

    rows: list[Row]
    answers: list[list[int]]


class Work(msgspec.Struct, frozen=True):
    """The requests of one seed, and when they are sent, in seconds from the start."""

    prompts: list[list[int]]
    caps: list[int]
    due_s: list[float]
    forecasts: list[Forecast]


def pressure_command(
    config: ClusterConfig,
    prompts: Annotated[
        Path, typer.Option("--input", help="Prompts, as for `tiebreak generate`.")
    ] = Path("jobs/data/demo_prompts.jsonl"),
    requests: Annotated[int, typer.Option(min=1, help="Requests of a run.")] = 300,
    caps: Annotated[
        tuple[int, int], typer.Option(help="Least and largest max_tokens, log-uniform between.")
    ] = (16, 384),
    span_s: Annotated[
        float, typer.Option(min=0, help="Seconds over which they arrive, a Poisson process.")
    ] = 30.0,
    kv_requests: Annotated[
        float, typer.Option(min=1, help="Typical requests that an engine's KV cache holds.")
    ] = 12.0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 3,
    arms: Annotated[str, typer.Option(help="Arms by number, from 1, with commas.")] = "",
    output: Annotated[
        Path, typer.Option(help="Folder that keeps finished runs; a second call goes on.")
    ] = Path("out/pressure"),
) -> None:
    """Compare admission and eviction on real engines whose KV cache is far too small."""
    rows = [row for row in open_input(str(prompts)).rows() if isinstance(row, JobRow)]
    if not rows:
        raise InputError(f"{prompts}: has no usable row, must have at least one prompt")
    chosen = _chosen(arms)
    works = [_work(config, rows, requests, caps, span_s, seed) for seed in range(seeds)]
    # A typical request has the mean prompt and half of the mean cap in memory, on average.
    sizes = [len(p) + c / 2 for work in works for p, c in zip(work.prompts, work.caps, strict=True)]
    blocks = math.ceil(kv_requests * float(np.mean(sizes)) / config.replicas.block_size)
    longest = max(
        len(p) + c for work in works for p, c in zip(work.prompts, work.caps, strict=True)
    )
    output.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Run]] = {}
    for arm in chosen:
        runs[arm.name] = _runs(config, arm, works, blocks, longest, output)
        console.log(f"{arm.name}: {len(works)} runs")
    console.print(_table(config, works, blocks, runs))


def _chosen(arms: str) -> list[Arm]:
    known = {str(number): arm for number, arm in enumerate(ARMS, 1)}
    numbers = arms.split(",") if arms else list(known)
    if unknown := [number for number in numbers if number not in known]:
        names = ", ".join(f"{number} {arm.name!r}" for number, arm in known.items())
        raise InputError(f"--arms names {unknown[0]!r}, known are: {names}")
    return [known[number] for number in numbers]


def _work(
    config: ClusterConfig,
    rows: Sequence[JobRow],
    requests: int,
    caps: tuple[int, int],
    span_s: float,
    seed: int,
) -> Work:
    rng = np.random.default_rng(seed)
    chosen = [rows[i] for i in rng.permutation(len(rows))[:requests]]
    while len(chosen) < requests:
        chosen += [rows[i] for i in rng.permutation(len(rows))[: requests - len(chosen)]]
    drawn = np.exp(rng.uniform(math.log(caps[0]), math.log(caps[1]), requests))
    limits = drawn.astype(int).tolist()
    encoder = PromptEncoder(config.model)
    tokens = [
        encoder.encode(r.messages if r.messages is not None else r.prompt or "") for r in chosen
    ]
    queries = [
        ForecastQuery(
            request_id=str(i),
            model=config.model,
            prompt_tokens=len(ids),
            max_tokens=cap,
            text=row.excerpt,
            temperature=0.0,
        )
        for i, (row, ids, cap) in enumerate(zip(chosen, tokens, limits, strict=True))
    ]
    due_s = np.sort(rng.uniform(0, span_s, requests)).tolist()
    return Work(tokens, limits, due_s, asyncio.run(_forecasts(config, queries)))


async def _forecasts(config: ClusterConfig, queries: list[ForecastQuery]) -> list[Forecast]:
    """What a cluster's predictor would say, in this process and beforehand, for every arm alike."""
    predictor = PredictorActor(
        str(state_path(config)),
        coverage=config.predictor.coverage,
        source=network_source(config),
        writes=False,
    )
    await predictor.ready()
    answers = [
        a
        for start in range(0, len(queries), 32)
        for a in await predictor.forecast(queries[start : start + 32])
    ]
    return [answer.forecast for answer in answers]


def _runs(
    config: ClusterConfig,
    arm: Arm,
    works: Sequence[Work],
    blocks: int,
    longest: int,
    output: Path,
) -> list[Run]:
    """The arm's runs, one per seed; those that are not kept already are made."""
    files = [output / f"{_file_name(arm.name)}-{seed}.json" for seed in range(len(works))]
    missing = [seed for seed, file in enumerate(files) if not file.exists()]
    if missing:
        with running_cluster(_configured(config, arm, blocks, longest)) as (controller, joined):
            if joined:
                raise InputError("a cluster is running already: take it down with `tiebreak down`")
            for seed in missing:
                run = asyncio.run(_run(controller, works[seed], f"{arm.name}/{seed}"))
                files[seed].write_bytes(msgspec.json.encode(run))
    return [msgspec.json.decode(file.read_bytes(), type=Run) for file in files]


def _configured(config: ClusterConfig, arm: Arm, blocks: int, longest: int) -> ClusterConfig:
    values = config.model_dump(mode="json")
    values["policy"] |= {"name": arm.policy, "ordering": arm.ordering}
    replicas = values["replicas"]
    replicas["scheduler"] = arm.scheduler
    if arm.look_ahead is not None:
        replicas["look_ahead"] = arm.look_ahead
    replicas["max_model_len"] = max(longest, 64)
    replicas["engine_args"] |= {"num_gpu_blocks_override": blocks + 1, **arm.engine_args}
    values["predictor"]["network"] = "none"  # the forecasts come with the requests
    return parse_config(values)


async def _run(controller: Any, work: Work, name: str) -> Run:
    async with ClusterClient(controller) as client:
        await client.status()
        started_s = time.monotonic()

        async def one(index: int) -> tuple[Row, list[int]]:
            due_s = work.due_s[index]
            await asyncio.sleep(started_s + due_s - time.monotonic())
            completion = await client.complete(
                GenerationRequest(
                    f"{name}/{index}",
                    work.prompts[index],
                    work.caps[index],
                    {"temperature": 0.0},
                    request_class=RequestClass.OFFLINE,
                    forecast=work.forecasts[index],
                )
            )
            finished_s = time.monotonic() - started_s
            return _row(completion, finished_s, due_s), completion.token_ids

        done = await asyncio.gather(*(one(index) for index in range(len(work.prompts))))
        return Run([row for row, _ in done], [tokens for _, tokens in done])


def _row(completion: Completion, finished_s: float, due_s: float) -> Row:
    if completion.error:
        raise RuntimeError(f"request {completion.request_id!r} failed: {completion.error}")
    return Row(
        latency_s=finished_s - due_s,
        finished_s=finished_s,
        output_tokens=len(completion.token_ids),
        prompt_tokens=completion.prompt_tokens,
        preemptions=completion.preemptions,
        recomputed_tokens=completion.recomputed_tokens,
        attempts=completion.attempts,
    )


def _table(
    config: ClusterConfig, works: Sequence[Work], blocks: int, runs: dict[str, list[Run]]
) -> Table:
    first = next(iter(runs.values()))
    lengths = [row.output_tokens for run in first for row in run.rows]
    spread = np.percentile(lengths, [10, 50, 90])
    ranks = [
        stats.kendalltau(
            [min(math.exp(f.mu), cap) for f, cap in zip(work.forecasts, work.caps, strict=True)],
            [row.output_tokens for row in run.rows],
        ).statistic
        for work, run in zip(works, first, strict=True)
    ]
    makespans = [max(row.finished_s for row in run.rows) for run in first]
    load = np.mean(makespans) / max(max(work.due_s[-1] for work in works), 1e-9)
    count = len(works[0].prompts)
    table = Table(
        title=f"{config.replicas.count} engines of {blocks} blocks of {config.replicas.block_size} "
        f"tokens; {count} prompts, {len(works)} seeds, answers of {spread[0]:.0f}, "
        f"{spread[1]:.0f}, {spread[2]:.0f} tokens (10th, 50th, 90th percentile), arriving at "
        f"{load:.1f} times capacity; forecasts rank them at tau {np.mean(ranks):.2f}",
        title_justify="left",
        caption="Mean over seeds and standard deviation; ratios are of means, and of each seed. "
        "Recomputed: tokens whose KV was computed again, over prompt and output tokens. Latencies "
        "count from when a request was meant to be sent; per token: over the answer's length.",
        caption_justify="left",
    )
    table.add_column("")
    base = [_figures(run) for run in first]
    columns = []
    for name, made in runs.items():
        table.add_column(name, justify="right")
        figures = [_figures(run) for run in made]
        equal = sum(
            a == b
            for run, other in zip(made, first, strict=True)
            for a, b in zip(run.answers, other.answers, strict=True)
        )
        columns.append(
            (
                _spread(figures, "recomputed", 1, 100, " %"),
                _spread(figures, "evictions", 0),
                _spread(figures, "moved", 0),
                _spread(figures, "per_token_s", 3),
                _ratio(base, figures, "per_token_s"),
                _spread(figures, "per_token_p90_s", 3),
                _spread(figures, "latency_s", 1),
                _spread(figures, "latency_p99_s", 1),
                _spread(figures, "makespan_s", 1),
                _ratio(figures, base, "makespan_s"),
                f"{equal / (count * len(made)):.0%}",
            )
        )
    for label, *cells in zip(_LABELS, *columns, strict=True):
        table.add_row(label, *cells)
    return table


_LABELS = (
    "recomputed",
    "evictions",
    "moved to another engine",
    "per token, mean (s)",
    "... first arm's over this one's",
    "per token, p90 (s)",
    "latency, mean (s)",
    "latency, p99 (s)",
    "makespan (s)",
    "... over the first arm's",
    "answers equal to the first arm's",
)


def _figures(run: Run) -> dict[str, float]:
    latency = np.array([row.latency_s for row in run.rows])
    per_token = latency / [max(row.output_tokens, 1) for row in run.rows]
    useful = sum(row.prompt_tokens + row.output_tokens for row in run.rows)
    return {
        "recomputed": sum(row.recomputed_tokens for row in run.rows) / useful,
        "evictions": float(sum(row.preemptions for row in run.rows)),
        "moved": float(sum(row.attempts - 1 for row in run.rows)),
        "per_token_s": float(per_token.mean()),
        "per_token_p90_s": float(np.percentile(per_token, 90)),
        "latency_s": float(latency.mean()),
        "latency_p99_s": float(np.percentile(latency, 99)),
        "makespan_s": max(row.finished_s for row in run.rows),
    }


def _ratio(over: Sequence[dict[str, float]], under: Sequence[dict[str, float]], name: str) -> str:
    """Of the means over seeds, and of the seeds one by one."""
    each = ", ".join(f"{a[name] / b[name]:.2f}" for a, b in zip(over, under, strict=True))
    mean = sum(f[name] for f in over) / sum(f[name] for f in under)
    return f"{mean:.2f} ({each})"


def _spread(
    figures: Sequence[dict[str, float]], name: str, digits: int, scale: float = 1, unit: str = ""
) -> str:
    values = np.array([f[name] for f in figures]) * scale
    return f"{values.mean():.{digits}f}{unit} ± {values.std():.{digits}f}"


def _file_name(arm: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in arm).strip("-").lower()
