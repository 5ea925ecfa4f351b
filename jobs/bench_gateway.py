"""`tiebreak bench gateway`: what the endpoint adds to an engine that is called directly.

With real engines the reference is vLLM's own server over an engine with the same arguments on the
same cores; both are up at once and are asked in turn. With simulated engines it is what the
gateway's processes themselves can carry, beside the least that Ray Serve needs to stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from jobs.bench_cluster import configured, endpoint, own_ray, processes
from jobs.errors import InputError
from jobs.http_load import HttpAnswer, HttpLoad, percentiles
from jobs.known_answers import LENGTH_OPTION
from jobs.reading.inputs import JobRow, open_input

console = Console()

PROMPTS = "jobs/data/demo_prompts.jsonl"
STEP_S = 0.02
"""Of the simulated engine: 50 tokens per second of each stream."""

SLOTS = 512
PROMPT_TOKENS = 32

DIRECT = "vLLM's"
"""Name of the arm that the others are compared with."""

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm at one concurrency.

    Attributes:
        answers: All of them, over all rounds.
        wall_s: Seconds they took together.
        cpu_s: Processor seconds of the serving processes by kind.
    """

    answers: list[HttpAnswer]
    wall_s: float
    cpu_s: Mapping[str, float]

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return sum(answer.output_tokens for answer in self.answers)

    def __add__(self, other: Measured) -> Measured:
        cpu_s = {k: v + other.cpu_s.get(k, 0.0) for k, v in self.cpu_s.items()}
        return Measured(self.answers + other.answers, self.wall_s + other.wall_s, cpu_s)


def gateway_command(
    config: ClusterConfig,
    engine: Annotated[str, typer.Option(help="vllm (CPU) or simulated.")] = "vllm",
    concurrency: Annotated[
        str, typer.Option(help="Requests at a time, with commas.")
    ] = "1,8,32,128",
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of a round, at least twice the concurrency.")
    ] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Output tokens of each.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Times the arms take turns.")] = 3,
) -> None:
    """Measure time to first token, latency and throughput of the endpoint and of its reference."""
    try:
        levels = [int(level) for level in concurrency.split(",")]
    except ValueError:
        raise InputError(f"--concurrency is {concurrency!r}, must be numbers and commas") from None
    if engine == "vllm":
        console.print(_over_vllm(config, levels, requests, tokens, rounds))
    elif engine == "simulated":
        console.print(_over_simulated(config, levels, requests, tokens, rounds))
    else:
        raise InputError(f"--engine is {engine!r}, must be vllm or simulated")


