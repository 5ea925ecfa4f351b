"""`tiebreak bench observing`: what being watched costs, and whether all who watch see the same."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.client import ClusterClient
from cluster.config import ClusterConfig
from cluster.snapshot import ClusterSnapshot
from jobs.bench_cluster import configured, own_cluster
from jobs.bench_throughput import Arm, Work, run_through, work_of
from jobs.finished.row_table import read_rows

console = Console()

VIEW_S = 1.0
"""How often a page that is open has a picture taken."""

POWER_MODEL = {
    "idle_w": 20.0,
    "max_w": 60.0,
    "peak_flops_per_s": 1e11,
    "flops_per_token": 2.7e8,
}
"""For the sake of the booking that goes with it: of no machine."""

OFF: Mapping[str, Mapping[str, Any]] = {
    "energy": {"meter": "none"},
    "telemetry": {"metrics_interval_s": None, "otlp_endpoint": None},
    "statistics": {"rows": None},
}


@dataclass(frozen=True, slots=True)
class Totals:
    """What one who watches has seen of a run.

    Attributes:
        requests: Finished requests.
        output_tokens: Their output tokens.
        joules: Energy booked to them; None: this one is not told.
    """

    requests: int
    output_tokens: int
    joules: float | None


def observing_command(
    config: ClusterConfig,
    input_uri: Annotated[
        str, typer.Option("--input", help="Prompts.")
    ] = "jobs/data/demo_prompts.jsonl",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Times the arms take turns.")] = 3,
) -> None:
    """Compare throughput with energy, metrics, traces, rows and a viewer on over all of it off."""
    work = work_of(config, input_uri, max_tokens)
    table = Table(
        title=f"{len(work):,} prompts, greedy, {config.replicas.count} replicas of {config.model}; "
        "on: energy, metrics, a trace per request, rows in Parquet, a viewer",
        title_justify="left",
    )
    for column in ("round", "all off, tokens/s", "all on, tokens/s", "ratio"):
        table.add_column(column, justify="right")
    rates: list[tuple[float, float]] = []
    for number in range(rounds):
        # Who is first changes from round to round.
        if number % 2 == 0:
            off = _off(config, work)
            on, seen = _on(config, work)
        else:
            on, seen = _on(config, work)
            off = _off(config, work)
        rates.append((off.tokens_per_s, on.tokens_per_s))
        console.log(f"round {number + 1} of {rounds}: {on.tokens_per_s / off.tokens_per_s:.3f}")
    for number, (off_rate, on_rate) in enumerate(rates, 1):
        table.add_row(
            str(number), f"{off_rate:,.1f}", f"{on_rate:,.1f}", f"{on_rate / off_rate:.3f}"
        )
    ratio = statistics.median(on_rate / off_rate for off_rate, on_rate in rates)
    table.add_row("median", "", "", f"{ratio:.3f}")
    console.print(table)
    console.print(_totals_table(seen))


def _off(config: ClusterConfig, work: Work) -> Arm:
    with (
        tempfile.TemporaryDirectory() as folder,
        own_cluster(configured(config, {}, predictor=_unlearned(folder), **OFF)) as controller,
    ):
        return asyncio.run(run_through(ClusterClient(controller), work))


def _unlearned(folder: str) -> dict[str, Any]:
    """A predictor that knows nothing from an earlier arm, which would change who goes first."""
    return {"network": "none", "state": str(Path(folder) / "state.json")}


def _on(config: ClusterConfig, work: Work) -> tuple[Arm, dict[str, Totals]]:
    with tempfile.TemporaryDirectory() as folder, _collector() as endpoint:
        rows = str(Path(folder) / "rows")
        everything = configured(
            config,
            {},
            predictor=_unlearned(folder),
            energy={"meter": "model", "power_model": POWER_MODEL},
            telemetry={
                "otlp_endpoint": endpoint,
                "otlp_protocol": "http/protobuf",
            },
            statistics={"rows": rows},
        )
        with own_cluster(everything) as controller:
            arm, last = asyncio.run(_watched(controller, work))
        kept = read_rows(Path(rows))
        return arm, {
            "clients": Totals(len(arm.answers), sum(map(len, arm.answers)), None),
            "page": _of_picture(last),
            "Parquet": Totals(
                len(kept), int(kept["output_tokens"].sum()), float(kept["energy_joules"].sum())
            ),
        }


async def _watched(controller: Any, work: Work) -> tuple[Arm, ClusterSnapshot]:
    client = ClusterClient(controller)
    viewing = asyncio.create_task(_view(client))
    try:
        arm = await run_through(client, work)
    finally:
        viewing.cancel()
        await asyncio.wait([viewing])
    while True:  # replicas tell of an end when the client knows it already
        await asyncio.sleep(VIEW_S)
        picture = await client.snapshot()
        if not picture.status.running:
            return arm, picture


async def _view(client: ClusterClient) -> None:
    while True:
        await client.snapshot()
        await asyncio.sleep(VIEW_S)


def _of_picture(picture: ClusterSnapshot) -> Totals:
    whole = next(view for view in picture.latencies if view.by == "all" and not view.window_s)
    return Totals(whole.requests, whole.output_tokens, whole.energy_joules)


def _totals_table(seen: Mapping[str, Totals]) -> Table:
    table = Table(title="What each sees of the last round", title_justify="left")
    table.add_column("")
    for column in ("requests", "output tokens", "joules of requests"):
        table.add_column(column, justify="right")
    for name, totals in seen.items():
        joules = "-" if totals.joules is None else f"{totals.joules:,.3f}"
        table.add_row(name, f"{totals.requests:,}", f"{totals.output_tokens:,}", joules)
    return table


class _Collector(BaseHTTPRequestHandler):
    """Takes traces and throws them away."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()
