"""`tiebreak bench predictor`: what a learned forecast costs, beside the engine's own prefill."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig, ConfigError
from cluster.forecasting import network_source
from cluster.prompts import PromptEncoder
from jobs.bench_throughput import Work, run_direct
from jobs.errors import InputError
from jobs.reading.inputs import JobRow, open_input
from predictor.network_source import NetworkSource
from predictor.prompts import Prompts

if TYPE_CHECKING:
    from predictor.learned import LearnedForecaster

BATCHES = (1, 8, 32)
REQUESTS_PER_S = 100.0
"""Rate for which the share of a core is told."""

console = Console()


def predictor_command(
    config: ClusterConfig,
    prompts: Annotated[
        Path, typer.Option("--input", help="Prompts, as for `tiebreak generate`.")
    ] = Path("jobs/data/demo_prompts.jsonl"),
    prefill: Annotated[
        bool, typer.Option(help="Start an engine and time its prefill of the same prompts too.")
    ] = True,
) -> None:
    """Time the learned forecasts on one core, beside one engine's prefill of the same prompts."""
    source = network_source(config)
    if source.folder is None:
        raise ConfigError(
            f"no network for {config.model}: give --predictor.network FOLDER, as `tiebreak train` "
            "writes it"
        )
    rows = [row for row in open_input(str(prompts)).rows() if isinstance(row, JobRow)]
    if not rows:
        raise InputError(f"{prompts}: has no usable row, must have at least one prompt")
    encoder = PromptEncoder(config.model)
    tokens = [
        encoder.encode(r.messages if r.messages is not None else r.prompt or "") for r in rows
    ]
    read = Prompts(
        text=[row.excerpt for row in rows],
        model=[config.model] * len(rows),
        prompt_tokens=np.array([len(ids) for ids in tokens]),
        max_tokens=np.array([row.sampling.get("max_tokens", 256) for row in rows]),
        temperature=np.zeros(len(rows)),
    )
    table = Table(
        title=f"{len(rows):,} prompts of {read.prompt_tokens.mean():.0f} tokens on average, one "
        f"core, network {source.name}",
        title_justify="left",
    )
    for name in ("", "ms per request", "requests/s", f"cores at {REQUESTS_PER_S:g} requests/s"):
        table.add_column(name, justify="right" if name else "left")
    with _one_core():
        timed = [(f"forecast, batches of {b}", _forecast_s(source, read, b)) for b in BATCHES]
        timed.append(("forecast, prompt seen before", _cached_s(source, read)))
    if prefill:
        timed.append((f"prefill, {config.model}", _prefill_s(config, tokens)))
    for name, seconds in timed:
        table.add_row(
            name,
            f"{seconds * 1e3:.3f}",
            f"{1 / seconds:,.0f}",
            f"{seconds * REQUESTS_PER_S:.2f}",
        )
    if prefill:
        ratio = timed[len(BATCHES) - 1][1] / timed[-1][1]
        table.caption = f"a forecast in batches of {BATCHES[-1]} costs {ratio:.2f} of a prefill"
        table.caption_justify = "left"
    console.print(table)


def _forecast_s(source: NetworkSource, prompts: Prompts, batch: int) -> float:
    """Seconds per prompt, none seen before."""
    forecaster = source.load()
    forecaster.predict(_other(prompts.take(range(min(batch, len(prompts))))))  # warm, uncached
    return _timed(forecaster, prompts, batch)


def _cached_s(source: NetworkSource, prompts: Prompts) -> float:
    """Seconds per prompt in the largest batches, all seen before."""
    forecaster = source.load()
    forecaster.predict(prompts)
    return _timed(forecaster, prompts, BATCHES[-1])


def _timed(forecaster: LearnedForecaster, prompts: Prompts, batch: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(prompts), batch):
        forecaster.predict(prompts.take(range(start, min(start + batch, len(prompts)))))
    return (time.perf_counter() - started) / len(prompts)


def _other(prompts: Prompts) -> Prompts:
    """Other texts of the same lengths."""
    return Prompts(
        [text[::-1] for text in prompts.text],
        prompts.model,
        prompts.prompt_tokens,
        prompts.max_tokens,
        prompts.temperature,
    )


def _prefill_s(config: ClusterConfig, tokens: list[list[int]]) -> float:
    """Seconds per prompt until its first token, all prompts at once in one engine on one core."""
    replicas = config.replicas.model_copy(
        update={
            "count": 1,
            "cpus_per_replica": 1,
            "engine_args": {**config.replicas.engine_args, "enable_prefix_caching": False},
        }
    )
    work: Work = [(ids, 1) for ids in tokens]
    return run_direct(config.model_copy(update={"replicas": replicas}), work).wall_s / len(work)


@contextmanager
def _one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
