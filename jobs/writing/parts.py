"""Parquet parts that grow flush by flush and never hold a row twice, whatever dies when.

Rows are written in two steps. Each flush writes its rows to a segment,
`pending/part-00007-00003.parquet`. When a part's worth of them has come together, the rows of all
segments `00007-*` are written again as `parts/part-00007.parquet`, and the segments are deleted.
Both writes are atomic, and **the existence of part N is what supersedes the segments of N**: one
rename makes the part valid and its segments void. So a reader at any instant finds each row in
exactly one place, a process killed between two steps leaves at worst void segments, and whoever
lists `parts/` without knowing any of this finds distinct rows in a few large files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import OutputError, one_line
from jobs.writing.finished import FinishedRows
from jobs.writing.results import ERROR_SCHEMA, RESULT_SCHEMA
from jobs.writing.storage import Storage

PENDING = "pending"
_READ_ROWS = 1024


@dataclass(frozen=True, slots=True)
class PartKind:
    """One family of parts in a job's folder.

    Attributes:
        prefix: File names begin with it.
        folder: Where its parts lie.
        schema: Their `pyarrow.Schema`.
    """

    prefix: str
    folder: str
    schema: Any = field(compare=False)

    def part(self, number: int) -> str:
        """Name of part `number`."""
        return f"{self.folder}/{self.prefix}-{number:05d}.parquet"

    def segment(self, number: int, segment: int) -> str:
        """Name of one segment of part `number`."""
        return f"{PENDING}/{self.prefix}-{number:05d}-{segment:05d}.parquet"


RESULTS = PartKind("part", "parts", RESULT_SCHEMA)
ERRORS = PartKind("error", "errors", ERROR_SCHEMA)


@dataclass(frozen=True, slots=True)
class PartFiles:
    """What there is of one kind, by part number.

    Attributes:
        parts: Numbers of whole parts, ascending.
        live: Segments that count, by the number of the part they will make.
        void: Names of segments whose part exists.
    """

    parts: list[int]
    live: dict[int, list[int]]
    void: list[str]

    @property
    def next_number(self) -> int:
        """A number that no part or segment has."""
        return max([*self.parts, *self.live], default=-1) + 1


def find_parts(storage: Storage, kind: PartKind) -> PartFiles:
    """The parts and segments of `kind` in a job's folder.

    Raises:
        OutputError: The folder cannot be listed.
    """
    # Segments are listed first: one that becomes a part in between is then seen as void, where in
    # the other order it would be missed.
    names = storage.names(PENDING)
    found = [re.fullmatch(rf"{kind.prefix}-(\d{{5,}})-(\d{{5,}})\.parquet", n) for n in names]
    segments = sorted((int(m[1]), int(m[2])) for m in found if m)
    matches = [
        re.fullmatch(rf"{kind.prefix}-(\d{{5,}})\.parquet", n) for n in storage.names(kind.folder)
    ]
    parts = sorted(int(m[1]) for m in matches if m)
    live: dict[int, list[int]] = {}
    void = []
    for number, segment in segments:
        if number in parts:
            void.append(kind.segment(number, segment))
        else:
            live.setdefault(number, []).append(segment)
    return PartFiles(parts, live, void)


def live_files(storage: Storage, kind: PartKind) -> list[str]:
    """Names of the files that together hold each row of `kind` once.

    Raises:
        OutputError: The folder cannot be listed.
    """
    files = find_parts(storage, kind)
    return [
        *(kind.part(number) for number in files.parts),
        *(kind.segment(n, segment) for n, segments in files.live.items() for segment in segments),
    ]


def read_batches(
    storage: Storage, name: str, columns: list[str] | None = None, rows: int = _READ_ROWS
) -> Iterator[Any]:
    """The rows of one part or segment as record batches of at most `rows`.

    Raises:
        OutputError: The file cannot be read.
    """
    with _reading(storage, name), storage.open(name) as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1024 * 1024)
        yield from parquet.iter_batches(rows, columns=columns, use_threads=False)


def with_all_columns(batch: Any, schema: Any) -> Any:
    """A record batch with the columns of `schema`; what an older program did not write is null."""
    there = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in there else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema)


def finished_rows(storage: Storage) -> FinishedRows:
    """The rows that have a result or an error, by the index column alone.

    Raises:
        OutputError: A part cannot be read.
    """
    finished = FinishedRows()
    for kind in (RESULTS, ERRORS):
        for name in live_files(storage, kind):
            for batch in read_batches(storage, name, ["row_index"], rows=65_536):
                finished.add_all(batch.column("row_index").to_numpy())
    return finished


def count_rows(storage: Storage, kind: PartKind) -> int:
    """Rows of `kind` in the folder, from metadata.

    Raises:
        OutputError: A part cannot be read.
    """
    rows = 0
    for name in live_files(storage, kind):
        with _reading(storage, name), storage.open(name) as stream:
            rows += pq.read_metadata(stream).num_rows
    return rows


def delete_errors(storage: Storage) -> None:
    """Forget the errors, so that their rows are unfinished again.

    Raises:
        OutputError: A file cannot be deleted.
    """
    files = find_parts(storage, ERRORS)
    # Parts go last: a part keeps its segments void.
    for name in [*files.void, *(n for n in live_files(storage, ERRORS) if n.startswith(PENDING))]:
        storage.delete(name)
    for number in files.parts:
        storage.delete(ERRORS.part(number))


@contextlib.contextmanager
def _reading(storage: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{storage.uri}: {name} cannot be read: {one_line(error)}; delete it, and its rows are "
            "generated again by the same command"
        ) from error
