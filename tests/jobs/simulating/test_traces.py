from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.workload import WorkloadError
from jobs.errors import InputError
from jobs.simulating.traces import TraceColumns, TraceFile, read_trace
from tests.jobs.simulating.workloads import AZURE, azure_file, lines_file, needs_azure


def test_azure_rows_are_read_to_the_microsecond(tmp_path: Path) -> None:
    file = azure_file(
        tmp_path,
        [
            ("2023-11-16 18:15:46.6805900", 374, 44),
            ("2023-11-16 18:15:50.9951690", 396, 109),
            ("2023-11-17 00:00:00.0000000", 879, 55),
        ],
    )
    trace = read_trace(file)
    assert trace.arrival_s == pytest.approx([0, 4.314579, 20653.31941], abs=2e-6)
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert trace.unsorted_rows == 0
    assert trace.rate_per_s == pytest.approx(2 / 20653.31941)


def test_times_without_a_zone_are_utc_and_others_are_converted(tmp_path: Path) -> None:
    file = azure_file(
        tmp_path, [("2024-05-10 00:00:00", 1, 1), ("2024-05-10 02:00:01+02:00", 1, 2)]
    )
    assert read_trace(file).arrival_s.tolist() == [0, 1]


def test_responses_of_an_openai_api_are_recognised(tmp_path: Path) -> None:
    rows = [
        {"created": 1000 + i, "usage": {"prompt_tokens": 5 + i, "completion_tokens": 7 + i}}
        for i in range(3)
    ]
    trace = read_trace(lines_file(tmp_path, rows))
    assert trace.arrival_s.tolist() == [0, 1, 2]
    assert trace.prompt_tokens.tolist() == [5, 6, 7]
    assert trace.output_tokens.tolist() == [7, 8, 9]


def test_mooncake_counts_in_milliseconds(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]},
        {"timestamp": 3052, "input_length": 7234, "output_length": 794, "hash_ids": [0, 2]},
    ]
    trace = read_trace(lines_file(tmp_path, rows))
    assert trace.arrival_s.tolist() == [0, 3.052]
    assert trace.prompt_tokens.tolist() == [6755, 7234]
    assert trace.output_tokens.tolist() == [500, 794]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("when,in.tokens,out\n2,10,20\n5,30,40.0\n")
    columns = TraceColumns("when", "in.tokens", "out", timestamp_unit_s=60)
    trace = read_trace(TraceFile(str(path), columns))
    assert trace.arrival_s.tolist() == [0, 180]
    assert trace.prompt_tokens.tolist() == [10, 30]
    assert trace.output_tokens.tolist() == [20, 40]


