"""`tiebreak bench mixed`: what offline work costs online requests, and how much of it gets done.

Both arms have the same online arrivals on a fresh cluster; the second has offline work waiting at
all times. The control plane is real; the engines are simulated and step in real time.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig
from jobs.bench_cluster import configured, own_cluster
from jobs.http_load import percentiles
from jobs.known_answers import request_of
from jobs.streams import Stream, follow
from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.process_heap import freeze_heap
from replicas.step_time import LinearStepTime

console = Console()

STEP_TIME = LinearStepTime(
    base_s=2e-2, per_prefill_token_s=1e-4, per_decode_token_s=1e-4, per_kv_token_s=0.0
)
"""Of the simulated engines: decoding is cheap beside the step itself, as on an accelerator."""

PROMPT_TOKENS = (20, 200)
MEDIAN_TOKENS, SIGMA, CAP = 60.0, 0.7, 400
"""Lengths are log-normal; the forecasts know their location but for noise of half the spread."""

BLOCK_SIZE = 16
WARM_UP = 0.1
"""Share of the run, at its begin and at its end, that is not counted."""

KEPT_WAITING = 4
"""Offline requests in flight, over what the engines can run at once."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One run.

    Attributes:
        online: Streams of the online requests, in the order of their arrival.
        due_s: When each was due, on this machine's monotonic clock.
        offline: Streams of the offline requests.
        counted_s: Between these times output is counted.
    """

    online: list[Stream]
    due_s: list[float]
    offline: list[Stream]
    counted_s: tuple[float, float]

    def tokens(self, streams: Sequence[Stream]) -> int:
        """Output tokens of these streams that came in the time that counts."""
        first, last = self.counted_s
        total = 0
        for stream in streams:
            had = [count for at, count in stream.arrivals if at < first]
            have = [count for at, count in stream.arrivals if at < last]
            total += (have[-1] if have else 0) - (had[-1] if had else 0)
        return total

    def ttft_s(self) -> list[float]:
        """Seconds from when each counted online request was due to its first token."""
        first, last = self.counted_s
        return [
            stream.arrivals[0][0] - due
            for stream, due in zip(self.online, self.due_s, strict=True)
            if first <= due < last and stream.arrivals
        ]

    def latency_s(self) -> list[float]:
        """The same to its last token."""
        first, last = self.counted_s
        return [
            stream.arrivals[-1][0] - due
            for stream, due in zip(self.online, self.due_s, strict=True)
            if first <= due < last and stream.arrivals
        ]


def mixed_command(
    config: ClusterConfig,
    seconds: Annotated[float, typer.Option(min=5, help="Length of each arm.")] = 60.0,
    engines: Annotated[int, typer.Option(min=1, help="Simulated engines.")] = 2,
    slots: Annotated[int, typer.Option(min=2, help="Requests an engine runs at once.")] = 16,
    kv_blocks: Annotated[int, typer.Option(min=64, help="Blocks of each, of 16 tokens.")] = 256,
    load: Annotated[float, typer.Option(min=0.01, help="Online arrivals over capacity.")] = 0.4,
    rounds: Annotated[int, typer.Option(min=1, help="Times all arms are run.")] = 1,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
) -> None:
    """Compare online latency with and without offline work on the same engines."""
    cluster = configured(
        config,
        {
            "engine": "simulated",
            "count": engines,
            "max_num_seqs": slots,
            "block_size": BLOCK_SIZE,
            "max_model_len": PROMPT_TOKENS[1] + CAP,
            "engine_args": {
                "kv_blocks": kv_blocks,
                "step_time": {
                    "base_s": STEP_TIME.base_s,
                    "per_prefill_token_s": STEP_TIME.per_prefill_token_s,
                    "per_decode_token_s": STEP_TIME.per_decode_token_s,
                    "per_kv_token_s": STEP_TIME.per_kv_token_s,
                },
            },
        },
    )
    table = Table(
        title=f"{engines} simulated engines of {slots} slots and {kv_blocks} blocks of "
        f"{BLOCK_SIZE} tokens, {seconds:g} s, online load {load:g}, policy {config.policy.name}, "
        f"seed {seed}; ratios over online alone, in the same round",
        title_justify="left",
        caption="Spare: what the engines give with offline work alone, less online tokens.",
        caption_justify="left",
    )
    table.add_column("")
    for number in range(1, rounds + 1):
        for name in ("online alone", "with offline", "offline alone"):
            table.add_column(name if rounds == 1 else f"{number}: {name}", justify="right")
    columns: list[dict[str, str]] = []
    for number in range(rounds):
        run = _Run(cluster, engines, slots, kv_blocks, seconds, seed + number)
        alone = run.play(load, offline=False, name="alone")
        mixed = run.play(load, offline=True, name="mixed")
        full = run.play(0.0, offline=True, name="full")
        columns += _columns(alone, mixed, full)
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    console.print(table)


def _columns(alone: Arm, mixed: Arm, full: Arm) -> list[dict[str, str]]:
    """Figures of a round's arms, by label."""
    span_s = mixed.counted_s[1] - mixed.counted_s[0]
    spare = (full.tokens(full.offline) - mixed.tokens(mixed.online)) / span_s
    bases = percentiles(alone.ttft_s(), 99) + percentiles(alone.latency_s(), 99)
    columns = []
    for arm in (alone, mixed, full):
        ttft, latency = percentiles(arm.ttft_s(), 50, 99), percentiles(arm.latency_s(), 50, 99)
        offline = arm.tokens(arm.offline) / span_s
        figures = {
            "online TTFT p50 (s)": f"{ttft[0]:.3f}",
            "... p99 (s)": f"{ttft[1]:.3f}",
            "... p99 over alone": f"{ttft[1] / bases[0]:.2f}",
            "online latency p50 (s)": f"{latency[0]:.2f}",
            "online latency p99 (s)": f"{latency[1]:.2f}",
            "... over alone": f"{latency[1] / bases[1]:.2f}",
            "online tokens/s": f"{arm.tokens(arm.online) / span_s:,.0f}",
            "offline tokens/s": f"{offline:,.0f}",
            "... of spare": f"{offline / spare:.2f}" if arm is mixed else "-",
        }
        columns.append({k: "-" if v == "nan" else v for k, v in figures.items()})
    return columns


