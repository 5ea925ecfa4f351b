"""`tiebreak top`: the cluster in a terminal, once a second."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import ray
import typer
from rich.console import Console
from rich.live import Live

from cluster.asking import asked
from cluster.client import connect_controller
from cluster.config import ClusterConfig
from cluster.lifecycle import connect_ray
from cluster.snapshot import ClusterSnapshot
from jobs.top_screen import screen

PERIOD_S = 1.0
"""How often a snapshot is asked for."""

ANSWER_S = 10.0
"""How long one is waited for before the screen says that there is none."""

UNBOUNDED_LINES = 60
"""Height of what `--once` prints."""

console = Console()


def top(
    config: ClusterConfig,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON.")] = False,
) -> None:
    """Show the running cluster as it works: replicas, queue, latencies, forecasts, energy."""
    connect_ray(config.ray.address, start_local=False)
    controller = connect_controller()
    if json:
        console.print_json(msgspec.json.encode(asked(controller.snapshot)).decode())
        return
    if once:
        snapshot: ClusterSnapshot = asked(controller.snapshot)
        height = UNBOUNDED_LINES
        console.print(screen(snapshot, console.width, height, plain=_is_plain()))
        return
    try:
        _follow()
    except KeyboardInterrupt:
        return


def _follow() -> None:
    latest: ClusterSnapshot | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            began_s = time.monotonic()
            trouble = ""
            try:
                # Looked up each time: the cluster may have been taken down and up again.
                latest = ray.get(connect_controller().snapshot.remote(), timeout=ANSWER_S)
            except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
                trouble = str(error).strip().partition("\n")[0]
            live.update(
                screen(latest, console.width, console.height, trouble, plain=_is_plain()),
                refresh=True,
            )
            time.sleep(max(0.0, began_s + PERIOD_S - time.monotonic()))


def _is_plain() -> bool:
    """Whether the terminal may not know block characters."""
    return not console.encoding.lower().startswith("utf")
