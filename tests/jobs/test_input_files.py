"""Which files make an input, how they are opened, and in which order their rows come."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.reading.inputs import InputError, InputFormat, open_input
from tests.jobs.factories import csv_file, good, lines_file, parquet_file, read


@pytest.mark.parametrize("opener", [gzip.open, bz2.open])
def test_compressed(tmp_path: Path, opener: Any) -> None:
    suffix = {gzip.open: "gz", bz2.open: "bz2"}[opener]
    path = tmp_path / f"in.jsonl.{suffix}"
    with opener(path, "wt") as file:
        file.write('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert [row.prompt for row in good(read(path))] == ["a", "b"]


def test_zstd(tmp_path: Path) -> None:
    path = tmp_path / "in.csv.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(b"prompt\nhello\n")
    assert [row.prompt for row in good(read(path))] == ["hello"]


def test_compressed_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "in.txt.gz"
    text = "".join(f"prompt {i}\n" for i in range(200_000))
    path.write_bytes(gzip.compress(text.encode())[:-40_000])
    source = open_input(str(path))
    with pytest.raises(InputError, match=r"in\.txt\.gz: cannot be read beyond row \d+ of the"):
        list(source.rows())


def test_folder_in_order_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "_skip.jsonl", ".hidden.jsonl"):
        lines_file(tmp_path / name, [{"prompt": name}])
    (tmp_path / "README.md").write_text("not a prompt")
    (tmp_path / "empty.jsonl").write_text("")
    rows = good(read(tmp_path))
    assert [row.prompt for row in rows] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert [row.row_index for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("*/*.jsonl", ["x/a.jsonl", "y/a.jsonl"]),
        ("[xz]/a.*", ["x/a.jsonl"]),
        ("**/a.jsonl", ["a.jsonl", "x/a.jsonl", "x/deep/a.jsonl", "y/a.jsonl"]),
        ("x/**", ["x/a.jsonl", "x/deep/a.jsonl"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_globs(tmp_path: Path, scheme: str, pattern: str, names: list[str]) -> None:
    for name in ("a.jsonl", "x/a.jsonl", "x/deep/a.jsonl", "y/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        lines_file(tmp_path / name, [{"prompt": name}])
    rows = good(read(f"{scheme}{tmp_path}/{pattern}"))
    assert [row.prompt for row in rows] == names


def test_a_name_with_wildcard_characters_is_taken_literally_first(tmp_path: Path) -> None:
    uri = lines_file(tmp_path / "in[1].jsonl", [{"prompt": "x"}])
    assert len(read(uri)) == 1


def test_given_format_stands_over_the_suffix(tmp_path: Path) -> None:
    uri = lines_file(tmp_path / "prompts.data", ["one", "two"])
    assert [r.prompt for r in good(read(uri, input_format=InputFormat.TEXT))] == ["one", "two"]


def test_skip_passes_over_rows_without_changing_the_others(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": str(i)} for i in range(6)]
    rows[2] = "malformed"
    files = {
        "jsonl": lines_file(tmp_path / "in.jsonl", rows),
        "csv": csv_file(tmp_path / "in.csv", [["prompt"], *([str(i)] for i in range(6))]),
        "parquet": parquet_file(tmp_path / "in.parquet", {"prompt": [str(i) for i in range(6)]}),
        "text": lines_file(tmp_path / "in.txt", [str(i) for i in range(6)]),
    }
    for uri in files.values():
        source = open_input(uri)
        everything = list(source.rows())
        assert len(everything) == 6
        assert list(source.rows(skip={0, 2, 5})) == [everything[i] for i in (1, 3, 4)]


def test_rows_are_not_counted_where_that_would_read_everything(tmp_path: Path) -> None:
    source = open_input(lines_file(tmp_path / "in.jsonl", [{"prompt": "x"}, "", "oops"]))
    summary = source.check()
    assert (summary.rows, summary.files, summary.input_format) == (None, 1, InputFormat.JSONL)
    assert summary.size_bytes == Path(source.uri).stat().st_size
