"""`tiebreak report`: what the rows of finished requests say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.config import ConfigError
from jobs.drawing import require_matplotlib
from jobs.errors import OutputError
from jobs.finished.row_figures import draw_rows
from jobs.finished.row_report import TERMS, RowReport
from jobs.finished.row_summary import GROUPINGS
from jobs.finished.row_table import read_rows
from jobs.simulating.html_report import html_report
from jobs.simulating.tables import render_table

_TABLE_COLUMNS = 140

_LEAD = "One row per request that ended. Durations are of requests that were answered."


def report(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder of rows (statistics.rows, or --out of tiebreak simulate), or one file."
        ),
    ],
    by: Annotated[
        list[str] | None,
        typer.Option(help=f"Tell apart by: {', '.join(GROUPINGS)}; repeat for several."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, with figures.")] = None,
    report_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report on finished requests: latencies, forecasts, energy, by class, tenant, job and more."""
    for name in by or ():
        if name not in GROUPINGS:
            raise ConfigError(f"--by is {name!r}, must be one of {', '.join(GROUPINGS)}")
    if out is not None:
        require_matplotlib()
    rows = RowReport(read_rows(path), path, by)
    if out is not None:
        _write(rows, out)
    if report_json:
        typer.echo(json.dumps(rows.as_dict()))
        return
    console = Console()
    # A table wider than the terminal is broken by the terminal, not squeezed by rich.
    wide = Console(width=max(console.width, _TABLE_COLUMNS))
    for name, text in rows.facts().items():
        console.print(f"[bold]{name}:[/] {escape(text)}", highlight=False)
    for table in rows.tables():
        wide.print()
        wide.print(render_table(table))
    if out is not None:
        console.print(f"report in {out.resolve() / 'report.html'}", soft_wrap=True, highlight=False)


def _write(rows: RowReport, out: Path) -> None:
    drawings = draw_rows(rows.rows)
    page = html_report(
        "Finished requests", rows.facts(), rows.tables(), drawings, lead=_LEAD, terms=TERMS
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error}") from None
