"""The page of results: one section per study, of which each can be replaced alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.papers.study import Section, Study

FIGURES = "figures"
_WIDTH = 120

_PREAMBLE = """# Results

Written by `make papers` (`python -m jobs.papers`); every number below comes from that command. The
policies come from *Scheduling LLM Inference with Uncertainty-Aware Output Length Predictions* (TIE,
arXiv:2604.00499) and *Adaptively Robust LLM Inference Optimization under Prediction Uncertainty*
(A_min, arXiv:2508.14544). All runs of policies are simulations: the production scheduling core over
simulated engines in virtual time. CASTILLO is read from `$TIEBREAK_DATA/castillo`.
"""


def build_page(
    studies: Sequence[Study], sections: Mapping[str, Section], existing: str = ""
) -> str:
    """The page in Markdown.

    Args:
        studies: All studies, in the order of the page.
        sections: Sections made now, by the study's name.
        existing: The page as it was: it keeps the section of a study that was not run.
    """
    parts = [_PREAMBLE]
    for study in studies:
        if study.name in sections:
            body = sections[study.name].text.strip()
        else:
            body = _section_in(existing, study.name) or _absent(study)
        parts.append(
            f"{_begin(study.name)}\n## {study.title}\n\n{_filled(_untitled(body))}\n{_END}\n"
        )
    return "\n".join(parts)


def write_page(folder: Path, studies: Sequence[Study], sections: Mapping[str, Section]) -> Path:
    """Write `results.md` and the figures of the sections made now; return the page's path."""
    page = folder / "results.md"
    existing = page.read_text() if page.exists() else ""
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for section in sections.values():
        for name, svg in section.figures.items():
            (folder / FIGURES / name).write_text(svg)
    page.write_text(build_page(studies, sections, existing))
    return page


_END = "<!-- end of study -->"


def _begin(name: str) -> str:
    return f"<!-- study: {name} -->"


def _section_in(page: str, name: str) -> str:
    pattern = re.escape(_begin(name)) + r"\n(.*?)\n" + re.escape(_END)
    found = re.search(pattern, page, re.DOTALL)
    return found.group(1).strip() if found else ""


def _filled(text: str) -> str:
    """Paragraphs wrapped to `_WIDTH`; tables, headings and figures as they are."""
    blocks = [
        block
        if block.startswith(("|", "#", "!"))
        else textwrap.fill(block, _WIDTH, break_long_words=False, break_on_hyphens=False)
        for block in text.split("\n\n")
    ]
    return "\n\n".join(blocks)


def _untitled(body: str) -> str:
    """A kept section without its heading, which is written anew."""
    return re.sub(r"\A## [^\n]*\n+", "", body)


def _absent(study: Study) -> str:
    reason = "it needs CASTILLO, which was not found" if study.needs_data else "it was not run"
    return f"No results: {reason}."
