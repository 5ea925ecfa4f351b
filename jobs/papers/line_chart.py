"""Line charts as SVG documents that read on light and on dark pages."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.drawing import require_matplotlib

# Okabe and Ito's colours without yellow and black, which vanish on white or on dark pages.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
_DASHES = ("-", "--", ":")
_GREY = "#767676"


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Attributes:
        label: Its name in the legend.
        values: One per position on the x axis; NaN leaves a gap.
    """

    label: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over common positions, equally spaced; the y axis is logarithmic.

    Attributes:
        title: Above the chart.
        x_label: Below it.
        y_label: Beside it.
        positions: Labels of the positions on the x axis.
        lines: The curves, positive where finite.

    Raises:
        ValueError: A curve has not one value per position, or nothing can be drawn.
    """

    title: str
    x_label: str
    y_label: str
    positions: Sequence[str]
    lines: Sequence[Line]

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line.values) != len(self.positions):
                raise ValueError(
                    f"curve {line.label!r} has {len(line.values)} values, must have one for each "
                    f"of {len(self.positions)} positions"
                )
        finite = [v for line in self.lines for v in line.values if math.isfinite(v)]
        if not any(v > 0 for v in finite):
            raise ValueError(f"chart {self.title!r} has no positive value; leave it out")
        if any(v <= 0 for v in finite):
            raise ValueError(f"chart {self.title!r} has a value of 0 or less on a logarithmic axis")

    def svg(self) -> str:
        """The document; equal charts give equal documents.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        require_matplotlib()
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        with rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "tiebreak",
                "text.color": _GREY,
                "axes.labelcolor": _GREY,
                "axes.edgecolor": _GREY,
                "xtick.color": _GREY,
                "ytick.color": _GREY,
            }
        ):
            figure = Figure(figsize=(8.4, 4.2), layout="constrained")
            axes = figure.add_subplot()
            for index, line in enumerate(self.lines):
                axes.plot(
                    range(len(self.positions)),
                    line.values,
                    marker="o",
                    markersize=4,
                    label=line.label,
                    color=_COLOURS[index % len(_COLOURS)],
                    linestyle=_DASHES[index // len(_COLOURS) % len(_DASHES)],
                )
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(range(len(self.positions)), self.positions)
            axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
            axes.grid(axis="y", color=_GREY, alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            figure.legend(loc="outside right upper", frameon=False)
            document = io.StringIO()
            figure.savefig(document, format="svg", transparent=True, metadata={"Date": None})
        return document.getvalue()
