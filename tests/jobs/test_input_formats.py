"""What each format of an input makes of its rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reading.inputs import BadRow, JobRow, open_input
from tests.jobs.factories import (
    CHAT,
    any_speed,
    bad,
    csv_file,
    good,
    input_error,
    lines_file,
    parquet_file,
    read,
)


class TestParquet:
    def test_every_kind_of_column(self, tmp_path: Path) -> None:
        uri = parquet_file(
            tmp_path / "in.parquet",
            {
                "id": ["a", "b", "c"],
                "prompt": ["one", None, "three"],
                "messages": [None, CHAT, None],
                "max_tokens": pa.array([16.0, None, float("nan")]),
                "temperature": pa.array([0, 1, None], pa.int32()),
                "stop": pa.array([["x", "y"], None, None], pa.list_(pa.string())),
                "ignore_eos": [True, None, False],
                "other": [1, 2, 3],
            },
        )
        assert read(uri) == [
            JobRow(
                row_index=0,
                row_id="a",
                prompt="one",
                sampling={
                    "max_tokens": 16,
                    "temperature": 0.0,
                    "stop": ["x", "y"],
                    "ignore_eos": True,
                },
            ),
            JobRow(row_index=1, row_id="b", messages=CHAT, sampling={"temperature": 1.0}),
            JobRow(row_index=2, row_id="c", prompt="three", sampling={"ignore_eos": False}),
        ]

    def test_one_large_row_group_is_read_in_batches_in_order(self, tmp_path: Path) -> None:
        uri = parquet_file(tmp_path / "in.parquet", {"prompt": [str(i) for i in range(2_000)]})
        rows = read(uri)
        assert [row.prompt for row in good(rows)] == [str(i) for i in range(2_000)]
        assert rows[1_999].row_id == "row-00001999"

    @pytest.mark.parametrize(
        "column_type", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    )
    def test_text_types(self, tmp_path: Path, column_type: pa.DataType) -> None:
        uri = parquet_file(tmp_path / "in.parquet", {"prompt": pa.array(["p"]).cast(column_type)})
        assert good(read(uri))[0].prompt == "p"

    def test_integer_ids_and_messages_as_json_text(self, tmp_path: Path) -> None:
        uri = parquet_file(
            tmp_path / "in.parquet", {"row_id": [7, 8], "messages": [json.dumps(CHAT), "[oops"]}
        )
        first, second = read(uri)
        assert (first.row_id, good([first])[0].messages) == ("7", CHAT)
        assert "messages is '[oops', must be a non-empty list" in bad([second])[0].error

    def test_null_members_of_messages_are_left_out(self, tmp_path: Path) -> None:
        messages = [[{"role": "user", "content": "Hi", "name": None}]]
        schema = pa.list_(
            pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
        )
        uri = parquet_file(tmp_path / "in.parquet", {"messages": pa.array(messages, schema)})
        assert good(read(uri))[0].messages == [{"role": "user", "content": "Hi"}]

    def test_text_that_is_not_utf8_spoils_its_row_only(self, tmp_path: Path) -> None:
        broken = pa.array([b"good", b"b\xff\xfe", b"fine"]).view(pa.string())
        uri = parquet_file(tmp_path / "in.parquet", {"prompt": broken})
        first, second, third = read(uri)
        assert [row.prompt for row in good([first, third])] == ["good", "fine"]
        assert bad([second])[0].error.startswith("in.parquet row 2: prompt is not UTF-8: ")

    def test_rows_are_counted_without_reading_them(self, tmp_path: Path) -> None:
        for name, rows in (("a", 3), ("b", 4)):
            parquet_file(tmp_path / f"{name}.parquet", {"prompt": ["x"] * rows})
        summary = open_input(str(tmp_path)).check()
        assert (summary.rows, summary.files, summary.id_column) == (7, 2, None)

    def test_unfit_id_column_is_refused_when_named_and_passed_over_when_not(
        self, tmp_path: Path
    ) -> None:
        uri = parquet_file(tmp_path / "in.parquet", {"id": [0.5], "prompt": ["x"]})
        assert read(uri)[0].row_id == "row-00000000"
        assert input_error(uri, id_column="id") == (
            "in.parquet: column 'id' is double, must be text or integers; name another column or "
            "convert it"
        )


class TestJsonl:
    def test_plain_rows(self, tmp_path: Path) -> None:
        uri = lines_file(
            tmp_path / "in.jsonl",
            [
                {"row_id": "a", "prompt": "one", "max_tokens": 5, "unknown": {"deep": [1]}},
                "",
                {"row_id": 2, "messages": CHAT, "stop": "END", "seed": None},
            ],
        )
        assert read(uri) == [
            JobRow(row_index=0, row_id="a", prompt="one", sampling={"max_tokens": 5}),
            JobRow(row_index=1, row_id="2", messages=CHAT, sampling={"stop": ["END"]}),
        ]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"prompt": "x"', "is not valid JSON: Input data was truncated"),
            (b'{"prompt": "\xff"}', "is not UTF-8: "),
            (b'{"prompt": "\\ud83d"}', "is not valid JSON: "),
            (b'{"prompt": NaN}', "is not valid JSON: "),
            (b'{"prompt": 1e999}', "is not valid JSON: "),
            (b"[" * 100_000, "is not valid JSON: maximum recursion depth"),
            (b'["x"]', "holds a JSON array, must be an object"),
            (b"null", "holds a JSON null, must be an object"),
        ],
    )
    def test_malformed_line_is_isolated(self, tmp_path: Path, line: bytes, reason: str) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b'{"prompt": "a"}\n\n' + line + b'\n{"prompt": "b"}')
        first, second, third = read(path)
        assert [row.prompt for row in good([first, third])] == ["a", "b"]
        assert isinstance(second, BadRow)
        assert second.error.startswith(f"in.jsonl:3: {reason}")
        assert second.row_id == "row-00000001"
        assert second.echo == line.decode("utf-8", "replace")[:2_000]

    def test_line_too_long_is_isolated_without_being_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.reading.records.MAX_LINE_BYTES", 1_000)
        monkeypatch.setattr("jobs.reading.sources.read_lines.__defaults__", (1_000,))
        long = json.dumps({"prompt": "x" * 3_000_000})
        uri = lines_file(tmp_path / "in.jsonl", [{"prompt": "a"}, long, {"prompt": "b"}])
        rows = read(uri)
        assert [row.prompt for row in good(rows)] == ["a", "b"]
        assert [row.error for row in bad(rows)] == ["in.jsonl:2: is longer than 1,000 bytes"]

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
        assert [row.prompt for row in good(read(path))] == ["a", "b"]

    def test_id_of_the_wrong_kind_is_isolated(self, tmp_path: Path) -> None:
        ids = ["a", None, "", True, 1.5, ["x"]]
        uri = lines_file(tmp_path / "in.jsonl", [{"id": i, "prompt": "x"} for i in ids])
        rows = read(uri)
        assert [row.row_id for row in good(rows)] == ["a"]
        assert [row.error.split(": ", 1)[1] for row in bad(rows)] == [
            f"id is {value}, must be a non-empty string or an integer"
            for value in ("None", "''", "True", "1.5", "['x']")
        ]

    def test_empty_id_column_numbers_the_rows(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [{"id": "a", "prompt": "x"}] * 2)
        assert [row.row_id for row in read(uri, id_column="")] == ["row-00000000", "row-00000001"]

    def test_nothing_readable(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", ["hello", "world"])
        assert input_error(uri) == (
            f"{uri}: none of the first 2 rows can be read; in.jsonl:1 is not valid JSON: JSON is "
            "malformed: invalid character (byte 0); check the file or give another format"
        )

    def test_json_array(self, tmp_path: Path) -> None:
        path = tmp_path / "in.json"
        path.write_text(json.dumps([{"prompt": "x"}], indent=1))
        assert input_error(path) == (
            "in.json: begins with '[', must hold one JSON object per line; convert a JSON array "
            "with jq -c '.[]'"
        )


class TestCsv:
    def test_cells_are_parsed_by_column(self, tmp_path: Path) -> None:
        uri = csv_file(
            tmp_path / "in.csv",
            [
                ["id", "prompt", "max_tokens", "temperature", "stop", "ignore_eos", "note"],
                ["a", 'say "hi",\nplease\r\nnow', "12", ".5", '["x", "y"]', "True", "n"],
                ["b", "two", "", "nan", "END", "", ""],
            ],
        )
        assert read(uri) == [
            JobRow(
                row_index=0,
                row_id="a",
                prompt='say "hi",\nplease\r\nnow',
                sampling={
                    "max_tokens": 12,
                    "temperature": 0.5,
                    "stop": ["x", "y"],
                    "ignore_eos": True,
                },
            ),
            JobRow(row_index=1, row_id="b", prompt="two", sampling={"stop": ["END"]}),
        ]

    def test_messages_as_json(self, tmp_path: Path) -> None:
        uri = csv_file(
            tmp_path / "in.csv", [["prompt", "messages"], ["", json.dumps(CHAT)], ["p", ""]]
        )
        first, second = good(read(uri))
        assert (first.messages, first.prompt) == (CHAT, None)
        assert (second.messages, second.prompt) == (None, "p")

    def test_bad_rows_are_isolated(self, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_bytes(
            b'id,prompt\n1,a\n2,b,c\n3,\xff\n\n4,\n5,"x"y\n6,two\nlines\n7,last\n'.replace(
                b"two\nlines", b'"two\nlines"'
            )
        )
        rows = read(path)
        assert [(row.row_id, row.prompt) for row in good(rows)] == [
            ("1", "a"),
            ("6", "two\nlines"),
            ("7", "last"),
        ]
        assert [row.error for row in bad(rows)] == [
            "in.csv:3: has 3 fields, must have 2 as the header",
            "in.csv:4: prompt is not UTF-8",
            "in.csv:6: prompt is empty, must have at least one character",
            "in.csv:7: is not valid CSV: ',' expected after '\"'",
        ]

    def test_quote_that_is_never_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text('prompt\nfine\n"open\nnext\n')
        rows = read(path)
        assert good(rows)[0].prompt == "fine"
        assert bad(rows)[0].error == "in.csv:3: is not valid CSV: unexpected end of data"
        assert bad(rows)[0].echo == '"open\nnext'

    def test_row_that_would_not_fit_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.reading.records.MAX_LINE_BYTES", 100)
        path = tmp_path / "in.csv"
        path.write_text('prompt\n"open\n' + "x\n" * 100)
        rows = read(path)
        assert "in.csv:2: is not valid CSV: the row is longer than 100 bytes" in bad(rows)[0].error
        assert good(rows)[-1].prompt == "x"

    def test_tab_and_given_delimiter(self, tmp_path: Path) -> None:
        rows = [["id", "prompt"], ["a", "x, y; z"]]
        tsv = csv_file(tmp_path / "in.tsv", rows, delimiter="\t")
        semicolon = csv_file(tmp_path / "in.csv", rows, delimiter=";")
        assert good(read(tsv))[0].prompt == "x, y; z"
        assert good(read(semicolon, delimiter=";"))[0].prompt == "x, y; z"
        assert input_error(semicolon).endswith(
            "columns are: 'id;prompt'; is the delimiter another one?"
        )

    @pytest.mark.parametrize("delimiter", ["", ";;"])
    def test_delimiter_that_is_none(self, tmp_path: Path, delimiter: str) -> None:
        uri = csv_file(tmp_path / "in.csv", [["prompt"], ["x"]])
        assert input_error(uri, delimiter=delimiter) == (
            f"--delimiter is {delimiter!r}, must be one character"
        )

    def test_repeated_column(self, tmp_path: Path) -> None:
        uri = csv_file(tmp_path / "in.csv", [["prompt", "prompt"], ["a", "b"]])
        assert input_error(uri) == (
            "in.csv:1: the header names column 'prompt' more than once; correct the header line"
        )


class TestText:
    def test_each_line_that_is_not_blank_is_a_prompt(self, tmp_path: Path) -> None:
        path = tmp_path / "in.txt"
        path.write_bytes("first\r\n\n   \n  second ü \nbad \xff\nlast".encode("latin-1"))
        rows = read(path)
        assert [(r.row_index, r.prompt) for r in good(rows)] == [(0, "first"), (3, "last")]
        assert [r.error.split(" (")[0][:26] for r in bad(rows)] == [
            "in.txt:4: is not UTF-8: 'u",
            "in.txt:5: is not UTF-8: 'u",
        ]

    def test_prompts_may_look_like_anything(self, tmp_path: Path) -> None:
        path = tmp_path / "in.txt"
        path.write_text('[1]\n{"a": 1}\n"\n')
        assert [row.prompt for row in good(read(path))] == ["[1]", '{"a": 1}', '"']


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20
)


@any_speed
@given(st.lists(texts, min_size=1, max_size=20), st.sampled_from(["jsonl", "csv", "parquet"]))
def test_any_text_survives_any_format(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("in") / f"in.{suffix}"
    if suffix == "jsonl":
        lines_file(path, [{"prompt": prompt} for prompt in prompts])
    elif suffix == "csv":
        # Python's writer leaves a lone carriage return unquoted, which no reader can take back.
        csv_file(path, [["prompt"], *([p] for p in prompts)], quoting=csv.QUOTE_ALL)
    else:
        parquet_file(path, {"prompt": prompts})
    rows = read(path)
    assert [row.prompt for row in good(rows)] == prompts
    assert [row.row_index for row in rows] == list(range(len(prompts)))
