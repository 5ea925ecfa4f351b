"""What makes a whole input unusable, told in one line with the fix."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.reading.inputs import open_input
from tests.jobs.factories import (
    batch_line,
    csv_file,
    good,
    input_error,
    lines_file,
    parquet_file,
    read,
)


class TestErrors:
    def test_missing(self, tmp_path: Path) -> None:
        uri = tmp_path / "none.jsonl"
        assert input_error(uri) == f"{uri}: no such file or folder; check the path"

    def test_empty_file(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [])
        assert input_error(uri) == f"{uri}: is empty (0 bytes), must have at least one row"

    @pytest.mark.parametrize("name", ["in.jsonl", "in.txt", "in.csv"])
    def test_no_rows(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_text("prompt\n" if name == "in.csv" else "\n\n")
        assert input_error(path) == f"{path}: has no rows, must have at least one"

    def test_parquet_without_rows(self, tmp_path: Path) -> None:
        uri = parquet_file(tmp_path / "in.parquet", {"prompt": pa.array([], pa.string())})
        assert input_error(uri) == f"{uri}: has no rows, must have at least one"

    def test_folder_without_files(self, tmp_path: Path) -> None:
        message = input_error(tmp_path)
        assert message.startswith(f"{tmp_path}: no files found (looked for: .parquet, ")
        assert message.endswith("; check the path or give a format")

    def test_folder_of_several_formats(self, tmp_path: Path) -> None:
        lines_file(tmp_path / "a.txt", ["x"])
        lines_file(tmp_path / "b.jsonl", [{"prompt": "x"}])
        assert input_error(tmp_path) == (
            f"{tmp_path}: files of several formats: jsonl (b.jsonl), text (a.txt); pass a glob "
            "such as '*.parquet'"
        )

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        path = tmp_path / "in.docx"
        path.write_text("x")
        assert input_error(path).startswith(
            f"{path}: format unclear from suffix '.docx', must be one of .parquet, .pq, .jsonl"
        )

    def test_unknown_scheme(self) -> None:
        assert input_error("nosuch://x/y.jsonl").startswith("nosuch://x/y.jsonl: cannot be opened:")

    def test_missing_column_lists_columns_and_the_nearest(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [{"id": "a", "promt": "x"}])
        assert input_error(uri) == (
            f"{uri}: no column 'prompt' or 'messages', columns are: 'id', 'promt'; did you mean "
            "'promt'?"
        )

    def test_named_column_missing(self, tmp_path: Path) -> None:
        uri = csv_file(tmp_path / "in.csv", [["prompt", "b"], ["x", "y"]])
        for option in ("prompt_column", "messages_column", "id_column"):
            assert input_error(uri, **{option: "zzz"}) == (
                f"{uri}: no column 'zzz', columns are: 'prompt', 'b'; name the column to use"
            )

    def test_wide_tables_are_not_listed_in_full(self, tmp_path: Path) -> None:
        uri = csv_file(tmp_path / "in.csv", [[f"c{i}" for i in range(50)], ["x"] * 50])
        assert "'c19' and 30 more; name the column to use" in input_error(uri)

    @pytest.mark.parametrize("write", [parquet_file, None])
    def test_later_file_without_the_column(self, tmp_path: Path, write: Any) -> None:
        if write:
            parquet_file(tmp_path / "a.parquet", {"prompt": ["x"]})
            parquet_file(tmp_path / "b.parquet", {"text": ["x"]})
        else:
            csv_file(tmp_path / "a.csv", [["prompt"], ["x"]])
            csv_file(tmp_path / "b.csv", [["text"], ["x"]])
        name = "b.parquet" if write else "b.csv"
        assert input_error(tmp_path).startswith(f"{name}: no column 'prompt', columns are: 'text'")

    def test_type_that_is_no_prompt(self, tmp_path: Path) -> None:
        uri = parquet_file(tmp_path / "in.parquet", {"prompt": [1]})
        assert input_error(uri) == (
            "in.parquet: column 'prompt' is int64, must be text; name another column or convert it"
        )

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet"
        path.write_bytes(b"PAR1" + bytes(100))
        message = input_error(path)
        assert message.startswith("in.parquet: cannot be read as Parquet: ")
        assert message.endswith("; check the file or give another format")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"PAR1....", "is a Parquet file; name it .parquet or give that format"),
            (gzip.compress(b"x"), "is gzip-compressed; name it .gz"),
            ("x\n".encode("utf-16"), "is UTF-16 text, must be UTF-8; convert it (iconv"),
        ],
    )
    def test_content_of_another_format(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(content)
        assert input_error(path).startswith(f"in.jsonl: {reason}")

    def test_compressed_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet.gz"
        path.write_bytes(gzip.compress(b"PAR1"))
        assert input_error(path).startswith("in.parquet.gz: compressed Parquet cannot be read")

    def test_sampling_column_that_is_none(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [{"prompt": "x", "n": 3}])
        assert input_error(uri, sampling_columns=["n"]).startswith(
            "sampling column 'n' is not a sampling parameter, must be one of frequency_penalty, "
        )

    def test_sampling_columns_can_be_left_alone(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [{"prompt": "x", "seed": "poppy", "top_p": 0.5}])
        assert good(read(uri, sampling_columns=["top_p"]))[0].sampling == {"top_p": 0.5}
        assert good(read(uri, sampling_columns=[]))[0].sampling == {}


class TestDuplicates:
    @pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "batch"])
    def test_one_clear_line_before_work_starts(self, tmp_path: Path, kind: str) -> None:
        ids = ["a", "b", "c", "b", "c", "b"]
        column, places = "id", ("in.jsonl:2", "in.jsonl:4")
        if kind == "jsonl":
            uri = lines_file(tmp_path / "in.jsonl", [{"id": i, "prompt": "x"} for i in ids])
        elif kind == "csv":
            uri = csv_file(tmp_path / "in.csv", [["id", "prompt"], *([i, "x"] for i in ids)])
            places = ("in.csv:3", "in.csv:5")
        elif kind == "parquet":
            uri = parquet_file(tmp_path / "in.parquet", {"id": ids, "prompt": ["x"] * 6})
            places = ("in.parquet row 2", "in.parquet row 4")
        else:
            uri, column = lines_file(tmp_path / "in.jsonl", map(batch_line, ids)), "custom_id"
        assert input_error(uri) == (
            f"{uri}: {column} 'b' occurs more than once ({places[0]} and {places[1]}, and 1 other "
            "ids too), must be unique; correct the ids, name another --id-column, or number the "
            "rows with --id-column ''"
        )

    def test_integers_and_their_text_are_the_same_id(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [{"id": i, "prompt": "x"} for i in (1, "1")])
        assert "id '1' occurs more than once" in input_error(uri)

    def test_rows_without_id_do_not_count_as_duplicates(self, tmp_path: Path) -> None:
        rows: list[Any] = [{"id": "a", "prompt": "x"}, {"prompt": "x"}, {"prompt": "y"}, "{", "{"]
        assert open_input(lines_file(tmp_path / "in.jsonl", rows)).check().rows == 5
