"""The labels file, made of results that came in any order."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import OutputError
from jobs.reading.inputs import open_input
from jobs.reading.sampled import SampledInput
from jobs.writing.labels import LABEL_SCHEMA, LABELS, METADATA_KEY, LabelCounts, write_labels
from jobs.writing.outputs import ResultWriter
from jobs.writing.storage import Storage
from predictor.labels import read_labels
from tests.jobs.factories import any_speed, error, lines_file, result
from tests.jobs.places import local, objects

PROMPTS = 12
SAMPLES = 3


def source_of(path: Path, rows: list[Any] | None = None, samples: int = SAMPLES) -> SampledInput:
    rows = rows or [{"id": f"p{i}", "prompt": f"Prompt {i}"} for i in range(PROMPTS)]
    source = open_input(lines_file(path / "in.jsonl", rows))
    return SampledInput(source, samples, 20, {"top_p": 0.9})


def length(row_index: int) -> int:
    return 1 + row_index * 7 % 20


def sample(row_index: int) -> Any:
    tokens = length(row_index)
    reason = "length" if tokens == 20 else "stop"
    return result(row_index, output_tokens=tokens, finish_reason=reason)


def label(storage: Storage, source: SampledInput, **options: Any) -> LabelCounts:
    return write_labels(storage, source, LABELS, model="m", how={"samples": 3}, **options)


def labels(storage: Storage) -> list[dict[str, Any]]:
    with storage.open(LABELS) as stream:
        rows: list[dict[str, Any]] = pq.read_table(stream).to_pylist()
    return rows


@settings(any_speed, max_examples=25)
@given(
    order=st.permutations(range(PROMPTS * SAMPLES)),
    failed=st.frozensets(st.integers(0, PROMPTS * SAMPLES - 1)),
    running=st.integers(0, 8),
    sort_bytes=st.sampled_from([1, 500, 10**9]),
)
def test_each_prompt_has_its_own_samples_in_their_order(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    failed: frozenset[int],
    running: int,
    sort_bytes: int,
) -> None:
    """Whatever ended in which order, failed, or still runs."""
    folder = tmp_path_factory.mktemp("job")
    storage = local(folder / "out")
    writer = ResultWriter(storage, rows_per_part=10)
    ended = order[: len(order) - running]
    for i in ended:
        writer.add_error(error(i)) if i in failed else writer.add(sample(i))
        if i % 4 == 0:
            writer.flush()
    writer.close()
    counts = label(storage, source_of(folder), sort_bytes=sort_bytes)

    expected = []
    for p in range(PROMPTS):
        rows = range(p * SAMPLES, (p + 1) * SAMPLES)
        kept = [i for i in rows if i not in failed]
        if set(rows) <= set(ended) and kept:
            expected.append((f"p{p}", [length(i) for i in kept]))
    rows = labels(storage)
    assert [(row["prompt_id"], row["output_tokens"]) for row in rows] == expected
    assert all(row["censored"] == [n == 20 for n in row["output_tokens"]] for row in rows)
    assert counts.prompts == len(expected)
    assert counts.samples == sum(len(lengths) for _, lengths in expected)
    assert counts.censored == sum(lengths.count(20) for _, lengths in expected)
    assert counts.failed_samples == SAMPLES * len(expected) - counts.samples
    assert counts.prompts + counts.failed_prompts + counts.unfinished_prompts == PROMPTS
    assert counts.unfinished_prompts == len({i // SAMPLES for i in set(order) - set(ended)})


@pytest.mark.parametrize("make", [local, objects])
def test_the_columns_are_what_the_predictor_reads(tmp_path: Path, make: type) -> None:
    chat_messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    rows = [
        {"id": "plain", "prompt": "Hello there", "temperature": 0.5, "max_tokens": 30, "top_k": 9},
        {"id": "greedy", "prompt": "Hello", "temperature": 0.0},
        {"id": "chat", "messages": chat_messages},
    ]
    storage = make(tmp_path / "out")
    writer = ResultWriter(storage)
    for i in (8, 0, 2, 1, 6, 7, 3):
        writer.add(sample(i))
    writer.close()
    label(storage, source_of(tmp_path, rows))
    with storage.open(LABELS) as stream:
        table = pq.read_table(stream)
    assert table.schema.equals(LABEL_SCHEMA)
    assert json.loads(table.schema.metadata[METADATA_KEY]) == {"samples": 3}
    plain, greedy, chat = table.to_pylist()
    assert plain == {
        "prompt_id": "plain",
        "prompt": "Hello there",
        "model": "m",
        "prompt_tokens": 3,
        "output_tokens": [1, 8, 15],
        "censored": [False, False, False],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 9,
        "max_tokens": 30,
    }
    assert (greedy["output_tokens"], greedy["temperature"]) == ([length(3)], 0.0)
    assert (chat["prompt"], chat["max_tokens"]) == ("Be\nHi", 20)
    pq.write_table(table, tmp_path / "labels.parquet")
    read = read_labels([tmp_path / "labels.parquet"])
    assert read.prompts.text == ["Hello there", "Hello", "Be\nHi"]
    assert read.output_tokens.tolist() == [[1, 8, 15], [2, 0, 0], [3, 10, 17]]
    assert read.prompts.temperature.tolist() == [0.5, 0.0, 1.0]


def test_an_answer_that_the_engine_broke_off_is_no_length(tmp_path: Path) -> None:
    storage = local(tmp_path / "out")
    writer = ResultWriter(storage)
    for i in range(3):
        writer.add(result(i, finish_reason="abort" if i == 1 else "stop", output_tokens=i + 5))
    writer.close()
    counts = label(storage, source_of(tmp_path, [{"id": "a", "prompt": "x"}]))
    assert labels(storage)[0]["output_tokens"] == [5, 7]
    assert counts.failed_samples == 1


def test_memory_does_not_grow_with_the_job(tmp_path: Path) -> None:
    prompts, samples = 1_000, 20
    rows = [{"id": f"p{i}", "prompt": f"{i} " + "word " * 8_000} for i in range(prompts)]
    source = source_of(tmp_path, rows, samples)
    storage = local(tmp_path / "out")
    writer = ResultWriter(storage, rows_per_part=4_000)
    for i in range(prompts * samples):
        writer.add(sample(i * 7 % (prompts * samples)))
        if i % 2_000 == 0:
            writer.flush()
    writer.close()
    del rows, writer
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    label(storage, source, sort_bytes=200_000)
    _, python_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with storage.open(LABELS) as stream:
        assert pq.read_metadata(stream).num_rows == prompts
    assert python_peak < 20_000_000, "the prompts alone have 40 MB"
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_sample_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    storage = local(tmp_path / "out")
    writer = ResultWriter(storage)
    writer.add(sample(0))
    writer.close()
    part = tmp_path / "out/parts/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(OutputError, match="row 0 of the input is recorded twice"):
        label(storage, source_of(tmp_path))
    assert not (tmp_path / "out" / LABELS).exists()
