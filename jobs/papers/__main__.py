"""`python -m jobs.papers`: run the studies and write the page of results."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.command import run
from jobs.papers.castillo import data_folder
from jobs.papers.page import write_page
from jobs.papers.studies import all_studies
from jobs.papers.study import ResultStore, Section, Study, measure_missing, section_of
from policies.registry import check_name

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
messages = Console(stderr=True, highlight=False)


@app.command()
def papers(
    study: Annotated[
        list[str] | None, typer.Option(help="Only this study; may be repeated.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Forget the kept results of these studies.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs"),
    kept: Annotated[Path, typer.Option(help="Folder of kept results.")] = Path("out/papers"),
    processes: Annotated[int, typer.Option(min=1, help="Processes that measure.")] = 2,
) -> None:
    """Run the papers' experiments again and write `results.md` with its figures.

    Results are kept by their parameters and seed: what was measured once is not measured again, and
    a run that was stopped goes on. A study whose data are not there keeps its section of the page.
    """
    studies = all_studies()
    for name in study or ():
        check_name("study", name, [s.name for s in studies])
    chosen = [s for s in studies if not study or s.name in study]
    sections: dict[str, Section] = {}
    with ProcessPoolExecutor(processes) as executor:
        for one in chosen:
            if one.needs_data and data_folder() is None:
                messages.print(
                    f"{one.name}: skipped, because CASTILLO was not found; set TIEBREAK_DATA to "
                    "the folder that holds castillo/"
                )
                continue
            store = ResultStore(kept / f"{one.name}.json")
            if fresh:
                store.clear()
            _measure(one, store, executor)
            sections[one.name] = section_of(one, store)
    messages.print(f"wrote {write_page(output, studies, sections)}")


def _measure(study: Study, store: ResultStore, executor: ProcessPoolExecutor) -> None:
    started = time.perf_counter()
    done = 0
    with messages.status(study.name) as status:
        for _ in measure_missing(study, store, executor):
            done += 1
            status.update(f"{study.name}: {done} measured")
    elapsed = time.perf_counter() - started
    messages.print(f"{study.name}: {done} of {len(study.cells)} measured in {elapsed:.0f} s")


if __name__ == "__main__":
    run(app)
