"""The dashboard as Grafana imports it."""

from __future__ import annotations

from typing import Any

from cluster.telemetry.metric import RAY_PREFIX
from cluster.telemetry.panels import ROWS, Panel

_COLUMNS = 24
_HEIGHT = {"stat": 4, "timeseries": 8, "table": 8}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"textMode": "value_and_name", "reduceOptions": {"calcs": ["lastNotNull"]}},
    "timeseries": {
        "tooltip": {"mode": "multi", "sort": "desc"},
        "legend": {"displayMode": "list", "placement": "bottom"},
    },
    "table": {"showHeader": True},
}


def dashboard() -> dict[str, Any]:
    """The dashboard, as JSON to be imported."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        panels.append({"type": "row", "title": title, "gridPos": place, "collapsed": False})
        top = _place(panels, row, top + 1)
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": "tiebreak",
        "title": "Tiebreak",
        "tags": ["ray", "vllm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), _session()]},
        "panels": panels,
    }


def _place(panels: list[dict[str, Any]], row: tuple[Panel, ...], top: int) -> int:
    """Add a row's panels side by side, four small or two large ones; returns the next free line."""
    left = bottom = 0
    for panel in row:
        width = _COLUMNS // (4 if panel.kind == "stat" else 2)
        height = _HEIGHT[panel.kind]
        if left + width > _COLUMNS:
            left, top = 0, bottom
        panels.append(_panel(panel, {"x": left, "y": top, "w": width, "h": height}))
        left, bottom = left + width, top + height
    return bottom


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": panel.least}
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for number, query in enumerate(panel.queries)
        ],
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }


def _session() -> dict[str, Any]:
    """Which Ray cluster; all that report by default."""
    return {
        "name": "session",
        "label": "Ray session",
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({RAY_PREFIX}tiebreak_info, SessionName)",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
