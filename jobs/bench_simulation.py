"""What the simulator costs: requests per second, its growth with output length, its memory."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from cluster.simulated_rows import ROW_SCHEMA
from cluster.simulation import SimulationResult, simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from policies.bundle import policy
from policies.logt import quantile
from replicas.batch_limits import BatchLimits
from replicas.step_time import LinearStepTime

console = Console()

MIB = 1 << 20
OVERLOAD = 2.0
"""Arrival rate of the speed runs as a multiple of capacity."""

STEADY_LOAD = 0.8
"""That of the memory run: above 1 the queue itself would grow with the requests."""

LENGTH_SCALES = (1, 4, 16)
MEMORY_GROWTH = 4
"""By how much the memory run goes on after its first count of requests."""

_LEAST_PER_REPLICA = 100  # fewer would not fill a replica's batch
_CAPACITY_REQUESTS = 1000
_CHUNK = 10_000
_STEP_TIME = LinearStepTime(6e-3, 3e-5, 2e-5, 4e-8)
_KV_BLOCKS, _BLOCK_SIZE, _MAX_NUM_SEQS, _MAX_NUM_BATCHED_TOKENS = 2048, 16, 256, 2048
_MAX_TOKENS = 2048


@dataclass(slots=True)
class Requests:
    """A workload of log-t lengths with a median around 150 tokens times `scale`, and its forecasts.

    Attributes:
        count: Requests.
        rate: Arrivals per second; infinite: all at once.
        scale: By how much outputs and their caps are longer.
        seed: Of everything.
        resident: Bytes of resident memory when each chunk was asked for, then at the end.
    """

    count: int
    rate: float
    scale: int = 1
    seed: int = 0
    resident: list[int] = field(default_factory=list)

    def chunks(self) -> Iterator[WorkloadChunk]:
        """The workload, made as it is needed."""
        rng = np.random.default_rng(self.seed)
        process = psutil.Process()
        arrived_s = 0.0
        for start in range(0, self.count, _CHUNK):
            self.resident.append(process.memory_info().rss)
            chunk = self._chunk(rng, min(_CHUNK, self.count - start), arrived_s)
            arrived_s = float(chunk.arrival_s[-1])
            yield chunk
        self.resident.append(process.memory_info().rss)

    def _chunk(self, rng: np.random.Generator, count: int, after_s: float) -> WorkloadChunk:
        cap = _MAX_TOKENS * self.scale
        mu = rng.normal(5.0, 0.9, count).clip(0.0, 7.5) + math.log(self.scale)
        sigma = rng.uniform(0.2, 0.6, count)
        drawn = np.exp(mu + sigma * rng.standard_t(3.5, count))
        lower, upper = (quantile(mu, sigma, q).clip(1, cap).astype(np.int64) for q in (0.05, 0.95))
        return WorkloadChunk(
            arrival_s=after_s + np.cumsum(rng.exponential(1.0, count)) / self.rate,
            prompt_tokens=rng.integers(50, 1500, count),
            max_tokens=np.full(count, cap),
            output_tokens=drawn.clip(1, cap).astype(np.int64),
            request_class=np.zeros(count, np.int64),
            mu=mu,
            sigma=sigma,
            lower=lower,
            upper=upper,
        )


def fleet(replicas: int, scale: int = 1) -> FleetSpec:
    """Replicas with `scale` times the KV cache."""
    limits = BatchLimits(_KV_BLOCKS * scale, _BLOCK_SIZE, _MAX_NUM_SEQS, _MAX_NUM_BATCHED_TOKENS)
    return FleetSpec(replicas, limits, _STEP_TIME)


def capacity(scale: int = 1) -> float:
    """Requests per second that one replica serves with true lengths known and a full queue."""
    work = Requests(_CAPACITY_REQUESTS, math.inf, scale, seed=1)
    return work.count / simulate(policy("h_sf"), work.chunks(), fleet(1, scale)).makespan_s


def run(policy_name: str, work: Requests, spec: FleetSpec) -> tuple[float, SimulationResult]:
    """CPU seconds of this process per request, with every row written to Parquet; the outcome."""
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.process_time()
        with pq.ParquetWriter(Path(folder) / "rows.parquet", ROW_SCHEMA) as writer:
            result = simulate(policy(policy_name), work.chunks(), spec, rows=writer.write_batch)
        return (time.process_time() - started_s) / work.count, result


def simulation_command(
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of each run; at least 100 per replica are taken.")
    ] = 6_000,
    policies: Annotated[
        str, typer.Option(help="Policy bundles, separated by commas.")
    ] = "tiebreak,fcfs",
    replicas: Annotated[
        str, typer.Option(help="Numbers of replicas, separated by commas.")
    ] = "1,16,64,256",
    memory_requests: Annotated[
        int,
        typer.Option(
            min=0,
            help="Requests after which memory is read, then at four times as "
            "many; 0: leave it out.",
        ),
    ] = 100_000,
) -> None:
    """Time the simulator on one core, all metrics on, at twice the capacity of the fleet."""
    names = [name.strip() for name in policies.split(",")]
    counts = [_count(word) for word in replicas.split(",")]
    for name in names:
        # Machine code is loaded or compiled by the first run.
        run(name, Requests(200, math.inf), fleet(1))
    if memory_requests:
        # First, while the process is small: memory that other runs left would hide a growth.
        console.print(memory_line(memory_requests, names[0]))
    console.print(speed_table(requests, names, counts))
    console.print(length_table(requests, names))


def speed_table(requests: int, names: list[str], counts: list[int]) -> Table:
    """Requests per second by policy and number of replicas, and against the first number's."""
    rate = OVERLOAD * capacity()
    table = _table(
        f"simulated requests per second of CPU time, load {OVERLOAD:g} x capacity",
        ("policy", "replicas", "requests", "requests/s", f"ratio to {counts[0]}"),
    )
    for name in names:
        first = math.nan
        for count in counts:
            work = Requests(max(requests, _LEAST_PER_REPLICA * count), rate * count)
            speed = 1 / run(name, work, fleet(count))[0]
            first = speed if math.isnan(first) else first
            table.add_row(
                name, f"{count:,}", f"{work.count:,}", f"{speed:,.0f}", f"{speed / first:.2f}"
            )
    return table


