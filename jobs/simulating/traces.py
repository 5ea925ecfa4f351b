"""Traces: when real requests arrived and how long they were."""

from __future__ import annotations

import datetime
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.workload import WorkloadError
from jobs.errors import InputError, one_line
from jobs.reading.columns import require_column, sample_columns
from jobs.reading.records import Record, RecordReader
from jobs.reading.sources import InputFormat, check_content, find_files
from policies.batch import Floats, Ints
from policies.length_histogram import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """Which columns of a trace hold what; `usage.prompt_tokens` is a field of an object `usage`.

    Attributes:
        timestamp: When the request arrived: a number, or a date and time (UTC unless it says
            otherwise, read to the microsecond).
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        timestamp_unit_s: Seconds that 1 is worth in a timestamp that is a number.

    Raises:
        WorkloadError: The unit is not above 0.
    """

    timestamp: str
    prompt_tokens: str
    output_tokens: str
    timestamp_unit_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.timestamp_unit_s < math.inf:
            raise WorkloadError(
                f"timestamp_unit_s is {self.timestamp_unit_s}, must be above 0 and finite: 1 for "
                "seconds, 0.001 for milliseconds"
            )

    @property
    def names(self) -> tuple[str, str, str]:
        """The three columns."""
        return self.timestamp, self.prompt_tokens, self.output_tokens


FORMATS = {
    "azure": TraceColumns("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "openai": TraceColumns("created", "usage.prompt_tokens", "usage.completion_tokens"),
    "mooncake": TraceColumns("timestamp", "input_length", "output_length", 1e-3),
}
"""Traces that are recognised by their columns: Azure's public LLM traces, responses of an OpenAI
API (`created` in seconds, `usage` as answered), Mooncake's (`timestamp` in milliseconds)."""


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace by name.

    Attributes:
        uri: File, folder, glob or `pyarrow.fs` URI of CSV, JSON lines or Parquet.
        columns: Its columns; None recognises one of `FORMATS`.
    """

    uri: str
    columns: TraceColumns | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in columns of shape (n,), n at least 1.

    Attributes:
        name: Where it was read from.
        arrival_s: Seconds since the first request, ascending.
        prompt_tokens: Prompt lengths.
        output_tokens: Output lengths.
        unsorted_rows: Rows that stood after one with a later timestamp.
    """

    name: str
    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    unsorted_rows: int

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Requests per second between the first and the last.

        Raises:
            InputError: No time passes between them.
        """
        span_s = float(self.arrival_s[-1])
        if not span_s > 0:
            raise InputError(
                f"{self.name}: all {len(self)} requests have one timestamp, so there is no rate; "
                "let them arrive at once or at random instead"
            )
        return (len(self) - 1) / span_s


def read_trace(file: TraceFile) -> Trace:
    """Read a trace, a row at a time, into 24 bytes per request.

    Logs are often written when a request ends, so rows may stand in any order: they are sorted by
    their timestamps, equal ones kept as they stand, and the rows out of order are counted.

    Raises:
        InputError: The file, a column or a row cannot be used; the message says which and why.
    """
    input_format, files = find_files(file.uri, None)
    if input_format is InputFormat.TEXT:
        raise InputError(
            f"{file.uri}: lines of text hold no timestamps and token counts; give CSV, JSON lines "
            "or Parquet"
        )
    for part in files:
        try:
            check_content(part, input_format)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise InputError(
                f"{part.name}: cannot be read: {one_line(error)}; repair or replace the file"
            ) from error
    names, _ = sample_columns(file.uri, RecordReader(files, input_format))
    columns = file.columns or _recognise(file.uri, names)
    _require_columns(file.uri, columns, names)
    wanted = frozenset({*columns.names, *(_top(name) for name in columns.names)})
    rows = RecordReader(files, input_format, wanted).read()
    return _collect(file.uri, columns, rows)


def _top(column: str) -> str:
    return column.partition(".")[0]


def _has(names: Sequence[str], column: str) -> bool:
    return column in names or _top(column) in names


def _recognise(uri: str, names: Sequence[str]) -> TraceColumns:
    """The format that shares the most columns with the file."""
    shared = {
        name: sum(_has(names, column) for column in columns.names)
        for name, columns in FORMATS.items()
    }
    nearest = max(shared, key=lambda name: shared[name])
    if not shared[nearest]:
        known = "; ".join(f"{name}: {', '.join(c.names)}" for name, c in FORMATS.items())
        shown = ", ".join(repr(name) for name in names[:20])
        raise InputError(
            f"{uri}: not a trace that is recognised ({known}); columns are: {shown}; name the "
            "columns of the timestamp, the prompt tokens and the output tokens"
        )
    return FORMATS[nearest]


def _require_columns(uri: str, columns: TraceColumns, names: Sequence[str]) -> None:
    for column in columns.names:
        if not _has(names, column):
            require_column(uri, column, names)


def _collect(uri: str, columns: TraceColumns, rows: Iterator[Record]) -> Trace:
    times, prompts, outputs = array("d"), array("q"), array("q")
    for row in rows:
        if row.error is not None:
            raise InputError(f"{row.place}: {row.error}; correct or remove the row")
        times.append(_seconds(row, columns))
        prompts.append(_tokens(row, columns.prompt_tokens))
        outputs.append(_tokens(row, columns.output_tokens))
    if not times:
        raise InputError(f"{uri}: has no requests, must have at least one")
    time_s = np.array(times)
    order = np.argsort(time_s, kind="stable")
    return Trace(
        name=uri,
        arrival_s=time_s[order] - time_s[order[0]],
        prompt_tokens=np.array(prompts, np.int64)[order],
        output_tokens=np.array(outputs, np.int64)[order],
        unsorted_rows=int((time_s < np.maximum.accumulate(time_s)).sum()),
    )


def _value(row: Record, column: str) -> Any:
    """The value of a column, None where it is absent or empty."""
    if column in row.fields:
        return row.fields[column]
    value: Any = row.fields
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float:
    """A number or its text as a float, NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _tokens(row: Record, column: str) -> int:
    value = _value(row, column)
    number = _number(value)
    if not (1 <= number <= MAX_TOKENS and number.is_integer()):
        raise InputError(
            f"{row.place}: {column} is {value!r}, must be a whole number from 1 to {MAX_TOKENS:,}; "
            "correct or remove the row"
        )
    return int(number)


def _seconds(row: Record, columns: TraceColumns) -> float:
    value = _value(row, columns.timestamp)
    seconds = _number(value) * columns.timestamp_unit_s
    if math.isfinite(seconds):
        return seconds
    moment = _moment(value) if isinstance(value, str) else value
    if isinstance(moment, datetime.datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    raise InputError(
        f"{row.place}: {columns.timestamp} is {value!r}, must be a finite number or a date and "
        "time such as 2026-01-31 12:00:00.5; correct or remove the row"
    )


def _moment(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
