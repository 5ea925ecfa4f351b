"""A comparison as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from jobs.drawing import Drawing
from jobs.simulating.tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #666; --page: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --page: #16181b; --line: #383c42; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, dd, figcaption { color: var(--soft); }
figure { margin: 0; }
figcaption { margin-bottom: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .8rem 0 .3rem; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; color: var(--soft); }
thead th[colspan] { text-align: center; }
thead tr:last-child th { border-bottom: 1px solid var(--line); }
tbody tr:hover { background: color-mix(in srgb, var(--ink) 6%, transparent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 1rem 0; }
dt { font-weight: 600; }
dd { margin: 0; }
svg text { font-family: inherit; }
"""

_LEAD = "A simulation: all times are virtual seconds. Every policy was given the same requests."

_TERMS = {
    "per token": "Time from arrival to the last token, divided by the output tokens.",
    "TTFT": "Time from arrival to the first token.",
    "recomputed": "Tokens computed again after evictions, over the prompt and output tokens.",
    "memory, mean": "KV blocks in use over capacity, averaged over time and replicas.",
    "memory, peak": "The most that one replica had in use.",
    "covered": "Answers inside their forecast's interval. One that was cut off at its cap inside "
    "the interval is not counted.",
    "Kendall, Spearman": "Rank correlation of the forecast medians with the lengths.",
    "outside range": "Share of the busy time in steps larger than the step-time model was measured "
    "or fitted on: above 0, take the seconds with care.",
}


def html_report(
    title: str,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    *,
    lead: str = _LEAD,
    terms: Mapping[str, str] = _TERMS,
) -> str:
    """The page.

    Args:
        title: Heading.
        facts: What was simulated and how, by name.
        tables: Figures in numbers.
        drawings: Figures in pictures.
        lead: What it is, in a sentence.
        terms: What the tables' headings mean.
    """
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(lead)}</p>",
            _list(facts),
            *map(_table, tables),
            "<h2>Terms</h2>",
            _list(terms),
            *map(_figure, drawings),
            "</body>\n</html>\n",
        )
    )


def _list(items: Mapping[str, str]) -> str:
    entries = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items())
    return f"<dl>\n{entries}\n</dl>"


def _table(table: Table) -> str:
    groups = "".join(
        f'<th colspan="{span}">{escape(name)}</th>' if span > 1 else f"<th>{escape(name)}</th>"
        for name, span in table.groups
    )
    headings = "".join(f"<th>{escape(name)}</th>" for name in table.headings)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{groups}</tr>\n<tr>{headings}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
        "</div>"
    )


def _figure(drawing: Drawing) -> str:
    return (
        f'<h2>{escape(drawing.title)}</h2>\n<figure id="{escape(drawing.name)}">'
        f"<figcaption>{escape(drawing.caption)}</figcaption>\n{drawing.svg}\n</figure>"
    )
