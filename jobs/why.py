"""`tiebreak why ID`: what is known of one request, and why it waits."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.asking import asked
from cluster.client import connect_controller
from cluster.config import ClusterConfig
from cluster.lifecycle import connect_ray
from cluster.snapshot import Explanation
from jobs.errors import InputError
from jobs.figures import duration, energy, meter

console = Console()


def why(
    config: ClusterConfig,
    request_id: Annotated[
        str, typer.Argument(metavar="ID", help="The request's id.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain a request: its forecast, its place, the replicas considered, what happened to it."""
    connect_ray(config.ray.address, start_local=False)
    explanation: Explanation | None = asked(connect_controller().explain, request_id)
    if explanation is None:
        raise InputError(
            f"nothing is known of request {request_id!r}: check the id; requests that ended long "
            "ago are forgotten (`tiebreak report` reads what was written down)"
        )
    if json:
        console.print_json(msgspec.json.encode(explanation).decode())
    else:
        console.print(explained(explanation))


def explained(told: Explanation) -> RenderableType:
    """An explanation in words."""
    parts: list[RenderableType] = [
        Text(told.request_id, style="bold", overflow="fold"),
        Text(told.reason),
        *([Text(told.waited)] if told.waited else []),
        Text(),
        _facts(told),
    ]
    if told.candidates:
        parts += [Text(), _candidates(told)]
    if told.events:
        parts += [Text(), _events(told)]
    return Group(*parts)


def _facts(told: Explanation) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    about = "" if told.position_is_exact else "about "
    place = "" if told.position is None else f", place {about}{told.position:,}"
    again = f", {told.recomputed_tokens:,} tokens computed again" if told.recomputed_tokens else ""
    rows = [
        ("state", told.state + place + (f", on {told.replica_id}" if told.replica_id else "")),
        ("class", told.request_class),
        ("tenant", told.tenant),
        ("job", told.job),
        ("prompt", f"{told.prompt_tokens:,} tokens"),
        ("answer", f"{told.output_tokens:,} tokens so far, at most {told.max_tokens:,}"),
        ("forecast", _forecast(told)),
        ("score", "" if told.key is None else f"{told.key:,.6g} (smaller goes first)"),
        ("evictions", f"{told.evictions:,}{again}"),
        ("energy", _energy(told)),
    ]
    for name, text in rows:
        if text:
            table.add_row(name, Text(text))
    return table


def _forecast(told: Explanation) -> str:
    forecast = told.forecast
    if forecast is None:
        return ""
    return (
        f"median {math.exp(forecast.mu):,.0f} tokens, interval {forecast.lower:,} to "
        f"{forecast.upper:,}, by {forecast.source}"
    )


def _energy(told: Explanation) -> str:
    if told.energy_joules is None:
        return "not known"
    wasted = f", {energy(told.wasted_joules)} of it again" if told.wasted_joules else ""
    return f"{energy(told.energy_joules)}{wasted}, {meter(told.energy_source)}"


def _candidates(told: Explanation) -> Table:
    title = f"replicas considered, the best {len(told.candidates):,} of {told.candidates_of:,}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="dim")
    for name in ("replica", "verdict"):
        table.add_column(name)
    for name in ("needed now", "peak without", "while it runs", "limit", "free slots"):
        table.add_column(name, justify="right")
    for found in told.candidates:
        table.add_row(
            found.replica_id,
            Text(found.verdict, style="green" if found.verdict == "fits" else "yellow"),
            f"{found.used_blocks:,}",
            f"{found.peak_blocks:,}",
            f"{found.peak_with_blocks:,}",
            f"{found.limit_blocks:,}",
            f"{found.free_slots:,}",
        )
    return table


def _events(told: Explanation) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for event in told.events:
        table.add_row(duration(event.at_s), event.what, Text(event.detail))
    return table
