"""A study: cells that are measured independently, and the section of the page made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Cell = Mapping[str, Any]
"""Parameters of one measurement, its seed included; JSON values only."""

Result = dict[str, Any]
"""What a measurement came to; JSON values only."""


Pairs = Sequence[tuple[Cell, Result]]
"""Cells with what they came to."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page.

    Attributes:
        text: Markdown below the title.
        figures: SVG documents by file name, which `text` refers to as `figures/<name>`.
    """

    text: str
    figures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Study:
    """One experiment.

    Attributes:
        name: Short name, also of its cache file.
        title: Heading of its section.
        cells: What is measured.
        measure: Measures one cell; a function of a module, so that other processes can call it.
        write: Makes the section of all cells with their results, in the order of `cells`.
        needs_data: Whether it reads CASTILLO.
    """

    name: str
    title: str
    cells: Sequence[Cell]
    measure: Callable[[Cell], Result]
    write: Callable[[Sequence[tuple[Cell, Result]]], Section]
    needs_data: bool = False


class ResultStore:
    """Results of one study in a JSON file, by the parameters of the cell."""

    def __init__(self, path: Path) -> None:
        """Open the file, or begin one."""
        self._path = path
        self._results: dict[str, Result] = {}
        if path.exists():
            self._results = json.loads(path.read_text())

    def get(self, cell: Cell) -> Result | None:
        """The result for exactly these parameters, None when there is none."""
        return self._results.get(_key(cell))

    def put(self, cell: Cell, result: Result) -> None:
        """Keep a result; the file is whole at every instant."""
        self._results[_key(cell)] = result
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._results, indent=1))
        os.replace(partial, self._path)

    def clear(self) -> None:
        """Forget everything."""
        self._results = {}
        self._path.unlink(missing_ok=True)


def measure_missing(study: Study, store: ResultStore, executor: Executor) -> Iterator[Cell]:
    """Measure the cells that the store lacks, keep each as it ends, and yield it."""
    missing = [cell for cell in study.cells if store.get(cell) is None]
    futures = {executor.submit(study.measure, cell): cell for cell in missing}
    try:
        for future in as_completed(futures):
            store.put(futures[future], future.result())
            yield futures[future]
    finally:
        for future in futures:
            future.cancel()


def section_of(study: Study, store: ResultStore) -> Section:
    """The section, once every cell has been measured.

    Raises:
        KeyError: A cell has no result.
    """
    pairs = []
    for cell in study.cells:
        result = store.get(cell)
        if result is None:
            raise KeyError(f"study {study.name} has no result for {_key(cell)}; measure it first")
        pairs.append((cell, result))
    return study.write(pairs)


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)
