from __future__ import annotations

import bz2
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reading.inputs import BadRow, InputError, InputFormat, InputOptions, JobRow, open_input
from tests.jobs.factories import any_speed, bad, batch_line, good, lines_file, read

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]


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


class TestFiles:
    @pytest.mark.parametrize("opener", [gzip.open, bz2.open])
    def test_compressed(self, tmp_path: Path, opener: Any) -> None:
        suffix = {gzip.open: "gz", bz2.open: "bz2"}[opener]
        path = tmp_path / f"in.jsonl.{suffix}"
        with opener(path, "wt") as file:
            file.write('{"prompt": "a"}\n{"prompt": "b"}\n')
        assert [row.prompt for row in good(read(path))] == ["a", "b"]

    def test_zstd(self, tmp_path: Path) -> None:
        path = tmp_path / "in.csv.zst"
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(b"prompt\nhello\n")
        assert [row.prompt for row in good(read(path))] == ["hello"]

    def test_compressed_file_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "in.txt.gz"
        text = "".join(f"prompt {i}\n" for i in range(200_000))
        path.write_bytes(gzip.compress(text.encode())[:-40_000])
        source = open_input(str(path))
        with pytest.raises(InputError, match=r"in\.txt\.gz: cannot be read beyond row \d+ of the"):
            list(source.rows())

    def test_folder_in_order_without_hidden_and_foreign_files(self, tmp_path: Path) -> None:
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
    def test_globs(self, tmp_path: Path, scheme: str, pattern: str, names: list[str]) -> None:
        for name in ("a.jsonl", "x/a.jsonl", "x/deep/a.jsonl", "y/a.jsonl"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            lines_file(tmp_path / name, [{"prompt": name}])
        rows = good(read(f"{scheme}{tmp_path}/{pattern}"))
        assert [row.prompt for row in rows] == names

    def test_a_name_with_wildcard_characters_is_taken_literally_first(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in[1].jsonl", [{"prompt": "x"}])
        assert len(read(uri)) == 1

    def test_given_format_stands_over_the_suffix(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "prompts.data", ["one", "two"])
        assert [r.prompt for r in good(read(uri, input_format=InputFormat.TEXT))] == ["one", "two"]

    def test_skip_passes_over_rows_without_changing_the_others(self, tmp_path: Path) -> None:
        rows: list[Any] = [{"prompt": str(i)} for i in range(6)]
        rows[2] = "malformed"
        files = {
            "jsonl": lines_file(tmp_path / "in.jsonl", rows),
            "csv": csv_file(tmp_path / "in.csv", [["prompt"], *([str(i)] for i in range(6))]),
            "parquet": parquet_file(
                tmp_path / "in.parquet", {"prompt": [str(i) for i in range(6)]}
            ),
            "text": lines_file(tmp_path / "in.txt", [str(i) for i in range(6)]),
        }
        for uri in files.values():
            source = open_input(uri)
            everything = list(source.rows())
            assert len(everything) == 6
            assert list(source.rows(skip={0, 2, 5})) == [everything[i] for i in (1, 3, 4)]


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
            (b"PAR1....", "is a Parquet file; pass format='parquet' or name it .parquet"),
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
            "ids too), must be unique; correct the ids, name another id_column, or give an empty "
            "id_column to number the rows"
        )

    def test_integers_and_their_text_are_the_same_id(self, tmp_path: Path) -> None:
        uri = lines_file(tmp_path / "in.jsonl", [{"id": i, "prompt": "x"} for i in (1, "1")])
        assert "id '1' occurs more than once" in input_error(uri)

    def test_rows_without_id_do_not_count_as_duplicates(self, tmp_path: Path) -> None:
        rows: list[Any] = [{"id": "a", "prompt": "x"}, {"prompt": "x"}, {"prompt": "y"}, "{", "{"]
        assert open_input(lines_file(tmp_path / "in.jsonl", rows)).check().rows == 5


def test_rows_are_counted_when_asked(tmp_path: Path) -> None:
    source = open_input(lines_file(tmp_path / "in.jsonl", [{"prompt": "x"}, "", "oops"]))
    assert source.check().rows is None
    summary = source.check(count_rows=True)
    assert (summary.rows, summary.files, summary.input_format) == (2, 1, InputFormat.JSONL)
    assert summary.size_bytes == Path(source.uri).stat().st_size


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
