"""Finished requests as figures; matplotlib, of the extra `simulation`, is imported when drawing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jobs.drawing import COLOURS, INK, Drawing, grid, label, legend, svg
from jobs.finished.row_table import ANSWERED
from policies.batch import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 4000
"""Requests that a cloud of points shows at most, spread evenly over all."""

_BINS = 60
"""Stretches of time that a curve over time has."""

_LINES = len(COLOURS)
"""Groups that a figure tells apart at most, those with the most requests."""


def draw_rows(rows: pd.DataFrame) -> list[Drawing]:
    """All figures that rows have the columns for.

    Args:
        rows: As of `read_rows`.
    """
    answers = rows[rows["finish_reason"].isin(ANSWERED) & (rows["output_tokens"] > 0)]
    timed = answers.dropna(subset=["dispatched_s"])
    known = answers.dropna(subset=["forecast_mu"])
    metered = answers.dropna(subset=["energy_joules"])
    drawings = []
    if len(timed):
        drawings += [
            Drawing(
                "per-token-latency",
                "Latency per output token",
                "Share of the requests whose latency per output token is at most this. Further "
                "left is better; the far right is what the unluckiest request saw.",
                svg(lambda: _distributions(timed)),
            ),
            Drawing(
                "over-time",
                "Latency over time",
                "Median (line) and 99th percentile (dots) of the requests that arrived in each "
                "stretch of time.",
                svg(lambda: _over_time(timed)),
            ),
        ]
    if len(known):
        drawings.append(
            Drawing(
                "forecasts",
                "Lengths against forecasts",
                "A point for each request, drawn evenly from all; on the line the median of the "
                "forecast was right. Bars are the intervals of some of them.",
                svg(lambda: _forecasts(known)),
            )
        )
    if len(metered):
        drawings.append(
            Drawing(
                "energy",
                "Energy against length",
                "Joules attributed to each request, by its output tokens; drawn evenly from all.",
                svg(lambda: _energy(metered)),
            )
        )
    return drawings


def _told_apart(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, colour and rows of each policy, or of each class of the only one."""
    column = "policy" if rows["policy"].nunique() > 1 else "request_class"
    counts = rows[column].value_counts()
    for name, colour in zip(counts.index[:_LINES], COLOURS, strict=False):
        yield str(name), colour, rows[rows[column] == name]


def _distributions(rows: pd.DataFrame) -> Figure:
    figure, (panel,) = grid(1, height_in=3.4)
    for name, colour, own in _told_apart(rows):
        values = np.sort((own["finished_s"] / own["output_tokens"]).to_numpy(np.float64))
        shares = 100 * np.arange(1, len(values) + 1) / len(values)
        at = np.unique(np.linspace(0, len(values) - 1, 1000).astype(np.int64))
        panel.plot(values[at], shares[at], label=name, color=colour, lw=1.6)
    panel.set_xscale("log")
    panel.set_ylim(0, 101)
    label([panel], "latency per output token (s)", "requests (%)")
    legend(figure, panel)
    return figure


def _over_time(rows: pd.DataFrame) -> Figure:
    figure, panels = grid(2, height_in=3.0)
    begin_s = rows["arrival_unix_s"].min()
    span_s = max(float(rows["arrival_unix_s"].max() - begin_s), 1e-9)
    for panel, column, title in zip(
        panels, ("first_token_s", "finished_s"), ("time to first token", "latency"), strict=True
    ):
        for name, colour, own in _told_apart(rows.dropna(subset=[column])):
            since_s = own["arrival_unix_s"] - begin_s
            stretch = (since_s / span_s * _BINS).astype(np.int64).clip(upper=_BINS - 1)
            cut = own[column].groupby(stretch).quantile(np.array([0.5, 0.99])).unstack()
            at_s = (cut.index.to_numpy() + 0.5) * span_s / _BINS
            panel.plot(at_s, cut[0.5], label=name, color=colour, lw=1.6)
            panel.plot(at_s, cut[0.99], color=colour, ls="", marker=".", markersize=3)
        panel.set_yscale("log")
        panel.set_title(title)
    label(panels, "arrival, since the first one (s)", "seconds")
    legend(figure, panels[0])
    return figure


def _forecasts(rows: pd.DataFrame) -> Figure:
    figure, (panel,) = grid(1, height_in=4.2)
    shown = _evenly(rows, _POINTS)
    few = _evenly(rows, 60)
    median = np.exp(few["forecast_mu"].to_numpy(np.float64))
    panel.vlines(median, few["forecast_lower"], few["forecast_upper"], color=INK, alpha=0.25, lw=1)
    for name, colour, own in _told_apart(shown):
        x = np.exp(own["forecast_mu"].to_numpy(np.float64))
        _cloud(panel, x, own["output_tokens"].to_numpy(np.float64), name, colour)
    lengths = shown["output_tokens"].to_numpy(np.float64)
    ends = [min(lengths.min(), median.min()), max(lengths.max(), median.max())]
    panel.plot(ends, ends, color=INK, lw=1, ls=(0, (4, 2)))
    panel.set_xscale("log")
    panel.set_yscale("log")
    label([panel], "forecast median (tokens)", "output tokens")
    legend(figure, panel)
    return figure


def _cloud(panel: Axes, x: Floats, y: Floats, name: str, colour: str) -> None:
    panel.scatter(x, y, s=9, alpha=0.6, linewidths=0, color=colour, label=name, rasterized=True)


def _energy(rows: pd.DataFrame) -> Figure:
    figure, (panel,) = grid(1, height_in=3.8)
    for name, colour, own in _told_apart(_evenly(rows, _POINTS)):
        x = own["output_tokens"].to_numpy(np.float64)
        _cloud(panel, x, own["energy_joules"].to_numpy(np.float64), name, colour)
    panel.set_xscale("log")
    panel.set_yscale("log")
    label([panel], "output tokens", f"joules ({', '.join(sorted(set(rows['energy_source'])))})")
    legend(figure, panel)
    return figure


def _evenly(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, most).astype(np.int64))]