def test_compressed_and_parquet_files_hold_the_same(tmp_path: Path) -> None:
    file = azure_file(tmp_path, [("2024-01-01 00:00:00", 3, 4), ("2024-01-01 00:00:02.5", 5, 6)])
    expected = read_trace(file)
    (tmp_path / "zipped.csv.gz").write_bytes(gzip.compress(Path(file.uri).read_bytes()))
    table = pa.table(
        {
            "TIMESTAMP": pa.array(
                [1_704_067_200_000_000, 1_704_067_202_500_000], pa.timestamp("us")
            ),
            "ContextTokens": [3, 5],
            "GeneratedTokens": [4, 6],
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    for name in ("zipped.csv.gz", "table.parquet"):
        found = read_trace(TraceFile(str(tmp_path / name)))
        for field in ("arrival_s", "prompt_tokens", "output_tokens"):
            assert getattr(found, field).tolist() == getattr(expected, field).tolist()


def test_rows_out_of_order_are_sorted_and_counted(tmp_path: Path) -> None:
    rows = [(float(i // 2), 1 + i, 1 + i) for i in range(100)]
    shuffled = list(rows)
    random.Random(1).shuffle(shuffled)
    trace = read_trace(azure_file(tmp_path, shuffled))
    assert trace.arrival_s.tolist() == [row[0] for row in rows]
    latest = np.maximum.accumulate([row[0] for row in shuffled])
    assert trace.unsorted_rows == sum(
        row[0] < late for row, late in zip(shuffled, latest, strict=True)
    )
    assert trace.unsorted_rows > 50
    # Rows of one instant keep the order of the file.
    expected = sorted(shuffled, key=lambda row: row[0])
    assert trace.prompt_tokens.tolist() == [row[1] for row in expected]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("1", 0, 5), ["trace.csv:3", "ContextTokens is '0'", "from 1 to"]),
        (("1", 5, -3), ["trace.csv:3", "GeneratedTokens is '-3'"]),
        (("1", 5, ""), ["trace.csv:3", "GeneratedTokens is ''"]),
        (("1", 5.5, 5), ["trace.csv:3", "ContextTokens is '5.5'"]),
        (("1", "1e99", 5), ["trace.csv:3", "ContextTokens is '1e99'"]),
        (("soon", 5, 5), ["trace.csv:3", "TIMESTAMP is 'soon'", "date and time"]),
        (("nan", 5, 5), ["trace.csv:3", "TIMESTAMP is 'nan'"]),
        (("1", 5, "5,6"), ["trace.csv:3", "has 4 fields, must have 3"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: tuple[Any, ...], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(azure_file(tmp_path, [("0", 1, 1), row]))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [True, None, [1], {"a": 1}, 10**400])
def test_json_values_that_are_no_numbers_are_refused(tmp_path: Path, value: Any) -> None:
    good = {"timestamp": 1, "input_length": 2, "output_length": 3}
    for column in good:
        with pytest.raises(InputError, match=rf"trace\.jsonl:2: {column} is"):
            read_trace(lines_file(tmp_path, [good, {**good, column: value}]))


def test_a_missing_column_is_named_with_what_there_is_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedToken\n1,2,3\n")
    with pytest.raises(InputError) as caught:
        read_trace(TraceFile(str(path)))
    assert "no column 'GeneratedTokens'" in str(caught.value)
    assert "'TIMESTAMP', 'ContextTokens', 'GeneratedToken'" in str(caught.value)
    assert "did you mean 'GeneratedToken'?" in str(caught.value)


def test_a_file_that_is_no_trace_is_told_what_would_be_one(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt\n1,hello\n")
    with pytest.raises(InputError) as caught:
        read_trace(TraceFile(str(path)))
    assert "columns are: 'id', 'prompt'" in str(caught.value)
    assert "azure: TIMESTAMP, ContextTokens, GeneratedTokens" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.csv", None, "no such file"),
        ("empty.csv", b"", "has no rows"),
        ("header.csv", b"TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
        ("array.jsonl", b'[{"timestamp": 1}]', "one JSON object per line"),
        ("broken.jsonl", b'{"timestamp": 1,\n', "not valid JSON"),
        ("fake.parquet", b"TIMESTAMP", "cannot be read as Parquet"),
        ("prompts.txt", b"hello\n", "no timestamps"),
        ("cut.csv.gz", gzip.compress(b"TIMESTAMP,ContextTokens\n" * 99)[:20], "cannot be read"),
    ],
)
def test_an_unusable_file_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trace(TraceFile(str(path)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_of_one_instant_has_no_rate(tmp_path: Path) -> None:
    trace = read_trace(azure_file(tmp_path, [("5", 1, 1), ("5", 2, 2)]))
    with pytest.raises(InputError, match="all 2 requests have one timestamp"):
        _ = trace.rate_per_s


def test_a_unit_must_be_above_0() -> None:
    with pytest.raises(WorkloadError, match=r"timestamp_unit_s is 0, must be above 0"):
        TraceColumns("a", "b", "c", 0)


@needs_azure
def test_the_azure_trace() -> None:
    trace = read_trace(TraceFile(str(AZURE)))
    lines = AZURE.read_text().splitlines()[1:]
    assert len(trace) == len(lines)
    assert trace.prompt_tokens.sum() == sum(int(line.split(",")[1]) for line in lines)
    assert trace.output_tokens.sum() == sum(int(line.split(",")[2]) for line in lines)
    assert trace.arrival_s[-1] == pytest.approx(58 * 60, rel=0.02)
    assert trace.unsorted_rows == 0