def length_table(requests: int, names: list[str]) -> Table:
    """Cost of a request by output length, on one replica whose KV cache grows alike.

    Steps cost nothing each; rounds of decisions and evictions do, and longer requests meet more of
    them, so that these are told beside the cost.
    """
    table = _table(
        "cost of a request against output length, one replica, KV cache scaled alike",
        ("policy", "output", "us per request", "ratio to x1", "rounds each", "evictions each"),
    )
    rates = {scale: OVERLOAD * capacity(scale) for scale in LENGTH_SCALES}
    for name in names:
        first = math.nan
        for scale in LENGTH_SCALES:
            cost, result = run(name, Requests(requests, rates[scale], scale), fleet(1, scale))
            first = cost if math.isnan(first) else first
            table.add_row(
                name,
                f"x{scale}",
                f"{cost * 1e6:,.0f}",
                f"{cost / first:.2f}",
                f"{result.decisions / requests:.2f}",
                f"{result.evictions / requests:.2f}",
            )
    return table


def memory_line(requests: int, name: str) -> str:
    """Peak resident memory of one run up to `requests` requests, and four times as far on."""
    work = Requests(MEMORY_GROWTH * requests, STEADY_LOAD * capacity())
    run(name, work, fleet(1))
    early, late = peaks(work.resident, requests)
    return (
        f"memory, policy {name}, load {STEADY_LOAD:g} x capacity: peak {early / MIB:,.0f} MiB up "
        f"to {requests:,} requests, {late / MIB:,.0f} MiB up to {work.count:,}: "
        f"growth {(late - early) / MIB:+,.0f} MiB"
    )


def peaks(resident: list[int], requests: int) -> tuple[int, int]:
    """Most bytes when at most `requests` requests had been made, and over the whole run."""
    early = resident[: max(2, requests // _CHUNK + 1)]
    return max(early), max(resident)


def _count(word: str) -> int:
    if not word.strip().isdecimal() or int(word) < 1:
        raise typer.BadParameter(
            f"{word.strip()!r} is not a number of replicas; give whole numbers from 1, such as 1,16"
        )
    return int(word)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table