def _over_vllm(
    config: ClusterConfig, levels: Sequence[int], requests: int, tokens: int, rounds: int
) -> Table:
    from jobs.plain_servers import vllm_server  # its imports are slow

    rows = [row for row in open_input(PROMPTS).rows() if isinstance(row, JobRow)]
    bodies: list[Body] = [
        {
            "model": config.model,
            "prompt": row.prompt or "",
            "max_tokens": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        for row in rows
    ]
    alone = configured(config, {"count": 1, "engine": "vllm"})
    with vllm_server(alone) as direct, endpoint(alone) as gateway:
        arms = {DIRECT: direct, "gateway": gateway.url}
        measured = asyncio.run(_in_turn(arms, bodies, levels, requests, rounds))
    table = Table(
        title=f"{config.model} on one CPU engine, completions of {tokens} tokens, {rounds} rounds "
        "in turn; milliseconds, added: at the median",
        title_justify="left",
    )
    table.add_column("at once", justify="right")
    table.add_column("")
    for name in ("TTFT p50", "p99", "added", "latency p50", "p99", "added", "tokens/s", "ratio"):
        table.add_column(name, justify="right")
    for level in levels:
        base = _figures(measured[level, DIRECT])
        for arm in arms:
            figures = _figures(measured[level, arm])
            table.add_row(
                str(level),
                arm,
                f"{figures['ttft'][0]:,.1f}",
                f"{figures['ttft'][1]:,.1f}",
                f"{figures['ttft'][0] - base['ttft'][0]:+,.1f}",
                f"{figures['latency'][0]:,.0f}",
                f"{figures['latency'][1]:,.0f}",
                f"{figures['latency'][0] - base['latency'][0]:+,.0f}",
                f"{figures['rate'][0]:,.1f}",
                f"{figures['rate'][0] / base['rate'][0]:.3f}",
            )
    return table


def _figures(measured: Measured) -> dict[str, list[float]]:
    """Milliseconds at the median and the 99th percentile, tokens and requests per second."""
    answers = [a for a in measured.answers if a.answered]
    if len(answers) < len(measured.answers):
        bad = next(a for a in measured.answers if not a.answered)
        raise RuntimeError(f"a request failed with status {bad.status}: {bad.error}")
    return {
        "ttft": [1e3 * v for v in percentiles([a.ttft_s for a in answers], 50, 99)],
        "latency": [1e3 * v for v in percentiles([a.latency_s for a in answers], 50, 99)],
        "rate": [measured.tokens / measured.wall_s, len(answers) / measured.wall_s],
    }


async def _in_turn(
    arms: Mapping[str, str],
    bodies: Sequence[Body],
    levels: Sequence[int],
    requests: int,
    rounds: int,
) -> dict[tuple[int, str], Measured]:
    """Every arm at every concurrency, the arms taking turns within each round."""
    measured: dict[tuple[int, str], Measured] = {}
    async with contextlib.AsyncExitStack() as stack:
        loads = {arm: await stack.enter_async_context(HttpLoad(url)) for arm, url in arms.items()}
        for load in loads.values():
            await load.closed_loop(bodies[:4], 2)
        for level in levels:
            count = max(requests, 2 * level)
            for number in range(rounds):
                first = number * count
                chosen = [bodies[(first + i) % len(bodies)] for i in range(count)]
                # Who is asked first changes from round to round.
                order = list(loads) if number % 2 == 0 else list(reversed(loads))
                for arm in order:
                    part = await _measure(loads[arm], chosen, level)
                    key = level, arm
                    measured[key] = measured[key] + part if key in measured else part
            console.log(f"{level} at a time: done")
    return measured


async def _measure(load: HttpLoad, bodies: Sequence[Body], level: int) -> Measured:
    before, started_s = _cpu_s(), time.monotonic()
    answers = await load.closed_loop(bodies, level)
    wall_s = time.monotonic() - started_s
    after = _cpu_s()
    return Measured(answers, wall_s, {kind: after[kind] - before[kind] for kind in after})


def _cpu_s() -> dict[str, float]:
    """Processor seconds so far of the cluster's processes, by kind."""
    spent = {}
    for kind, members in processes().items():
        times = []
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                times.append(used.user + used.system)
        spent[kind] = sum(times)
    return spent


def _over_simulated(
    config: ClusterConfig, levels: Sequence[int], requests: int, tokens: int, rounds: int
) -> Table:
    step_time = {
        "base_s": STEP_S,
        "per_prefill_token_s": 0.0,
        "per_decode_token_s": 0.0,
        "per_kv_token_s": 0.0,
    }
    engine_args = {"step_time": step_time, "kv_blocks": 1 << 15}
    fields = {"max_num_seqs": SLOTS, "engine_args": engine_args}
    rng = np.random.default_rng(0)
    bodies: list[Body] = [
        {
            "model": config.model,
            "prompt": rng.integers(1, 4000, PROMPT_TOKENS).tolist(),
            "max_tokens": tokens,
            "vllm_xargs": {LENGTH_OPTION: tokens},
        }
        for _ in range(256)
    ]
    table = Table(
        title=f"one simulated engine with steps of {STEP_S * 1e3:g} ms, completions of {tokens} "
        f"tokens, {rounds} rounds; {psutil.cpu_count()} cores for all processes and the load",
        title_justify="left",
        caption="CPU: microseconds per output token, of the gateway's or deployment's processes, "
        "of Serve's proxy, and of all of the cluster's processes together",
        caption_justify="left",
    )
    table.add_column("at once", justify="right")
    table.add_column("")
    for name in ("TTFT p50 (ms)", "p99", "requests/s", "tokens/s"):
        table.add_column(name, justify="right")
    for name in ("CPU: server", "proxy", "all"):
        table.add_column(name, justify="right")
    arms = {
        "Serve alone": _plain({"max_num_seqs": SLOTS, **engine_args}),
        "1 gateway": _gateway(config, fields, 1),
        "2 gateways": _gateway(config, fields, 2),
    }
    for arm, server in arms.items():
        with server as url:
            measured = asyncio.run(_in_turn({arm: url}, bodies, levels, requests, rounds))
        for level in levels:
            part = measured[level, arm]
            figures = _figures(part)
            costs = [1e6 * part.cpu_s[kind] / part.tokens for kind in ("gateway", "proxy")]
            costs.append(1e6 * sum(part.cpu_s.values()) / part.tokens)
            table.add_row(
                str(level),
                arm,
                *(f"{value:,.1f}" for value in figures["ttft"]),
                f"{figures['rate'][1]:,.1f}",
                f"{figures['rate'][0]:,.0f}",
                *(f"{cost:,.0f}" for cost in costs),
            )
    return table


@contextlib.contextmanager
def _gateway(config: ClusterConfig, replicas: Mapping[str, Any], count: int) -> Iterator[str]:
    fields = {**replicas, "count": 1, "engine": "simulated"}
    with endpoint(configured(config, fields, gateway={"replicas": count})) as served:
        yield served.url


@contextlib.contextmanager
def _plain(options: Mapping[str, Any]) -> Iterator[str]:
    from jobs.plain_servers import plain_serve

    with own_ray(), plain_serve(options) as url:
        yield url