class _Run:
    """The same online requests for every arm, on a cluster of its own each."""

    def __init__(
        self,
        config: ClusterConfig,
        engines: int,
        slots: int,
        kv_blocks: int,
        seconds: float,
        seed: int,
    ) -> None:
        self._config = config
        self._engines, self._slots, self._kv_blocks = engines, slots, kv_blocks
        self._seconds = seconds
        self._seed = seed

    def play(self, load: float, *, offline: bool, name: str) -> Arm:
        """One arm."""
        rng = np.random.default_rng(self._seed)
        count = int(rng.poisson(load * self._capacity() * self._seconds)) if load else 0
        due_s = np.sort(rng.uniform(0, self._seconds, count)).tolist()
        online = [_request(f"{name}-online", i, rng, RequestClass.ONLINE) for i in range(count)]
        with own_cluster(self._config) as controller:
            freeze_heap()  # what is measured are the cluster's pauses, not those of this process
            arm = asyncio.run(self._play(controller, online, due_s, rng if offline else None, name))
        console.log(f"{name}: {len(arm.online):,} online, {len(arm.offline):,} offline requests")
        return arm

    def _capacity(self) -> float:
        """Requests per second that the engines could answer, full of typical ones."""
        mean = MEDIAN_TOKENS * math.exp(SIGMA**2 / 2)
        room = self._kv_blocks * BLOCK_SIZE / (float(np.mean(PROMPT_TOKENS)) + mean / 2)
        running = min(self._slots, room)
        step_s = STEP_TIME.base_s + running * STEP_TIME.per_decode_token_s
        return self._engines * running / (mean * step_s)

    async def _play(
        self,
        controller: Any,
        online: list[GenerationRequest],
        due_s: list[float],
        offline: np.random.Generator | None,
        name: str,
    ) -> Arm:
        done: list[Stream] = []
        async with ClusterClient(controller) as client:
            await client.status()
            start_s = time.monotonic()
            filling = asyncio.create_task(self._fill(client, offline, done, name))
            pairs = zip(online, due_s, strict=True)
            streams = [Stream(request, start_s + due) for request, due in pairs]
            await asyncio.gather(*(_when_due(client, stream) for stream in streams))
            await asyncio.sleep(start_s + self._seconds - time.monotonic())
            filling.cancel()
            await asyncio.wait([filling])
        failed = [s.error for s in streams if s.error is not None]
        if failed:
            raise RuntimeError(f"{len(failed)} online requests failed: {failed[0]}")
        counted = (start_s + WARM_UP * self._seconds, start_s + (1 - WARM_UP) * self._seconds)
        return Arm(streams, [s.submitted_s for s in streams], done, counted)

    async def _fill(
        self,
        client: ClusterClient,
        rng: np.random.Generator | None,
        streams: list[Stream],
        name: str,
    ) -> None:
        """Offline requests without end, more than can run at any time."""
        if rng is None:
            return
        numbers = itertools.count()

        async def one_after_the_other() -> None:
            while True:
                request = _request(f"{name}-offline", next(numbers), rng, RequestClass.OFFLINE)
                streams.append(Stream(request, time.monotonic()))
                await follow(client, streams[-1])

        count = KEPT_WAITING * self._engines * self._slots
        await asyncio.gather(*(one_after_the_other() for _ in range(count)))


async def _when_due(client: ClusterClient, stream: Stream) -> None:
    await asyncio.sleep(stream.submitted_s - time.monotonic())
    await follow(client, stream)


def _request(
    name: str, number: int, rng: np.random.Generator, request_class: RequestClass
) -> GenerationRequest:
    mu = math.log(MEDIAN_TOKENS) + SIGMA * rng.standard_normal()
    seen = mu + SIGMA / 2 * rng.standard_normal()
    ends = np.exp(seen + SIGMA / 2 * np.array([-1.6, 1.6])).clip(1, CAP)
    return request_of(
        name,
        number,
        output_tokens=int(np.clip(np.exp(mu), 1, CAP)),
        prompt_tokens=int(rng.integers(*PROMPT_TOKENS)),
        max_tokens=CAP,
        request_class=request_class,
        forecast=Forecast(float(seen), SIGMA / 2, int(ends[0]), int(ends[1]), "noisy"),
    )
