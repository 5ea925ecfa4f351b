"""The output in the order of the input, by an external sort in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import OutputError
from jobs.openai_batch import error_line, response_line
from jobs.writing.parts import ERRORS, RESULTS, PartKind, live_files, read_batches
from jobs.writing.results import RESULT_SCHEMA
from jobs.writing.storage import Storage

ORDERED = "output.parquet"
"""The results and errors of a job in the order of its input."""

SORT_BYTES = 64 * 1024 * 1024
"""Rows that are sorted in memory at once; about three times as much is in use meanwhile."""

ORDERED_SCHEMA = RESULT_SCHEMA.append(pa.field("error", pa.string())).append(
    pa.field("error_kind", pa.string())
)
"""Columns of `output.parquet`: those of the parts, and why a row has no result."""

_MAX_BUCKETS = 64
_BATCH_ROWS = 1024


def write_ordered(storage: Storage, *, sort_bytes: int = SORT_BYTES) -> None:
    """Write `output.parquet`: one row for each row of the input that has ended, in its order.

    A row without result has nulls, `finish_reason` "error", and its error in the column `error`.

    Raises:
        OutputError: The parts cannot be read, hold a row twice, or the file cannot be written.
    """

    def produce(out: IO[bytes]) -> None:
        with pq.ParquetWriter(out, ORDERED_SCHEMA, compression="zstd") as writer:
            for table in ordered_tables(storage, sort_bytes):
                writer.write_table(table)

    storage.write(ORDERED, produce)


def write_openai_batch(storage: Storage, *, sort_bytes: int = SORT_BYTES) -> None:
    """Write `output.jsonl` and `errors.jsonl`, OpenAI batch lines in the order of the input.

    Raises:
        OutputError: As `write_ordered`.
    """

    def produce(out: IO[bytes], errors: IO[bytes]) -> None:
        for table in ordered_tables(storage, sort_bytes):
            for batch in table.to_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    if row["error"] is None:
                        out.write(response_line(row))
                    else:
                        errors.write(error_line(row))

    storage.write(
        "output.jsonl",
        lambda out: storage.write("errors.jsonl", lambda errors: produce(out, errors)),
    )


def ordered_tables(
    storage: Storage, sort_bytes: int = SORT_BYTES, schema: Any = ORDERED_SCHEMA
) -> Iterator[Any]:
    """Every result and error as tables of `schema`, ascending in `row_index`.

    Rows are dealt into files by ranges of `row_index`, a range that is too large for memory is
    dealt again, and each is sorted. Disk: about the rows once more, in `Storage.scratch`.

    Args:
        storage: The job's folder.
        sort_bytes: Rows that are sorted in memory at once.
        schema: The fields of `ORDERED_SCHEMA` that are wanted, `row_index` among them; no other
            columns are read.

    Raises:
        OutputError: The parts cannot be read or hold a row twice.
    """
    last = -1
    with storage.scratch() as scratch:
        for table in _sorted(_all_rows(storage, schema), scratch, sort_bytes):
            indices = table.column("row_index").to_numpy()
            steps = np.diff(indices, prepend=last)
            if not steps.all():
                twice = int(indices[int(np.argmin(steps != 0))])
                raise OutputError(
                    f"{storage.uri}: row {twice} of the input is recorded twice; the folder was "
                    "changed by another program: start again in a new one"
                )
            last = int(indices[-1])
            yield table


@dataclass(frozen=True, slots=True)
class _Range:
    """Rows whose index is in `low..high-1`, in no order.

    Attributes:
        schema: Their `pyarrow.Schema`.
        low: Smallest row index there may be.
        high: One more than the largest.
        size_bytes: Memory that the rows take, at least.
        batches: Starts a pass over them.
        path: Their file, to be deleted when they are done.
    """

    schema: Any
    low: int
    high: int
    size_bytes: float
    batches: Callable[[], Iterator[Any]]
    path: Path | None = None


def _all_rows(storage: Storage, schema: Any) -> _Range:
    files = [(name, kind) for kind in (RESULTS, ERRORS) for name in live_files(storage, kind)]
    low, high, size_bytes = 0, 0, 0
    for name, _ in files:
        with storage.open(name) as stream:
            metadata = pq.read_metadata(stream)
        size_bytes += sum(
            metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)
        )
        for batch in read_batches(storage, name, ["row_index"], rows=65_536):
            high = max(high, int(np.max(batch.column("row_index"))) + 1)

    def batches() -> Iterator[Any]:
        for name, kind in files:
            for batch in read_batches(storage, name, _stored_names(kind, schema)):
                yield _as_ordered(batch, kind, schema)

    return _Range(schema, low, high, size_bytes, batches)


def _stored_names(kind: PartKind, schema: Any) -> list[str]:
    """The columns of the parts that make those of `schema`."""
    wanted = set(schema.names)
    if kind is ERRORS and "prompt" in wanted:
        wanted.add("echo")
    return [name for name in kind.schema.names if name in wanted]


def _as_ordered(batch: Any, kind: PartKind, schema: Any) -> Any:
    """A batch of results or errors with the columns of `schema`."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    if kind is ERRORS:
        if "echo" in columns:
            columns["prompt"] = columns["echo"]
        columns["finish_reason"] = pa.repeat("error", batch.num_rows)
    return pa.record_batch(
        [
            columns[field.name] if field.name in columns else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ],
        schema,
    )


