"""`tiebreak bench look-ahead`: what it gives and costs to send engines requests ahead of room.

The control plane is real and so is its way there and back; the engines are simulated, with the
step times of an accelerator, so that it is not the machine's cores that are measured.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig, parse_config
from cluster.lifecycle import running_cluster
from jobs.errors import InputError
from policies.forecast import Forecast

console = Console()

PROMPT_TOKENS = (20, 200)
MEDIAN_TOKENS, SIGMA, CAP = 80.0, 0.9, 512
"""Lengths are log-normal; the forecasts know their location but for noise of half the spread."""

Answers = list[tuple[float, float, int]]
"""When each was due and when it ended, in seconds, and its tokens."""


def look_ahead_command(
    config: ClusterConfig,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a run.")] = 400,
    ahead: Annotated[str, typer.Option(help="Look-aheads, with commas.")] = "0,1,2,4",
    engines: Annotated[int, typer.Option(min=1, help="Simulated engines.")] = 2,
    kv_blocks: Annotated[int, typer.Option(min=40, help="Blocks of each, of 16 tokens.")] = 160,
    load: Annotated[float, typer.Option(min=0, help="Of the arrivals, over capacity.")] = 1.5,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
) -> None:
    """Send engines 0, 1, 2, ... requests ahead of there being room, and compare."""
    values = [int(text) for text in ahead.split(",")]
    table = Table(
        title=f"{engines} simulated engines of {kv_blocks} blocks, {requests} requests, {seeds} "
        f"seeds, policy {config.policy.name}; ratios over look-ahead {values[0]}, mean and "
        "standard deviation over seeds",
        title_justify="left",
    )
    for name in ("look-ahead", "all at once: makespan", f"load {load:g}: latency per token"):
        table.add_column(name, justify="right")
    runs: dict[int, list[tuple[float, float]]] = {}
    spans: list[float] = []
    for value in values:
        with running_cluster(_configured(config, engines, kv_blocks, value)) as (
            controller,
            joined,
        ):
            if joined:
                raise InputError("a cluster is running already: take it down with `tiebreak down`")
            runs[value] = []
            for seed in range(seeds):
                at_once = asyncio.run(_run(controller, requests, seed, 0.0, f"{value}/once/{seed}"))
                makespan = max(ended for _, ended, _ in at_once)
                if value == values[0]:
                    spans.append(makespan / load)
                over_time = asyncio.run(
                    _run(controller, requests, seed, spans[seed], f"{value}/load/{seed}")
                )
                per_token = np.mean([(ended - due) / tokens for due, ended, tokens in over_time])
                runs[value].append((makespan, float(per_token)))
        console.log(f"look-ahead {value}: done")
    first = np.array(runs[values[0]])
    for value in values:
        ratios = np.array(runs[value]) / first
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(ratios.mean(0), ratios.std(0), strict=True)]
        table.add_row(str(value), *cells)
    console.print(table)


def _configured(
    config: ClusterConfig, engines: int, kv_blocks: int, look_ahead: int
) -> ClusterConfig:
    values = config.model_dump(mode="json")
    values["replicas"] |= {
        "engine": "simulated",
        "count": engines,
        "block_size": 16,
        "max_num_seqs": 256,
        "max_model_len": PROMPT_TOKENS[1] + CAP,
        "look_ahead": look_ahead,
        "engine_args": {"kv_blocks": kv_blocks},
    }
    values["predictor"]["network"] = "none"
    return parse_config(values)


async def _run(controller: Any, count: int, seed: int, span_s: float, name: str) -> Answers:
    rng = np.random.default_rng(seed)
    prompts = rng.integers(*PROMPT_TOKENS, count).tolist()
    mu = math.log(MEDIAN_TOKENS) + SIGMA * rng.standard_normal(count)
    lengths = np.clip(np.exp(mu), 1, CAP).astype(int).tolist()
    seen = mu + SIGMA / 2 * rng.standard_normal(count)
    due_s = np.sort(rng.uniform(0, span_s, count)).tolist()
    async with ClusterClient(controller) as client:
        await client.status()
        started_s = time.monotonic()

        async def one(i: int) -> tuple[float, float, int]:
            await asyncio.sleep(started_s + due_s[i] - time.monotonic())
            ends = np.exp(seen[i] + SIGMA / 2 * np.array([-1.6, 1.6]))
            lower, upper = np.clip(ends, 1, CAP).astype(int).tolist()
            completion = await client.complete(
                GenerationRequest(
                    f"{name}/{i}",
                    list(range(prompts[i])),
                    CAP,
                    {"extra_args": {"simulated_output_tokens": lengths[i]}},
                    forecast=Forecast(float(seen[i]), SIGMA / 2, lower, upper, "noisy"),
                )
            )
            if completion.error:
                raise RuntimeError(f"request {i} failed: {completion.error}")
            return due_s[i], time.monotonic() - started_s, len(completion.token_ids)

        return list(await asyncio.gather(*(one(i) for i in range(count))))
