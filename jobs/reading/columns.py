"""The columns of an input: which are there, which are needed, and whether their types fit."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import pyarrow.types as pat

from jobs.errors import InputError
from jobs.openai_batch import is_batch_line
from jobs.reading.records import Record, RecordReader, open_parquet
from jobs.reading.sources import InputFormat

_SAMPLE_ROWS = 100
_NAMED_COLUMNS = 20


def sample_columns(uri: str, reader: RecordReader) -> tuple[list[str], bool]:
    """Column names as far as they can be known, and whether the rows are OpenAI batch lines.

    Names are those of the first file's schema or header, or the keys of the first 100 objects.

    Raises:
        InputError: There is no row, or none of the first 100 can be read.
    """
    if reader.input_format is InputFormat.PARQUET:
        with open_parquet(reader.files[0]) as parquet:
            return list(parquet.schema_arrow.names), False
    sample = list(islice(reader.read(), _SAMPLE_ROWS))
    if not sample:
        raise InputError(f"{uri}: has no rows, must have at least one")
    if reader.input_format is InputFormat.CSV:
        return reader.csv_header(reader.files[0]), False
    readable = [record for record in sample if record.error is None]
    if not readable:
        raise InputError(
            f"{uri}: none of the first {len(sample)} rows can be read; {sample[0].place} "
            f"{sample[0].error}; check the file or give another format"
        )
    if reader.input_format is InputFormat.OPENAI_BATCH:
        return [], True
    is_batch = reader.input_format is InputFormat.JSONL and is_batch_line(readable[0].fields)
    return _names(readable), is_batch


def require_column(
    where: str, name: str, columns: Sequence[str], wanted: str | None = None
) -> None:
    """Refuse an input without column `name`.

    Args:
        where: The input or file, for the message.
        name: The column.
        columns: What there is.
        wanted: What the message says is missing, if not `name`.

    Raises:
        InputError: It is not among `columns`; the message lists them and names the nearest.
    """
    if name in columns:
        return
    shown = ", ".join(repr(column) for column in columns[:_NAMED_COLUMNS])
    if len(columns) > _NAMED_COLUMNS:
        shown += f" and {len(columns) - _NAMED_COLUMNS} more"
    nearest = difflib.get_close_matches(name, columns, 1)
    if len(columns) == 1 and any(c in columns[0] for c in ";\t|,"):
        fix = "is the delimiter another one?"
    elif nearest:
        fix = f"did you mean {nearest[0]!r}?"
    else:
        fix = "name the column to use"
    raise InputError(f"{where}: no column {wanted or repr(name)}, columns are: {shown}; {fix}")


def check_types(
    where: str, schema: Any, *, prompt_column: str, messages_column: str, id_column: str | None
) -> None:
    """Refuse a Parquet schema whose columns do not have types that can be read.

    Raises:
        InputError: The first column that does not, with its type.
    """
    checks: list[tuple[str, str, Callable[[Any], bool]]] = [
        (prompt_column, "text", _is_text),
        (messages_column, "a list of messages or JSON text", _is_messages),
    ]
    if id_column is not None:
        checks.append((id_column, "text or integers", is_id_type))
    for name, limit, fits in checks:
        if name in schema.names and not fits(column_type := schema.field(name).type):
            raise InputError(
                f"{where}: column {name!r} is {column_type}, must be {limit}; name another "
                "column or convert it"
            )


def is_id_type(column_type: Any) -> bool:
    """Whether an Arrow column of this type can hold row ids."""
    return _is_text(column_type) or bool(pat.is_integer(_plain(column_type)))


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.fields))


def _plain(column_type: Any) -> Any:
    return column_type.value_type if pat.is_dictionary(column_type) else column_type


def _is_text(column_type: Any) -> bool:
    plain = _plain(column_type)
    kinds = (pat.is_string, pat.is_large_string, pat.is_string_view, pat.is_null)
    return any(is_kind(plain) for is_kind in kinds)


def _is_messages(column_type: Any) -> bool:
    is_list = pat.is_list(column_type) or pat.is_large_list(column_type)
    return _is_text(column_type) or bool(is_list and pat.is_struct(column_type.value_type))
