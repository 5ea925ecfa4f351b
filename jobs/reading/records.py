"""The input's rows as plain Python values, one file format after the other, in bounded memory."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, one_line
from jobs.reading.sources import MAX_LINE_BYTES, InputFile, InputFormat, Line, read_lines

_PARQUET_BATCH_ROWS = 256
_PARQUET_BUFFER_BYTES = 1024 * 1024
_ECHO_CHARACTERS = 2_000


class Record(msgspec.Struct, frozen=True, gc=False):
    """One row before its columns are understood.

    Attributes:
        row_index: Ordinal in the whole input, from 0; blank lines are not rows.
        file: Name of its file.
        number: Line in the file, from 1; in Parquet the row, from 1.
        unit: `:` before a line number, ` row ` before a row number.
        fields: Values by column; empty when `error` is set.
        error: Why the row could not be read at all.
        raw: The line as it stands in the file, where there is one.
    """

    row_index: int
    file: str
    number: int
    unit: str
    fields: dict[str, Any]
    error: str | None = None
    raw: bytes | None = None

    @property
    def place(self) -> str:
        """Where the row is, as messages say it."""
        return f"{self.file}{self.unit}{self.number}"

    @property
    def echo(self) -> str:
        """The row for the errors file: its line or its columns as JSON, cut to 2,000 characters."""
        if self.raw is not None:
            return self.raw[: 4 * _ECHO_CHARACTERS].decode("utf-8", "replace")[:_ECHO_CHARACTERS]
        text = msgspec.json.encode(self.fields, enc_hook=repr).decode("utf-8", "replace")
        return text[:_ECHO_CHARACTERS]


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads the rows of `files` in order.

    Attributes:
        files: Where the rows are.
        input_format: How to read them.
        columns: Columns to read, or None for all; where a format must parse whole rows this is
            only a hint.
        text_column: The column that the lines of a text file make.
        delimiter: Of CSV; None is a tab for `.tsv` and a comma otherwise.
    """

    files: Sequence[InputFile]
    input_format: InputFormat
    columns: frozenset[str] | None = None
    text_column: str = "prompt"
    delimiter: str | None = None

    def read(self, skip: Container[int] = ()) -> Iterator[Record]:
        """Every row whose index is not in `skip`; a malformed one has its `error` set.

        Raises:
            InputError: A file cannot be read on: it is missing, damaged or cut short.
        """
        counter = _RowCounter(skip)
        read_file = self._file_reader()
        for file in self.files:
            try:
                yield from read_file(file, counter)
            except (OSError, EOFError, pa.ArrowException) as error:
                raise InputError(
                    f"{file.name}: cannot be read beyond row {counter.next_index} of the input: "
                    f"{one_line(error)}; repair or replace the file"
                ) from error

    def _file_reader(self) -> Callable[[InputFile, _RowCounter], Iterator[Record]]:
        match self.input_format:
            case InputFormat.PARQUET:
                return self._parquet
            case InputFormat.CSV:
                return self._csv
            case InputFormat.TEXT:
                return self._text
            case _:
                return _jsonl

    def _text(self, file: InputFile, counter: _RowCounter) -> Iterator[Record]:
        for line in read_lines(file):
            if line.content.isspace() or not line.content or (index := counter.take()) is None:
                continue
            error, text = line_error(line), ""
            if error is None:
                try:
                    text = line.content.decode().removesuffix("\r")
                except UnicodeDecodeError as failure:
                    error = f"is not UTF-8: {one_line(failure)}"
            fields = {} if error else {self.text_column: text}
            yield Record(index, file.name, line.number, ":", fields, error, line.content)

    def csv_header(self, file: InputFile) -> list[str]:
        """Column names of a CSV file; empty when it has no line.

        Raises:
            InputError: The header is malformed or names a column twice.
        """
        return _checked_header(file, next(self._csv_rows(file), None))

    def _csv(self, file: InputFile, counter: _RowCounter) -> Iterator[Record]:
        rows = self._csv_rows(file)
        header = _checked_header(file, next(rows, None))
        for row in rows:
            if (index := counter.take()) is None:
                continue
            error = row.error or _csv_row_error(row.cells, header)
            fields = {} if error else dict(zip(header, row.cells, strict=True))
            yield Record(index, file.name, row.number, ":", fields, error, row.raw)

    def _csv_rows(self, file: InputFile) -> Iterator[_CsvRow]:
        # Raised only: the limit belongs to the whole process.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        lines = _CsvLines(read_lines(file))
        rows = csv.reader(lines, delimiter=self.csv_delimiter(file), strict=True)
        while True:
            lines.begin_row()
            try:
                cells = next(rows, None)
            except csv.Error as error:
                reason = f"is not valid CSV: {one_line(error)}"
                yield _CsvRow(lines.row_number, [], reason, lines.row_bytes())
                continue
            if cells is None:
                return
            if cells:
                yield _CsvRow(lines.row_number, cells, None, lines.row_bytes())

    def csv_delimiter(self, file: InputFile) -> str:
        """The delimiter in `file`."""
        return self.delimiter or ("\t" if file.suffix == ".tsv" else ",")

    def _parquet(self, file: InputFile, counter: _RowCounter) -> Iterator[Record]:
        with open_parquet(file) as parquet:
            names = [n for n in parquet.schema_arrow.names if self._wants(n)]
            number = 0
            # Threads would each keep freed memory for themselves, and one is fast enough.
            batches = parquet.iter_batches(_PARQUET_BATCH_ROWS, columns=names, use_threads=False)
            for batch in batches:
                kept = [
                    (i, at) for i in range(batch.num_rows) if (at := counter.take()) is not None
                ]
                if kept:
                    columns = [(n, _values(batch.column(n))) for n in names]
                    for i, index in kept:
                        yield _parquet_record(file.name, index, number + i + 1, i, columns)
                number += batch.num_rows

    def _wants(self, column: str) -> bool:
        return self.columns is None or column in self.columns


