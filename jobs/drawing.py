"""Figures of reports: how they look, and how they stand in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the colour of the page's text, which the page chooses."""
# Okabe and Ito's colours, told apart by any eye; grey for their yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", INK)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))
_WIDTH_IN = 9.5
PANEL_IN = 2.5
_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure of a report.

    Attributes:
        name: For file names.
        title: What it shows.
        caption: How to read it.
        svg: The figure, in the colour of the text around it.
    """

    name: str
    title: str
    caption: str
    svg: str


def require_matplotlib() -> None:
    """Raise `ConfigError` unless figures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the report's figures need matplotlib: install it with "
            "`pip install 'tiebreak[simulation]'`, or leave --out out"
        ) from None


def grid(count: int, height_in: float = PANEL_IN) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels that share their axes, row by row."""
    from matplotlib.figure import Figure

    columns = min(count, _COLUMNS if count != 4 else 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH_IN, height_in * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(axes.flat)
    for spare in panels[count:]:
        figure.delaxes(spare)
    for panel in panels[:count]:
        panel.grid(True, lw=0.5, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    # With a shared axis only the last row has tick labels; above a gap they would be missing.
    for above in panels[max(0, count - columns) : count]:
        above.tick_params(labelbottom=True)
    return figure, panels[:count]


def label(panels: Sequence[Axes], x: str, y: str) -> None:
    """Name the axes that the panels of a figure share."""
    figure = panels[0].figure
    if len(panels) == 1:
        panels[0].set_xlabel(x)
        panels[0].set_ylabel(y)
    else:
        figure.supxlabel(x, fontsize="medium")
        figure.supylabel(y, fontsize="medium")


def legend(figure: Figure, panel: Axes) -> None:
    """Explain the lines of a panel at the right of the figure."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)


def svg(make: Callable[[], Figure]) -> str:
    """The figure as an element for a page: no font, colour of text or address of its own."""
    import matplotlib

    style: dict[Any, Any] = {
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "legend.fontsize": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": make.__qualname__,
        "savefig.transparent": True,
        "savefig.dpi": 160,
    }
    with matplotlib.rc_context(style):
        buffer = io.StringIO()
        make().savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The page sets the width; the font is the page's.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', text, count=1)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    # Names that nothing refers to would stand several times on one page.
    used = set(re.findall(r"#([\w.-]+)", text))
    return re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
