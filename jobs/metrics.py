"""`tiebreak metrics`: what the cluster tells Prometheus, and files for Prometheus and Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.telemetry.catalogue import CATALOGUE, markdown_table
from cluster.telemetry.files import alert_rules, grafana_json, prometheus_config
from jobs.errors import OutputError

messages = Console(stderr=True)

_FILE = {"metavar": "FILE", "dir_okay": False, "show_default": False}


def metrics(
    grafana: Annotated[
        Path | None, typer.Option(help="Write the Grafana dashboard there.", **_FILE)
    ] = None,
    alerts: Annotated[
        Path | None, typer.Option(help="Write the alert rules there.", **_FILE)
    ] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option(help="Write a Prometheus configuration there, the alerts beside it.", **_FILE),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
) -> None:
    """List the metrics, or write the files of a Prometheus and a Grafana for them."""
    if prometheus is not None:
        alerts = alerts or prometheus.with_name("alerts.yml")
        _write(prometheus, prometheus_config(prometheus, alerts=alerts.absolute()))
    if alerts is not None:
        _write(alerts, alert_rules())
    if grafana is not None:
        _write(grafana, grafana_json())
    if markdown:
        typer.echo(markdown_table(), nl=False)
    elif prometheus is None and alerts is None and grafana is None:
        _print()


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    messages.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _print() -> None:
    table = Table("metric", "type", "labels", "meaning", box=None, pad_edge=False)
    for metric in CATALOGUE:
        table.add_row(metric.exported, metric.kind, ", ".join(metric.labels), metric.meaning)
    Console().print(table, highlight=False, markup=False)
