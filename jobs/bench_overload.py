"""`tiebreak bench overload`: several times the endpoint's capacity, and what becomes of it.

Real HTTP and the real control plane; the engines are simulated and step in real time, so that
their capacity is known and the machine's cores are not what is overloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from jobs.bench_cluster import Endpoint, configured, endpoint, processes
from jobs.http_load import OK, HttpAnswer, HttpLoad, percentiles
from jobs.known_answers import LENGTH_OPTION

console = Console()

STEP_S = 0.05
"""Of the simulated engines: 20 tokens per second of each request."""

PROMPT_TOKENS = 32
ANSWER_TOKENS = (10, 50)
"""Shortest and longest answer, uniform between."""

REFUSED = 429
MIB = 1 << 20
SAMPLE_S = 0.5


@dataclass(slots=True)
class Phase:
    """One part of the run.

    Attributes:
        name: What tables call it.
        load: Arrivals over capacity.
        answers: Of the requests that were due in it.
    """

    name: str
    load: float
    answers: list[HttpAnswer] = field(default_factory=list)


@dataclass(slots=True)
class Memory:
    """Resident bytes of the processes of one kind, together."""

    first: int = 0
    most: int = 0


def overload_command(
    config: ClusterConfig,
    times: Annotated[float, typer.Option(min=1, help="Arrivals over capacity.")] = 5.0,
    seconds: Annotated[float, typer.Option(min=5, help="Length of the overload.")] = 60.0,
    engines: Annotated[int, typer.Option(min=1, help="Simulated engines.")] = 2,
    slots: Annotated[int, typer.Option(min=1, help="Requests an engine runs at once.")] = 8,
    queue_s: Annotated[
        float, typer.Option(min=0.1, help="Work that may wait, in seconds at full capacity.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
) -> None:
    """Send several times what the engines can do: refusals, latencies, recovery, memory."""
    tokens_s = engines * slots / STEP_S
    rate = tokens_s / float(np.mean(ANSWER_TOKENS))
    limit = max(1, round(queue_s * rate))
    cluster = configured(
        config,
        {
            "engine": "simulated",
            "count": engines,
            "max_num_seqs": slots,
            "look_ahead": 0,
            "engine_args": {
                "step_time": {
                    "base_s": STEP_S,
                    "per_prefill_token_s": 0.0,
                    "per_decode_token_s": 0.0,
                    "per_kv_token_s": 0.0,
                }
            },
        },
        queue={"online_requests": limit},
    )
    phases = [Phase("before", 0.5), Phase("overload", times), Phase("after", 0.5)]
    lengths = [seconds / 3, seconds, seconds / 2]
    with endpoint(cluster) as served:
        run = _Run(served, rate, np.random.default_rng(seed))
        asyncio.run(run.play(phases, lengths))
    title = (
        f"{engines} simulated engines of {slots} slots: {rate:.1f} requests/s of capacity; "
        f"at most {limit} wait ({queue_s:g} s of work); seed {seed}"
    )
    console.print(_phases(phases, title))
    console.print(_recovery(phases, sum(lengths[:2]), run.start_s))
    console.print(_memory(run.memory))


class _Run:
    """The load, and the memory of the processes under it."""

    def __init__(self, served: Endpoint, rate: float, rng: np.random.Generator) -> None:
        self._served = served
        self._rate = rate
        self._rng = rng
        self.start_s = 0.0
        self.memory: dict[str, Memory] = {}

    async def play(self, phases: Sequence[Phase], lengths_s: Sequence[float]) -> None:
        """All phases, one after the other, by the clock."""
        async with HttpLoad(self._served.url) as load:
            await load.closed_loop([self._body(1) for _ in range(20)], 4)
            watching = asyncio.create_task(self._watch())
            self.start_s = time.monotonic()
            begin, sent = 0.0, []
            for phase, length_s in zip(phases, lengths_s, strict=True):
                due_s = self._arrivals(begin, length_s, phase.load * self._rate)
                bodies = [self._body(int(self._rng.integers(*ANSWER_TOKENS))) for _ in due_s]
                sent.append(asyncio.create_task(load.open_loop(bodies, due_s)))
                begin += length_s
            for phase, answers in zip(phases, await asyncio.gather(*sent), strict=True):
                phase.answers = answers
            watching.cancel()

    def _arrivals(self, begin_s: float, length_s: float, rate: float) -> list[float]:
        count = int(self._rng.poisson(rate * length_s))
        arrivals: list[float] = np.sort(begin_s + length_s * self._rng.random(count)).tolist()
        return arrivals

    def _body(self, tokens: int) -> dict[str, Any]:
        return {
            "model": self._served.model,
            "prompt": self._rng.integers(1, 4000, PROMPT_TOKENS).tolist(),
            "max_tokens": ANSWER_TOKENS[1],
            "vllm_xargs": {LENGTH_OPTION: tokens},
        }

    async def _watch(self) -> None:
        kinds = processes()
        while True:
            for kind, members in kinds.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    resident = sum(process.memory_info().rss for process in members)
                    memory = self.memory.setdefault(kind, Memory(first=resident))
                    memory.most = max(memory.most, resident)
            await asyncio.sleep(SAMPLE_S)


def _phases(phases: Sequence[Phase], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for phase in phases:
        table.add_column(phase.name, justify="right")
    columns = [_column(phase) for phase in phases]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    others = Counter(
        f"{a.status}: {a.error[:120]}"
        for phase in phases
        for a in phase.answers
        if not a.answered and a.status != REFUSED
    )
    if others:
        table.caption = "; ".join(f"{count} x {what}" for what, count in others.most_common(3))
        table.caption_justify = "left"
    return table


def _column(phase: Phase) -> dict[str, str]:
    """A phase's figures by label."""
    whole = [a for a in phase.answers if a.answered]
    refused = [a for a in phase.answers if a.status == REFUSED]
    ttft = percentiles([a.ttft_s for a in whole if a.arrivals_s], 50, 99)
    latency = percentiles([a.latency_s for a in whole], 50, 99)
    (refusal,) = percentiles([a.latency_s for a in refused], 99)
    waits = sorted(int(a.headers.get("Retry-After", "-1")) for a in refused)
    return {
        "arrivals over capacity": f"{phase.load:g}",
        "sent": f"{len(phase.answers):,}",
        "answered": f"{len(whole):,}",
        "refused with 429": f"{len(refused):,}",
        "anything else": f"{len(phase.answers) - len(whole) - len(refused):,}",
        "accepted: TTFT p50, p99 (s)": ", ".join(f"{value:.2f}" for value in ttft),
        "accepted: latency p50, p99 (s)": ", ".join(f"{value:.2f}" for value in latency),
        "429 after, p99 (s)": f"{refusal:.3f}" if refused else "-",
        "Retry-After (s)": f"{waits[0]} to {waits[-1]}" if waits else "-",
    }


def _recovery(phases: Sequence[Phase], end_s: float, start_s: float) -> str:
    """When requests were first served again as before the overload."""
    before, _, after = phases
    (usual,) = percentiles([a.ttft_s for a in before.answers if a.arrivals_s], 99)
    late = [
        a.due_s - start_s - end_s
        for a in after.answers
        if a.status != OK or not a.arrivals_s or a.ttft_s > usual
    ]
    refused = [a.due_s - start_s - end_s for a in after.answers if a.status == REFUSED]
    return (
        f"seconds after the overload: {max(refused, default=0.0):.1f} to the last 429, "
        f"{max(late, default=0.0):.1f} to the last request whose first token was slower than "
        f"before it (p99 {usual:.2f})"
    )


def _memory(memory: dict[str, Memory]) -> Table:
    table = Table(title="resident memory (MiB)", title_justify="left")
    table.add_column("process")
    for name in ("at the start", "most", "growth"):
        table.add_column(name, justify="right")
    for kind, seen in memory.items():
        if not seen.most:
            continue
        growth = seen.most - seen.first
        table.add_row(kind, *(f"{value / MIB:,.0f}" for value in (seen.first, seen.most, growth)))
    return table