def _jsonl(file: InputFile, counter: _RowCounter) -> Iterator[Record]:
    for line in read_lines(file):
        if not line.content or line.content.isspace() or (index := counter.take()) is None:
            continue
        error, fields = line_error(line), cast(Any, {})
        if error is None:
            try:
                fields = msgspec.json.decode(line.content)
            except (msgspec.DecodeError, RecursionError) as failure:
                error = f"is not valid JSON: {one_line(failure)}"
            except UnicodeDecodeError as failure:
                error = f"is not UTF-8: {one_line(failure)}"
        if not isinstance(fields, dict):
            error, fields = f"holds a JSON {_JSON_NAMES[type(fields)]}, must be an object", {}
        yield Record(index, file.name, line.number, ":", fields, error, line.content)


_JSON_NAMES = {
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def line_error(line: Line) -> str | None:
    """Why `line` cannot be parsed, or None."""
    return f"is longer than {MAX_LINE_BYTES:,} bytes" if line.too_long else None


@contextlib.contextmanager
def open_parquet(file: InputFile) -> Iterator[Any]:
    """`file` as a `pyarrow.parquet.ParquetFile` that reads pages as they are needed.

    Raises:
        InputError: It is not Parquet.
    """
    with file.open_bytes() as stream:
        try:
            parquet = pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{file.name}: cannot be read as Parquet: {one_line(error)}; "
                "check the file or give another format"
            ) from error
        yield parquet


class _Undecodable(str):
    """Stands for a value that is not UTF-8; the text says why."""

    __slots__ = ()


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return _Undecodable(one_line(error))


def _parquet_record(
    file: str, index: int, number: int, i: int, columns: list[tuple[str, list[Any]]]
) -> Record:
    fields = {name: values[i] for name, values in columns}
    bad = [f"{n} is not UTF-8: {v}" for n, v in fields.items() if isinstance(v, _Undecodable)]
    return Record(index, file, number, " row ", fields, bad[0] if bad else None)


class _CsvRow(NamedTuple):
    number: int
    cells: list[str]
    error: str | None
    raw: bytes


def _checked_header(file: InputFile, row: _CsvRow | None) -> list[str]:
    if row is None:
        return []
    error = row.error or _csv_row_error(row.cells, row.cells)
    repeated = sorted(name for name in set(row.cells) if row.cells.count(name) > 1)
    if error is None and repeated:
        error = f"names column {repeated[0]!r} more than once"
    if error is not None:
        raise InputError(f"{file.name}:{row.number}: the header {error}; correct the header line")
    return row.cells


def _csv_row_error(cells: list[str], header: list[str]) -> str | None:
    if len(cells) != len(header):
        return f"has {len(cells)} fields, must have {len(header)} as the header"
    for name, cell in zip(header, cells, strict=True):
        if not cell.isascii():
            try:
                cell.encode()
            except UnicodeEncodeError:
                return f"{name} is not UTF-8"
    return None


@dataclass(slots=True)
class _RowCounter:
    """Gives every row of the input its index and passes over those that are to be skipped."""

    skip: Container[int]
    next_index: int = 0

    def take(self) -> int | None:
        index = self.next_index
        self.next_index += 1
        return None if index in self.skip else index


@dataclass(slots=True)
class _CsvLines:
    """Feeds a CSV reader and ends a row that would not fit in memory (a quote never closed)."""

    lines: Iterator[Line]
    row_number: int = 0
    _row: list[bytes] = field(default_factory=list)
    _row_size_bytes: int = 0

    def begin_row(self) -> None:
        self._row.clear()
        self._row_size_bytes = 0

    def row_bytes(self) -> bytes:
        return b"\n".join(self._row)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if not self._row:
            self.row_number = line.number
        self._row.append(line.content[: 4 * _ECHO_CHARACTERS])
        self._row_size_bytes += len(line.content) + 1
        if line.too_long or self._row_size_bytes > MAX_LINE_BYTES:
            raise csv.Error(f"the row is longer than {MAX_LINE_BYTES:,} bytes")
        return line.content.decode("utf-8", "surrogateescape") + "\n"