def _sorted(rows: _Range, scratch: Path, sort_bytes: int) -> Iterator[Any]:
    # The size of the first range is that of compressed pages and may be far too low: it is dealt
    # at least once, because only the sizes of dealt ranges are known.
    if rows.path is not None and (rows.size_bytes <= sort_bytes or rows.high - rows.low <= 1):
        yield pa.Table.from_batches(rows.batches(), rows.schema).sort_by("row_index")
        return
    for part in _deal(rows, scratch, sort_bytes):
        yield from _sorted(part, scratch, sort_bytes)
        assert part.path is not None
        part.path.unlink()


def _deal(rows: _Range, scratch: Path, sort_bytes: int) -> list[_Range]:
    wanted = min(_MAX_BUCKETS, max(2, math.ceil(2 * rows.size_bytes / sort_bytes)))
    width = max(1, math.ceil((rows.high - rows.low) / wanted))
    lows = range(rows.low, rows.high, width)
    highs = {low: min(low + width, rows.high) for low in lows}
    paths = {low: scratch / f"{low}-{high}.arrow" for low, high in highs.items()}
    sizes = dict.fromkeys(lows, 0)
    with ExitStack() as files:
        writers: dict[int, Any] = {}
        for batch in rows.batches():
            for low, piece in _split(batch, rows.low, width):
                if low not in writers:
                    sink = files.enter_context(open(paths[low], "wb"))
                    writers[low] = files.enter_context(
                        pa.ipc.new_stream(sink, rows.schema, options=_IPC_OPTIONS)
                    )
                writers[low].write_batch(piece)
                sizes[low] += piece.nbytes
    return [
        _Range(rows.schema, low, highs[low], sizes[low], _batches_of(paths[low]), paths[low])
        for low in lows
        if low in writers
    ]


def _split(batch: Any, low: int, width: int) -> Iterator[tuple[int, Any]]:
    """The rows of `batch` by the range they fall into."""
    buckets = (batch.column("row_index").to_numpy() - low) // width
    order = np.argsort(buckets, kind="stable")
    batch, buckets = batch.take(pa.array(order)), buckets[order]
    starts = np.flatnonzero(np.diff(buckets, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(buckets)], strict=True):
        yield low + int(buckets[start]) * width, batch.slice(start, end - start)


def _batches_of(path: Path) -> Callable[[], Iterator[Any]]:
    def batches() -> Iterator[Any]:
        with open(path, "rb") as source, pa.ipc.open_stream(source) as reader:
            yield from reader

    return batches


_IPC_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
