"""The distribution of one answer's length, drawn in a terminal."""

from __future__ import annotations

import math

import numpy as np
from rich.table import Table
from rich.text import Text

from policies.batch import Ints
from policies.forecast import Forecast
from policies.logt import cdf, quantile, survival

ROWS = 14
"""Bins of lengths, at most."""

BAR_CELLS = 40
"""Width of the longest bar."""

FIRST_QUANTILE = 0.005
"""Where the first bin begins; what is shorter is counted in it."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def length_chart(forecast: Forecast, max_tokens: int) -> Table:
    """Bars over bins that grow with the length, and one for answers that the cap will end.

    Bars inside the forecast's interval are bright.

    Args:
        forecast: Of the answer.
        max_tokens: The request's cap, at least 1.
    """
    edges = bin_edges(forecast, max_tokens)
    shares = np.diff(np.concatenate(([0.0], cdf(forecast.mu, forecast.sigma, edges))))
    capped = float(survival(forecast.mu, forecast.sigma, max_tokens))
    largest = max(float(shares.max(initial=0.0)), capped, 1e-9)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    first = 1
    for last, share in zip(edges.tolist(), shares.tolist(), strict=True):
        inside = first <= forecast.upper and last >= forecast.lower
        label = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        table.add_row(label, _bar(share / largest, inside), f"{100 * share:.1f} %")
        first = last + 1
    inside = forecast.upper >= max_tokens
    table.add_row(f"over {max_tokens:,}", _bar(capped / largest, inside), f"{100 * capped:.1f} %")
    return table


def bin_edges(forecast: Forecast, max_tokens: int) -> Ints:
    """Last length of each bin, ascending, at most `ROWS`, the last one the cap."""
    first = float(quantile(forecast.mu, forecast.sigma, FIRST_QUANTILE))
    edges = np.geomspace(min(max(1.0, first), max_tokens), max_tokens, ROWS)
    return np.unique(np.rint(edges).astype(np.int64))


def _bar(share: float, inside: bool) -> Text:
    """A bar of this share of the longest one, in eighths of a cell."""
    eighths = math.ceil(share * BAR_CELLS * 8)
    bar = _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text(bar, style="cyan" if inside else "dim")
