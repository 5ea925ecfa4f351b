"""Rows and files for the tests of job input and output."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from jobs.reading.inputs import BadRow, InputError, InputOptions, JobRow, open_input
from jobs.writing.parts import ERRORS, RESULTS, PartKind, live_files, read_batches
from jobs.writing.results import ResultRow
from jobs.writing.storage import Storage

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
"""A conversation as rows have it."""

any_speed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties that start threads or write files, on machines that do other things too."""


def lines_file(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> str:
    """A JSONL file; strings are written as they are."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def parquet_file(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def csv_file(path: Path, rows: list[list[str]], **options: Any) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows(rows)
    return str(path)


def input_error(uri: str | Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_input(str(uri), InputOptions(**options)).check()
    message = str(caught.value)
    assert "\n" not in message
    return message


def read(uri: str | Path, **options: Any) -> list[JobRow | BadRow]:
    return list(open_input(str(uri), InputOptions(**options)).rows())


def good(rows: Iterable[JobRow | BadRow]) -> list[JobRow]:
    return [row for row in rows if isinstance(row, JobRow)]


def bad(rows: Iterable[JobRow | BadRow]) -> list[BadRow]:
    return [row for row in rows if isinstance(row, BadRow)]


def batch_line(
    custom_id: Any = "a", url: str = "/v1/chat/completions", **body: Any
) -> dict[str, Any]:
    if url == "/v1/chat/completions":
        body.setdefault("messages", [{"role": "user", "content": "Hi"}])
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}}


def result(row_index: int, **fields: Any) -> ResultRow:
    return ResultRow(
        **{
            "row_index": row_index,
            "row_id": f"id-{row_index}",
            "prompt": f"prompt {row_index}",
            "text": f"answer {row_index}",
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "output_tokens": 2,
            "finished_unix_s": 1_700_000_000.5,
            **fields,
        }
    )


def error(row_index: int, **fields: Any) -> BadRow:
    return BadRow(
        **{
            "row_index": row_index,
            "row_id": f"id-{row_index}",
            "error": f"row {row_index} is bad",
            "echo": "{}",
            **fields,
        }
    )


def stored(storage: Storage, kind: PartKind) -> list[int]:
    """Row indices of one kind as a reader finds them, sorted."""
    return sorted(
        index
        for name in live_files(storage, kind)
        for batch in read_batches(storage, name)
        for index in batch.column("row_index").to_pylist()
    )


def stored_results(storage: Storage) -> list[int]:
    return stored(storage, RESULTS)


def stored_errors(storage: Storage) -> list[int]:
    return stored(storage, ERRORS)


def naive_parts(folder: Path) -> list[int]:
    """Row indices of the results as somebody reads them who only knows `parts/*.parquet`."""
    return sorted(
        index
        for path in (folder / "parts").glob("*.parquet")
        for index in pq.read_table(path).column("row_index").to_pylist()
    )
