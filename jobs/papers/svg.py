"""Line charts as small SVG documents that read on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 210, 34, 52
_LEGEND_STEP = 18
# Okabe and Ito's colours without yellow and black, which vanish on white or on dark pages.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
_DASHES = ("", "7 3", "2 3")
_ROUND = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)


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
        if not any(v > 0 for v in self._finite()):
            raise ValueError(f"chart {self.title!r} has no positive value; leave it out")
        if any(v <= 0 for v in self._finite()):
            raise ValueError(f"chart {self.title!r} has a value of 0 or less on a logarithmic axis")

    def svg(self) -> str:
        """The document."""
        low, high = self._range()
        y_at = _log_scale(low, high, _HEIGHT - _BOTTOM, _TOP)
        right = _WIDTH - _RIGHT
        step = (right - _LEFT) / max(len(self.positions) - 1, 1)
        x_at = [_LEFT + i * step for i in range(len(self.positions))]
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="sans-serif" font-size="12" fill="#767676">',
            _text(_LEFT, 18, self.title, size=14),
            _text((_LEFT + right) / 2, _HEIGHT - 10, self.x_label, anchor="middle"),
            f'<text transform="translate(14 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>",
        ]
        for tick in _ticks(low, high):
            y = y_at(tick)
            parts.append(
                f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#767676" stroke-opacity=".3"/>'
            )
            parts.append(_text(_LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
        for x, label in zip(x_at, self.positions, strict=True):
            parts.append(_text(x, _HEIGHT - _BOTTOM + 18, label, anchor="middle"))
        for index, line in enumerate(self.lines):
            parts += _curve(index, line, x_at, y_at)
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _finite(self) -> list[float]:
        return [v for line in self.lines for v in line.values if math.isfinite(v)]

    def _range(self) -> tuple[float, float]:
        values = self._finite()
        return min(values) / 1.08, max(values) * 1.08


def _curve(
    index: int, line: Line, x_at: Sequence[float], y_at: Callable[[float], float]
) -> list[str]:
    colour = _COLOURS[index % len(_COLOURS)]
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    style = f'stroke="{colour}" stroke-width="2" fill="none"'
    style += f' stroke-dasharray="{dash}"' if dash else ""
    path, pen = "", "M"
    dots = []
    for x, value in zip(x_at, line.values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        path += f"{pen}{x:.1f} {y_at(value):.1f}"
        pen = "L"
        dots.append(f'<circle cx="{x:.1f}" cy="{y_at(value):.1f}" r="3" fill="{colour}"/>')
    legend_x, legend_y = _WIDTH - _RIGHT + 16, _TOP + 8 + index * _LEGEND_STEP
    return [
        f'<path d="{path}" {style}/>',
        *dots,
        f'<path d="M{legend_x} {legend_y}h24" {style}/>',
        _text(legend_x + 30, legend_y + 4, line.label),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )


def _log_scale(low: float, high: float, bottom: float, top: float) -> Callable[[float], float]:
    span = math.log(high / low)

    def place(value: float) -> float:
        return bottom + (top - bottom) * math.log(value / low) / span

    return place


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within the range, about ten at most."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in (_ROUND, (1.0, 2.0, 5.0), (1.0,)):
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(ticks) <= 10:
            break
    return ticks
