"""`tiebreak bench faults`: processes killed at random under load, and what their clients saw.

Streams come through the cluster's own client and over HTTP; rows go through offline jobs.

Control plane, processes and signals are real; the engines are simulated and step in real time, so
that every answer is known beforehand, token by token.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from jobs.bench_cluster import configured, endpoint
from jobs.errors import InputError
from jobs.fault_load import FaultLoad, FaultRun
from jobs.known_answers import answer_to, tokens_of
from jobs.streams import Stream

console = Console()

STEP_S = 0.02
"""Of the simulated engines: 50 tokens per second of each stream."""

DEFAULT_VICTIMS = "replica:7,controller:1,gateway:1,job:1"
GATEWAYS = 2
"""Gateway processes behind one address, so that one is there when the other is killed."""


def faults_command(
    config: ClusterConfig,
    kills: Annotated[int, typer.Option(min=0, help="Processes to kill.")] = 200,
    gap_s: Annotated[
        float, typer.Option(min=0.1, help="Mean seconds between kills, exponential.")
    ] = 3.0,
    streams: Annotated[int, typer.Option(min=1, help="Online streams at a time.")] = 32,
    http: Annotated[int, typer.Option(min=1, help="Streams over HTTP at a time.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each offline job.")] = 500,
    engines: Annotated[int, typer.Option(min=1, help="Simulated engines.")] = 3,
    victims: Annotated[str, typer.Option(help="Whom to kill, with weights.")] = DEFAULT_VICTIMS,
    seed: Annotated[int, typer.Option(help="Of victims, instants and lengths.")] = 0,
) -> None:
    """Kill replicas, controllers, gateways and job drivers under load; count what got lost."""
    weights = _weights(victims)
    cluster = _configured(config, engines, streams + http)
    with endpoint(cluster) as served, tempfile.TemporaryDirectory() as folder:
        bench = FaultLoad(served, engines, (streams, http), rows, Path(folder), seed, console.log)
        run = asyncio.run(bench.run(kills, gap_s, weights))
    console.print(_outcome(run, engines, seed))
    console.print(_gaps(run))
    if _harmed(run):
        raise typer.Exit(1)


def _weights(victims: str) -> dict[str, float]:
    known = ("replica", "controller", "gateway", "job")
    weights: dict[str, float] = {}
    for entry in victims.split(","):
        name, _, weight = entry.partition(":")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise InputError(f"--victims has the weight {weight!r}, must be a number") from None
        if name not in known or weights[name] < 0:
            raise InputError(
                f"--victims has {entry!r}, must be one of {', '.join(known)} and a weight >= 0"
            )
    if not sum(weights.values()) > 0:
        raise InputError("--victims has no weight above 0")
    return weights


def _configured(config: ClusterConfig, engines: int, streams: int) -> ClusterConfig:
    return configured(
        config,
        {
            "engine": "simulated",
            "count": engines,
            # Room for all streams and as much offline work even when one replica is missing.
            "max_num_seqs": max(8, 2 * streams // max(1, engines - 1)),
            "max_model_len": 2048,
            "engine_args": {
                "step_time": {
                    "base_s": STEP_S,
                    "per_prefill_token_s": 3e-5,
                    "per_decode_token_s": 0.0,
                    "per_kv_token_s": 0.0,
                }
            },
        },
        gateway={"replicas": GATEWAYS},
    )


def _harmed(run: FaultRun) -> bool:
    rows = run.rows
    harmed = any(not stream.verdict().whole for stream in run.streams)
    cut, wrong = _http_outcome(run)
    gateways = sum(kill.victim == "gateway" for kill in run.kills)
    harmed = harmed or bool(wrong) or bool(cut and not gateways)
    return bool(harmed or rows.lost or rows.repeated or rows.failed or run.left)


def _http_outcome(run: FaultRun) -> tuple[int, int]:
    """Answers that were cut off or not begun, and answers that differ in what came."""
    cut = wrong = 0
    for request, answer in run.http:
        wanted, had = answer_to(request).token_ids, tokens_of(answer.text)
        cut += not answer.answered
        wrong += had != (wanted if answer.answered else wanted[: len(had)])
    return cut, wrong


def _outcome(run: FaultRun, engines: int, seed: int) -> Table:
    verdicts = [stream.verdict() for stream in run.streams]
    killed = Counter(kill.victim for kill in run.kills)
    table = Table(
        title=f"{len(run.kills)} kills in {run.wall_s:,.0f} s, {engines} simulated engines, "
        f"seed {seed}: " + ", ".join(f"{count} {name}" for name, count in sorted(killed.items())),
        title_justify="left",
        show_header=False,
    )
    table.add_column()
    table.add_column(justify="right")
    tokens = sum(len(stream.token_ids) for stream in run.streams)
    again = sum(max(stream.attempts, default=1) > 1 for stream in run.streams)
    cut, wrong = _http_outcome(run)
    for label, value in (
        ("online streams", len(verdicts)),
        ("... that were moved to another replica", again),
        ("... without an end", sum(v.lost for v in verdicts)),
        ("... ended by an error", sum(v.failed for v in verdicts)),
        ("... with another text than undisturbed", sum(not v.whole for v in verdicts)),
        ("tokens received", tokens),
        ("... twice or foreign", sum(v.extra_tokens for v in verdicts)),
        ("... missing", sum(v.missing_tokens for v in verdicts)),
        ("streams over HTTP", len(run.http)),
        ("... cut off with their gateway, or not begun", cut),
        ("... with another text than undisturbed", wrong),
        (f"rows of {run.jobs} offline jobs", run.rows.asked),
        ("... lost", run.rows.lost),
        ("... written twice", run.rows.repeated),
        ("... failed", run.rows.failed),
        ("requests and KV blocks still held at the end", run.left),
    ):
        table.add_row(label, f"{value:,}")
    return table


def _gaps(run: FaultRun) -> Table:
    """From a kill to the next token, by victim, beside the gaps of streams that nothing hit."""
    table = Table(title="seconds from a kill to the stream's next token", title_justify="left")
    for name in ("killed", "streams", "p50", "p99", "max"):
        table.add_column(name, justify="right" if name != "killed" else "left")
    kinds: list[tuple[str, list[float]]] = []
    for victim in sorted({kill.victim for kill in run.kills} - {"job", "gateway"}):
        kills = [kill.at_s for kill in run.kills if kill.victim == victim]
        hit, unhit = _after(run.streams, kills)
        if victim == "replica":
            kinds.append((f"{victim}: streams that ran there", hit))
        else:
            kinds.append((f"{victim}: all streams", hit + unhit))
    kinds.append(("nothing: between any two tokens' arrivals", _between(run.streams)))
    for name, gaps in kinds:
        cells = [f"{q:.3f}" for q in np.percentile(gaps, [50, 99, 100])] if gaps else ["-"] * 3
        table.add_row(name, f"{len(gaps):,}", *cells)
    return table


def _after(streams: Sequence[Stream], kills: Sequence[float]) -> tuple[list[float], list[float]]:
    """Seconds to the next tokens of streams that had some: of those moved, and of the others."""
    hit: list[float] = []
    unhit: list[float] = []
    for stream in streams:
        times = [at for at, _ in stream.arrivals]
        for kill in kills:
            index = int(np.searchsorted(times, kill))
            if 0 < index < len(times):
                moved = stream.attempts[index] > stream.attempts[index - 1]
                (hit if moved else unhit).append(times[index] - kill)
    return hit, unhit


def _between(streams: Sequence[Stream]) -> list[float]:
    """Seconds between arrivals that belong to one attempt."""
    return [
        after[0] - before[0]
        for stream in streams
        for (before, after), same in zip(
            itertools.pairwise(stream.arrivals), _same(stream.attempts), strict=True
        )
        if same
    ]


def _same(attempts: Sequence[int]) -> Iterator[bool]:
    return (first == second for first, second in itertools.pairwise(attempts))
