"""A comparison as figures; matplotlib, of the extra `simulation`, is imported when drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.drawing import (
    COLOURS,
    DASHES,
    INK,
    PANEL_IN,
    Drawing,
    grid,
    label,
    legend,
    svg,
)
from jobs.simulating.curves import SHARES, Curves
from jobs.simulating.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PROJECTED = 200
"""Per cent of the capacity beyond which a projected peak is not drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One arm of a comparison, as far as the figures need it."""

    summary: Summary
    curves: Curves


def draw(arms: Sequence[Drawn], block_size: int) -> list[Drawing]:
    """All figures of a comparison.

    Args:
        arms: By load and policy, of one seed.
        block_size: Tokens of a KV block.
    """
    loads = list(dict.fromkeys(a.summary.load for a in arms))
    busiest = [a for a in arms if a.summary.load == loads[-1]]
    where = loads[-1]
    drawings = [
        Drawing(
            "per-token-latency",
            "Latency per output token",
            "Share of the requests whose latency per output token is at most this. Further left is "
            "better; the far right is what the unluckiest request saw.",
            svg(lambda: _distributions(arms, loads)),
        )
    ]
    if len(loads) > 1:
        drawings.append(
            Drawing(
                "latency-against-load",
                "Latency against load",
                "Mean and 99th percentile of the latency per output token.",
                svg(lambda: _against_load(arms, loads)),
            )
        )
    drawings += [
        Drawing(
            "memory",
            f"Memory over time, {where}",
            "KV memory in use on all replicas, and the peak that the policy's own projection saw "
            "ahead at that moment, as shares of the capacity.",
            svg(lambda: _memory(busiest, block_size)),
        ),
        Drawing(
            "queue",
            f"Queue over time, {where}",
            "Requests that wait to be dispatched.",
            svg(lambda: _queue(busiest)),
        ),
        Drawing(
            "completion-against-length",
            f"Completion time against output length, {where}",
            "Time from arrival to the last token, one point per request, drawn evenly from all. "
            "The further the cloud falls to the left, the less short answers wait for long ones.",
            svg(lambda: _completions(busiest)),
        ),
    ]
    return drawings


def _distributions(arms: Sequence[Drawn], loads: Sequence[str]) -> Figure:
    figure, panels = grid(len(loads), height_in=3.4 if len(loads) == 1 else PANEL_IN + 0.5)
    for panel, load in zip(panels, loads, strict=True):
        for arm in arms:
            if arm.summary.load == load and len(arm.curves.per_token_s):
                panel.plot(arm.curves.per_token_s, 100 * SHARES, **_line(arm, arms))
        panel.set_xscale("log")
        panel.set_ylim(0, 101)
        panel.set_title(load)
    label(panels, "latency per output token (s)", "requests (%)")
    legend(figure, panels[0])
    return figure


def _against_load(arms: Sequence[Drawn], loads: Sequence[str]) -> Figure:
    figure, panels = grid(2, height_in=3.2)
    offered = [_offered(next(a for a in arms if a.summary.load == load)) for load in loads]
    multiples = all(a.summary.load_multiple is not None for a in arms)
    for panel, title in zip(panels, ("mean", "99th percentile"), strict=True):
        for name in dict.fromkeys(a.summary.policy for a in arms):
            own = [a for a in arms if a.summary.policy == name]
            latency = [a.summary.per_token_latency_s for a in own]
            values = [s.mean if title == "mean" else s.p99 for s in latency]
            panel.plot(offered, values, marker="o", markersize=4, **_line(own[0], arms))
        panel.set_xscale("log")
        panel.set_xticks(offered, [f"{x:g}" for x in offered])
        panel.set_xticks([], minor=True)
        panel.set_yscale("log")
        panel.set_title(title)
    unit = "offered load (multiples of capacity)" if multiples else "offered load (requests/s)"
    label(panels, unit, "latency per output token (s)")
    legend(figure, panels[0])
    return figure


def _memory(arms: Sequence[Drawn], block_size: int) -> Figure:
    figure, panels = grid(len(arms))
    for panel, arm in zip(panels, arms, strict=True):
        line, capacity = arm.curves.timeline, arm.curves.capacity_blocks / 100
        colour = _line(arm, arms)["color"]
        panel.fill_between(
            line.t_s, line.used_blocks / capacity, color=colour, alpha=0.45, lw=0, label="in use"
        )
        panel.plot(
            line.t_s,
            line.projected_peak_blocks / capacity,
            color=colour,
            lw=1,
            label="projected peak",
        )
        panel.axhline(100, color=INK, lw=1, ls=(0, (4, 2)), label="capacity")
        panel.set_title(arm.summary.policy)
    most = max(float(arm.curves.timeline.projected_peak_blocks.max(initial=0)) for arm in arms)
    top = 105 * most / arms[0].curves.capacity_blocks
    panels[0].set_ylim(0, min(max(top, 110), _MOST_PROJECTED))
    tokens = arms[0].curves.capacity_blocks * block_size
    label(panels, "time (s)", "KV memory (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    labels[-1] = f"capacity ({tokens:,} tokens)"
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _queue(arms: Sequence[Drawn]) -> Figure:
    figure, (panel,) = grid(1, height_in=3.4)
    for arm in arms:
        line = arm.curves.timeline
        panel.plot(line.t_s, line.waiting, **_line(arm, arms))
    panel.set_ylim(bottom=0)
    panel.set_xlim(left=0)
    label([panel], "time (s)", "waiting requests")
    legend(figure, panel)
    return figure


def _completions(arms: Sequence[Drawn]) -> Figure:
    figure, panels = grid(len(arms))
    for panel, arm in zip(panels, arms, strict=True):
        panel.scatter(
            arm.curves.output_tokens,
            arm.curves.latency_s,
            s=5,
            alpha=0.35,
            linewidths=0,
            color=_line(arm, arms)["color"],
            rasterized=True,
        )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(arm.summary.policy)
    label(panels, "output length (tokens)", "completion time (s)")
    return figure


def _line(arm: Drawn, arms: Sequence[Drawn]) -> dict[str, Any]:
    """Colour and dashes by which a policy is known in every figure."""
    names = list(dict.fromkeys(a.summary.policy for a in arms))
    index = names.index(arm.summary.policy)
    return {
        "label": arm.summary.policy,
        "color": COLOURS[index % len(COLOURS)],
        "ls": DASHES[index // len(COLOURS) % len(DASHES)],
        "lw": 1.6,
    }


def _offered(arm: Drawn) -> float:
    summary = arm.summary
    return summary.load_multiple or summary.rate_per_s or np.nan
