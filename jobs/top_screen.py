"""What `tiebreak top` draws for a snapshot, cut to the size of the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.snapshot import ClusterSnapshot, LatencyView, ReplicaView, WaitingView
from cluster.summary import Summary, by_pressure, summarise
from jobs.figures import duration, energy, meter

STYLES = {"good": "green", "busy": "yellow", "bad": "bold red", "unknown": "dim"}

WINDOW_S = 300
"""Window of the percentiles shown, in seconds; one that `LatencyView` knows."""

WIDE = 120
"""Columns from which on ids are not shortened."""

BAR = 20
"""Characters of a memory bar."""

FIXED_LINES = 13
"""Lines other than those of replicas and of requests that wait."""


def screen(
    snapshot: ClusterSnapshot | None,
    width: int,
    height: int,
    trouble: str = "",
    *,
    plain: bool = False,
) -> RenderableType:
    """One picture.

    Args:
        snapshot: What to show; None: there has been none yet.
        width: Columns of the terminal.
        height: Its lines.
        trouble: Why there is no newer snapshot; empty: there is none newer.
        plain: Whether to draw with ASCII only.
    """
    if snapshot is None:
        return Text(trouble or "asking for the first snapshot", style="bold red" if trouble else "")
    room = max(4, height - FIXED_LINES - bool(trouble))
    waiting = min(len(snapshot.head), max(2, room // 2), room - min(len(snapshot.replicas), 2))
    replicas = max(2, room - waiting)
    summary = summarise(snapshot)
    parts: list[RenderableType] = [_title(snapshot), _counts(snapshot)]
    if trouble:
        parts.append(_line(f"no news: {trouble}", "bold red"))
    parts += _sentences(summary)
    parts.append(_replicas(by_pressure(snapshot.replicas), replicas, plain=plain))
    parts.append(_queue(snapshot.head, waiting, sum(q.requests for q in snapshot.queues), width))
    parts.append(_latencies(snapshot.latencies))
    parts += [_energy(snapshot), _faults(snapshot)]
    return Group(*parts)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _title(snapshot: ClusterSnapshot) -> Text:
    status = snapshot.status
    line = _line("Tiebreak", "bold")
    line.append(
        f"  {status.model}, policy {status.policy}, up {duration(snapshot.uptime_s)}",
        style="not bold",
    )
    return line


def _counts(snapshot: ClusterSnapshot) -> Text:
    status = snapshot.status
    waits = ", ".join(f"{q.requests:,} {q.request_class}" for q in snapshot.queues)
    speed = sum(view.tokens_per_s for view in snapshot.replicas)
    return _line(
        f"waiting {waits}; running {status.running:,}; {speed:,.0f} tokens/s; "
        f"finished {status.finished:,}, refused {status.refused:,}",
    )


def _sentences(summary: Summary) -> list[Text]:
    lines = []
    for name in ("bottleneck", "queue", "forecasts"):
        sentence = getattr(summary, name)
        line = _line(f"{name:<11}", "bold")
        line.append(sentence.short, style=f"not bold {STYLES[sentence.level]}")
        line.append(f"  {sentence.text}", style="not bold")
        lines.append(line)
    return lines


def _table(*columns: str) -> Table:
    """A table whose columns named with a leading `>` are aligned to the right."""
    table = Table(box=None, pad_edge=False, expand=False, header_style="dim")
    for name in columns:
        justify: JustifyMethod = "right" if name.startswith(">") else "left"
        table.add_column(name.removeprefix(">"), no_wrap=True, justify=justify, overflow="ellipsis")
    return table


def _replicas(views: Sequence[ReplicaView], room: int, *, plain: bool) -> RenderableType:
    shown = views[: room if len(views) <= room else room - 1]
    table = _table("replica", "more?", "KV memory", ">blocks", ">peak", ">slots", ">tok/s")
    for view in shown:
        status = view.status
        ready = status.state == "ready"
        takes = "yes" if ready and not view.bottleneck else view.bottleneck or status.state
        table.add_row(
            status.replica_id,
            Text(takes, style="green" if takes == "yes" else "yellow" if ready else "red"),
            _bar(view, plain=plain),
            f"{status.used_blocks:,}/{status.kv_blocks:,}",
            f"{_peak(view):,}",
            f"{status.running}/{status.slots}",
            f"{view.tokens_per_s:,.0f}",
        )
    if len(shown) == len(views):
        return table
    return Group(table, _line(f"and {len(views) - len(shown):,} more, less full", "dim"))


def _peak(view: ReplicaView) -> int:
    return max([view.status.used_blocks, *view.projection.blocks])


def _bar(view: ReplicaView, *, plain: bool) -> Text:
    capacity = max(view.status.kv_blocks, 1)
    peak = _peak(view)
    used = min(BAR, round(BAR * view.status.used_blocks / capacity))
    rise = min(BAR, math.ceil(BAR * peak / capacity)) - used
    in_use, projected, free = ("#", "+", ".") if plain else ("█", "▒", "·")
    bar = Text(in_use * used, style="blue")
    bar.append(projected * max(rise, 0), style="red" if peak > capacity else "cyan")
    bar.append(free * (BAR - len(bar)), style="dim")
    return bar


def _queue(head: Sequence[WaitingView], room: int, waiting: int, width: int) -> RenderableType:
    if not head:
        return _line(
            "queue       nothing waits" if not waiting else f"queue  {waiting:,} wait", "dim"
        )
    rows = [
        (
            f"{item.position:,}",
            item.request_id if width >= WIDE else _short(item.request_id),
            item.request_class,
            duration(item.waited_s),
            f"{math.exp(item.forecast.mu):,.0f}",
        )
        for item in head[:room]
    ]
    names = (">place", "request", "class", ">waits", ">forecast")
    table = _table(*names, "why it waits")
    widths = (len(max(column, key=len)) for column in zip(names, *rows, strict=True))
    # Rich would take the others' room for the sentences, which are the longest.
    table.columns[-1].max_width = max(12, width - sum(widths) - 2 * len(names))
    for row, item in zip(rows, head, strict=False):
        # As texts: clients choose ids, and Rich would read brackets in them as markup.
        table.add_row(*map(Text, row), Text(item.reason))
    return table


def _short(request_id: str) -> str:
    return request_id if len(request_id) <= 16 else f"{request_id[:8]}~{request_id[-7:]}"


def _latencies(views: Sequence[LatencyView]) -> RenderableType:
    chosen = [v for v in views if v.by == "class" and v.window_s == WINDOW_S and v.requests]
    if not chosen:
        return _line(f"latency     no request has finished within {duration(WINDOW_S)}", "dim")
    table = _table(
        f"last {WINDOW_S // 60} min", ">requests", ">TTFT p50", ">p99", ">latency p50", ">p99"
    )
    for view in chosen:
        told = [view.measures.get(name) for name in ("ttft_s", "latency_s")]
        cells = [
            duration(getattr(spread, step)) if spread is not None and spread.count else "-"
            for spread in told
            for step in ("p50", "p99")
        ]
        table.add_row(view.name, f"{view.requests:,}", *cells)
    return table


def _energy(snapshot: ClusterSnapshot) -> Text:
    view, totals = snapshot.energy, snapshot.energy.totals
    if not view.sources:
        return _line("energy      not measured", "dim")
    power = "" if view.power_w is None else f"{view.power_w:,.0f} W now, "
    cap = "" if view.power_cap_w is None else f"capped at {view.power_cap_w:,.0f} W, "
    token = view.joules_per_output_token
    per_token = "" if token is None else f", {token:.3g} J per output token"
    return _line(
        f"energy      {power}{cap}{energy(totals.metered_joules)}: "
        f"{energy(totals.request_joules)} requests ({energy(totals.wasted_joules)} wasted), "
        f"{energy(totals.idle_joules)} idle{per_token}; "
        + ", ".join(meter(source) for source in view.sources)
    )


def _faults(snapshot: ClusterSnapshot) -> Text:
    happened = [
        f"{times:,} {name.replace('_', ' ')}" for name, times in snapshot.faults.items() if times
    ]
    if not happened:
        return _line(f"faults      none in {duration(snapshot.uptime_s)}", "dim")
    return _line("faults      " + ", ".join(happened), "red")
