"""Appends rows to the parts of one kind; `jobs.writing.parts` says how and why they stay whole."""

from __future__ import annotations

import contextlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import OutputError
from jobs.writing.parts import PartKind, find_parts, read_batches, with_all_columns
from jobs.writing.storage import Storage


class PartWriter:
    """Appends tables of one kind. Opening it finishes what an interrupted writer left.

    Args:
        storage: The job's folder.
        kind: What is written.
        rows_per_part: A part is made once there are this many rows,
        bytes_per_part: or this much memory,
        segments_per_part: or this many flushes, whichever comes first.

    Raises:
        OutputError: The folder cannot be read or written.
    """

    def __init__(
        self,
        storage: Storage,
        kind: PartKind,
        *,
        rows_per_part: int,
        bytes_per_part: int,
        segments_per_part: int,
    ) -> None:
        self._storage = storage
        self._kind = kind
        self._rows_per_part = rows_per_part
        self._bytes_per_part = bytes_per_part
        self._segments_per_part = segments_per_part
        self._tables: list[Any] = []
        self._number = self._recover()

    def append(self, table: Any) -> None:
        """Write a `pyarrow.Table` of at least one row; on return it is durable.

        Raises:
            OutputError: It could not be written; append it again, with or without more rows.
        """
        tables = [*self._tables, table]
        if (
            sum(t.num_rows for t in tables) >= self._rows_per_part
            or sum(t.nbytes for t in tables) >= self._bytes_per_part
            or len(tables) >= self._segments_per_part
        ):
            self._write_part(tables)
        else:
            self._write(self._kind.segment(self._number, len(self._tables)), table)
            self._tables = tables

    def close(self) -> None:
        """Make a part of the segments that are left.

        Raises:
            OutputError: It could not be written; the segments hold the rows.
        """
        if self._tables:
            self._write_part(self._tables)

    def _write_part(self, tables: list[Any]) -> None:
        number = self._number
        self._write(self._kind.part(number), pa.concat_tables(tables))
        self._number, self._tables = number + 1, []
        # The part is written: a segment that cannot be deleted now is void and goes at the next
        # opening. To report it would make the caller append the rows again.
        with contextlib.suppress(OutputError):
            for segment in range(len(tables)):
                self._storage.delete(self._kind.segment(number, segment))

    def _write(self, name: str, table: Any) -> None:
        self._storage.write(name, lambda out: pq.write_table(table, out, compression="zstd"))

    def _recover(self) -> int:
        files = find_parts(self._storage, self._kind)
        for name in files.void:
            self._storage.delete(name)
        for number, segments in files.live.items():
            names = [self._kind.segment(number, segment) for segment in segments]
            schema = self._kind.schema
            batches = [
                with_all_columns(batch, schema)
                for name in names
                for batch in read_batches(self._storage, name)
            ]
            self._write(self._kind.part(number), pa.Table.from_batches(batches, schema))
            for name in names:
                self._storage.delete(name)
        return files.next_number
