"""The input of an offline job: opened, checked before work starts, and read row by row.

    source = open_input("s3://bucket/prompts/*.jsonl.zst")
    summary = source.check()
    for row in source.rows(skip=finished):
        ...

Memory does not depend on the number of rows, except for 8 bytes a row while `check` looks for
duplicate ids. A row that cannot be used is a `BadRow`; what makes the whole input unusable is an
`InputError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError, one_line
from jobs.reading.columns import check_types, is_id_type, require_column, sample_columns
from jobs.reading.duplicates import find_duplicate
from jobs.reading.fingerprint import fingerprints
from jobs.reading.records import RecordReader, open_parquet
from jobs.reading.row_errors import RowError
from jobs.reading.rows import BadRow, JobRow, RowMaker
from jobs.reading.sampling import SAMPLING_NAMES
from jobs.reading.sources import InputFile, InputFormat, check_content, find_files

__all__ = [
    "BadRow",
    "InputError",
    "InputFormat",
    "InputOptions",
    "InputSummary",
    "JobInput",
    "JobRow",
    "open_input",
]

_ID_COLUMNS = ("id", "row_id", "custom_id")
_SNIFFED_FILES = 8


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How the input is to be read.

    Attributes:
        input_format: None takes it from the files' suffixes; among `.jsonl` files, OpenAI batch
            lines are recognised by `custom_id` and `body`.
        prompt_column: None takes `prompt` if it is there.
        messages_column: None takes `messages` if it is there.
        id_column: None takes the first of `id`, `row_id` and `custom_id` that is there; the empty
            string numbers the rows.
        sampling_columns: Columns to read as sampling parameters; None takes every column with the
            name of one.
        delimiter: Of CSV; None is a tab for `.tsv` and a comma otherwise.
    """

    input_format: InputFormat | None = None
    prompt_column: str | None = None
    messages_column: str | None = None
    id_column: str | None = None
    sampling_columns: Sequence[str] | None = None
    delimiter: str | None = None


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What is known of the input before work starts.

    Attributes:
        input_format: How it is read.
        files: Number of files.
        size_bytes: Their size as stored.
        rows: Number of rows, bad ones included; None when it was not cheap to know.
        id_column: Where row ids come from; None: rows are numbered.
    """

    input_format: InputFormat
    files: int
    size_bytes: int
    rows: int | None
    id_column: str | None


@dataclass(frozen=True, slots=True)
class JobInput:
    """An input whose format and columns are settled. Made by `open_input`.

    Attributes:
        uri: Where it lies.
        reader: Reads its files.
        maker: Makes rows of what was read.
        required_columns: Columns that every table of it must have.
    """

    uri: str
    reader: RecordReader
    maker: RowMaker
    required_columns: frozenset[str]

    @property
    def is_openai_batch(self) -> bool:
        """Whether the input consists of OpenAI batch lines."""
        return self.maker.is_batch

    def rows(self, skip: Container[int] = ()) -> Iterator[JobRow | BadRow]:
        """Every row in order, except those whose `row_index` is in `skip`.

        Raises:
            InputError: A file cannot be read on.
        """
        make = self.maker.row
        return (make(record) for record in self.reader.read(skip))

    def check(self) -> InputSummary:
        """Look for what would spoil the job: tables without the columns, no rows, duplicate ids.

        Parquet is counted from its metadata, and every format reads its ids once if rows have ids
        of their own.

        Raises:
            InputError: The first such thing.
        """
        rows = self._check_tables()
        if self.maker.id_column is not None:
            rows = self._check_ids()
        if rows == 0:
            raise InputError(f"{self.uri}: has no rows, must have at least one")
        files = self.reader.files
        return InputSummary(
            input_format=self.reader.input_format,
            files=len(files),
            size_bytes=sum(file.size_bytes for file in files),
            rows=rows,
            id_column=self.maker.id_column,
        )

    def identity(self) -> dict[str, Any]:
        """What makes this input what it is, ready for JSON: files by content, and columns.

        Raises:
            InputError: A file cannot be read.
        """
        try:
            files = fingerprints(self.reader.files)
        except OSError as error:
            raise InputError(f"{self.uri}: cannot be read: {one_line(error)}") from error
        return {
            "files": files,
            "format": str(self.reader.input_format),
            "prompt_column": self.maker.prompt_column,
            "messages_column": self.maker.messages_column,
            "id_column": self.maker.id_column,
            "sampling_columns": sorted(self.maker.sampling_columns),
            "delimiter": self.reader.delimiter,
        }

    def _check_tables(self) -> int | None:
        """The columns of every table; the number of rows if metadata has it."""
        if self.reader.input_format is InputFormat.CSV:
            for file in self.reader.files:
                if header := self.reader.csv_header(file):
                    self._check_columns(file.name, header)
        if self.reader.input_format is not InputFormat.PARQUET:
            return None
        rows = 0
        for file in self.reader.files:
            with open_parquet(file) as parquet:
                schema = parquet.schema_arrow
                rows += parquet.metadata.num_rows
            self._check_columns(file.name, schema.names)
            check_types(
                file.name,
                schema,
                prompt_column=self.maker.prompt_column,
                messages_column=self.maker.messages_column,
                id_column=self.maker.id_column,
            )
        return rows

    def _check_columns(self, file_name: str, columns: Sequence[str]) -> None:
        for name in sorted(self.required_columns):
            require_column(file_name, name, columns)

    def _check_ids(self) -> int:
        """Refuse duplicate ids; the number of rows."""
        id_column = self.maker.id_column or ""
        reader = dataclasses.replace(self.reader, columns=frozenset({id_column}))
        rows = 0

        def ids() -> Iterator[tuple[str, str]]:
            nonlocal rows
            for record in reader.read():
                rows = record.row_index + 1
                if record.error is None:
                    try:
                        row_id = self.maker.row_id(record)
                    except RowError:
                        continue
                    yield row_id, record.place

        duplicate = find_duplicate(ids)
        if duplicate is None:
            return rows
        others = duplicate.suspects - 1
        more = f", and {others:,} other ids too" if others else ""
        raise InputError(
            f"{self.uri}: {id_column} {duplicate.row_id!r} occurs more than once "
            f"({duplicate.first} and {duplicate.second}{more}), must be unique; correct the ids, "
            "name another --id-column, or number the rows with --id-column ''"
        )


def open_input(uri: str, options: InputOptions | None = None) -> JobInput:
    """Find the files and settle format and columns.

    Args:
        uri: A local path, folder or glob, or a `pyarrow.fs` URI (`s3://`, `gs://`, `file://`) with
            the same; `.gz`, `.zst` and `.bz2` are decompressed on the way.
        options: How to read them.

    Raises:
        InputError: Nothing is there, it is empty, or the format or columns are not clear.
    """
    options = options or InputOptions()
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise InputError(f"--delimiter is {options.delimiter!r}, must be one character")
    input_format, found = find_files(uri, options.input_format)
    files = [file for file in found if file.size_bytes]
    if not files:
        raise InputError(f"{uri}: is empty (0 bytes), must have at least one row")
    for file in files[:_SNIFFED_FILES]:
        check_content(file, input_format)
    reader = RecordReader(
        files,
        input_format,
        text_column=options.prompt_column or "prompt",
        delimiter=options.delimiter,
    )
    columns, is_batch = sample_columns(uri, reader)
    if is_batch:
        return _batch_input(uri, files, options)
    return _table_input(uri, reader, options, columns)


def _batch_input(uri: str, files: Sequence[InputFile], options: InputOptions) -> JobInput:
    if options.id_column not in (None, "custom_id"):
        raise InputError(
            f"{uri}: --id-column is {options.id_column!r}, must be custom_id for OpenAI batch "
            "lines; leave it out"
        )
    maker = RowMaker("custom_id", "prompt", "messages", frozenset(), is_batch=True)
    return JobInput(uri, RecordReader(files, InputFormat.OPENAI_BATCH), maker, frozenset())


def _table_input(
    uri: str, reader: RecordReader, options: InputOptions, columns: Sequence[str]
) -> JobInput:
    named = frozenset(filter(None, (options.prompt_column, options.messages_column)))
    named |= frozenset(filter(None, (options.id_column, *(options.sampling_columns or ()))))
    for name in sorted(named):
        require_column(uri, name, columns)
    prompt_column = options.prompt_column or "prompt"
    messages_column = options.messages_column or "messages"
    content = frozenset({prompt_column, messages_column} & set(columns))
    if not content:
        require_column(uri, prompt_column, columns, f"{prompt_column!r} or {messages_column!r}")
    maker = RowMaker(
        id_column=_id_column(reader, options, columns),
        prompt_column=prompt_column,
        messages_column=messages_column,
        sampling_columns=_sampling_columns(options),
        from_text=reader.input_format in (InputFormat.CSV, InputFormat.TEXT),
    )
    ids = frozenset(filter(None, (maker.id_column,)))
    read = frozenset({prompt_column, messages_column}) | ids | maker.sampling_columns
    # Objects may each have keys of their own; the columns of tables are the same in every file.
    is_table = reader.input_format in (InputFormat.PARQUET, InputFormat.CSV)
    required = content | named | ids if is_table else frozenset()
    return JobInput(uri, dataclasses.replace(reader, columns=read), maker, required)


def _id_column(reader: RecordReader, options: InputOptions, columns: Sequence[str]) -> str | None:
    if options.id_column is not None:
        return options.id_column or None
    candidates = [name for name in _ID_COLUMNS if name in columns]
    if reader.input_format is InputFormat.PARQUET and candidates:
        with open_parquet(reader.files[0]) as parquet:
            schema = parquet.schema_arrow
        candidates = [name for name in candidates if is_id_type(schema.field(name).type)]
    return candidates[0] if candidates else None


def _sampling_columns(options: InputOptions) -> frozenset[str]:
    if options.sampling_columns is None:
        return SAMPLING_NAMES
    for name in options.sampling_columns:
        if name not in SAMPLING_NAMES:
            raise InputError(
                f"sampling column {name!r} is not a sampling parameter, must be one of "
                f"{', '.join(sorted(SAMPLING_NAMES))}"
            )
    return frozenset(options.sampling_columns)
