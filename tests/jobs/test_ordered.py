from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.errors import OutputError
from jobs.writing.ordered import ORDERED_SCHEMA, ordered_tables, write_openai_batch, write_ordered
from jobs.writing.outputs import ResultWriter
from jobs.writing.results import RESULT_SCHEMA, to_table
from jobs.writing.storage import Storage
from tests.jobs.factories import any_speed, batch_line, error, good, lines_file, read, result
from tests.jobs.places import local, objects


def write(storage: Storage, order: list[int], rows_per_part: int = 7, text_size: int = 1) -> None:
    """Every fifth row fails."""
    writer = ResultWriter(storage, rows_per_part=rows_per_part)
    for n, i in enumerate(order):
        if i % 5 == 4:
            writer.add_error(error(i))
        else:
            writer.add(result(i, text=f"answer {i}" * text_size))
        if n % (rows_per_part // 2 + 1) == 0:
            writer.flush()
    writer.flush()


@pytest.mark.parametrize("make", [local, objects])
def test_one_row_for_each_row_of_the_input_in_its_order(tmp_path: Path, make: type) -> None:
    storage = make(tmp_path)
    write(storage, [5, 2, 4, 0, 3, 1])
    write_ordered(storage)
    with storage.open("output.parquet") as stream:
        table = pq.read_table(stream)
    assert table.schema.equals(ORDERED_SCHEMA)
    rows = table.to_pylist()
    assert [row["row_index"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert {name: rows[3][name] for name in RESULT_SCHEMA.names} == to_table(
        [result(3)], RESULT_SCHEMA
    ).to_pylist()[0]
    assert (rows[3]["error"], rows[3]["error_kind"]) == (None, None)
    shown = {name: value for name, value in rows[4].items() if value is not None}
    assert shown == {
        "row_index": 4,
        "row_id": "id-4",
        "prompt": "{}",
        "finish_reason": "error",
        "error": "row 4 is bad",
        "error_kind": "input",
    }


def test_nothing_finished(tmp_path: Path) -> None:
    storage = local(tmp_path)
    write_ordered(storage)
    write_openai_batch(storage)
    assert pq.read_table(tmp_path / "output.parquet").num_rows == 0
    assert (tmp_path / "output.jsonl").read_bytes() == b""


orders = st.integers(0, 120).flatmap(lambda rows: st.permutations(range(rows)))


@settings(any_speed, max_examples=30)
@example(order=list(range(65)), rows_per_part=40, sort_bytes=1, stride=1)
@given(
    order=orders,
    rows_per_part=st.integers(1, 40),
    sort_bytes=st.sampled_from([1, 3_000, 10**9]),
    stride=st.integers(1, 50),
)
def test_any_completion_order_is_put_right(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    rows_per_part: int,
    sort_bytes: int,
    stride: int,
) -> None:
    """With room for one row at a time, for some, and for all; indices may have gaps."""
    storage = local(tmp_path_factory.mktemp("out"))
    write(storage, [stride * i for i in order], rows_per_part)
    tables = list(ordered_tables(storage, sort_bytes))
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["row_index"] for row in rows] == [stride * i for i in range(len(order))]
    for row in rows:
        is_error = row["row_index"] % 5 == 4
        assert (row["error"] is not None) == is_error
        assert row["text"] == (None if is_error else f"answer {row['row_index']}")


def test_rows_that_compress_well_do_not_fool_the_memory_bound(tmp_path: Path) -> None:
    """The pages of equal texts are tiny; the rows are not."""
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    for i in range(2_000):
        writer.add(result((i * 7) % 2_000, prompt="the same " * 1_000))
    writer.close()
    compressed = (tmp_path / "parts/part-00000.parquet").stat().st_size
    assert compressed < 200_000
    sizes = [table.nbytes for table in ordered_tables(storage, 1_000_000)]
    assert sum(sizes) > 18_000_000
    assert max(sizes) <= 1_000_000


def test_memory_does_not_grow_with_the_output(tmp_path: Path) -> None:
    storage = local(tmp_path)
    write(storage, list(range(0, 3_000))[::-1], rows_per_part=500, text_size=1_000)
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    for _ in ordered_tables(storage, 2_000_000):
        peak = max(peak, pa.total_allocated_bytes() - before)
    _, python_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
    assert python_peak < 8_000_000
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    storage = local(tmp_path)
    write(storage, [0, 1, 2, 3], rows_per_part=2)
    table = to_table([result(2)], RESULT_SCHEMA)
    pq.write_table(table, tmp_path / "parts/part-00099.parquet")
    with pytest.raises(OutputError, match="row 2 of the input is recorded twice; the folder was"):
        write_ordered(storage)
    assert not (tmp_path / "output.parquet").exists()


def test_openai_batch_from_end_to_end(tmp_path: Path) -> None:
    uri = lines_file(
        tmp_path / "in.jsonl",
        [
            batch_line("chat"),
            batch_line("text", "/v1/completions", prompt="Once"),
            batch_line("failed"),
            batch_line("many", n=2),
            "{malformed",
        ],
    )
    rows = read(uri)
    storage = local(tmp_path / "out")
    writer = ResultWriter(storage)
    for bad_row in rows[3:]:
        writer.add_error(bad_row)  # type: ignore[arg-type]
    text, chat, failed = (good(rows)[i] for i in (1, 0, 2))
    for row in (text, chat):
        assert row.batch_line is not None
        writer.add(
            result(
                row.row_index,
                row_id=row.row_id,
                prompt=row.prompt_text,
                text=f"Über {row.row_id}",
                endpoint=row.batch_line.endpoint,
                model=row.batch_line.model,
            )
        )
    writer.add_error(failed.failed("the engine died twice"))
    writer.close()
    write_openai_batch(storage)

    lines = [json.loads(line) for line in (tmp_path / "out/output.jsonl").open(encoding="utf-8")]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert lines == [
        {
            "id": "batch_req_000000000000",
            "custom_id": "chat",
            "response": {
                "status_code": 200,
                "request_id": "req_000000000000",
                "body": {
                    "id": "chatcmpl-000000000000",
                    "object": "chat.completion",
                    "created": 1_700_000_000,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "Über chat"},
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": usage,
                },
            },
            "error": None,
        },
        {
            "id": "batch_req_000000000001",
            "custom_id": "text",
            "response": {
                "status_code": 200,
                "request_id": "req_000000000001",
                "body": {
                    "id": "cmpl-000000000001",
                    "object": "text_completion",
                    "created": 1_700_000_000,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "text": "Über text",
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": usage,
                },
            },
            "error": None,
        },
    ]

    errors = [json.loads(line) for line in (tmp_path / "out/errors.jsonl").open(encoding="utf-8")]
    assert [(e["custom_id"], e["response"]["status_code"]) for e in errors] == [
        ("failed", 500),
        ("many", 400),
        ("row-00000004", 400),
    ]
    assert errors[0]["error"] == {"code": "generation_failed", "message": "the engine died twice"}
    assert errors[1]["response"]["body"] == {
        "error": {
            "message": "in.jsonl:4: body.n is 2, must be 1 in a job",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_request",
        }
    }


def test_batch_lines_are_what_the_openai_sdk_reads(tmp_path: Path) -> None:
    types = pytest.importorskip("openai.types")
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    writer.add(result(0, endpoint="/v1/chat/completions", model="m"))
    writer.add(result(1, endpoint="/v1/completions", model="m"))
    writer.close()
    write_openai_batch(storage)
    chat, text = (
        json.loads(line)["response"]["body"] for line in (tmp_path / "output.jsonl").open()
    )
    assert types.chat.ChatCompletion.model_validate(chat).choices[0].message.content == "answer 0"
    assert types.Completion.model_validate(text).choices[0].text == "answer 1"
