from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import OutputError, OutputFullError
from jobs.writing.local_storage import LocalStorage
from jobs.writing.outputs import ResultWriter
from jobs.writing.parts import RESULTS, delete_errors, find_parts, finished_rows
from jobs.writing.results import ERROR_SCHEMA, RESULT_SCHEMA, ResultRow, to_table
from jobs.writing.storage import Storage
from tests.jobs.factories import (
    any_speed,
    error,
    naive_parts,
    result,
    stored_errors,
    stored_results,
)
from tests.jobs.places import local, objects, small_disk

Make = Callable[[Path], Storage]
both = pytest.mark.parametrize("make", [local, objects])


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@both
def test_rows_are_there_after_each_flush_and_parts_after_close(tmp_path: Path, make: Make) -> None:
    storage = make(tmp_path)
    writer = ResultWriter(storage, rows_per_part=5)
    for i in range(4):
        assert writer.add(result(i))
        assert writer.add_error(error(100 + i))
        assert stored_results(storage) == list(range(i))
        writer.flush()
        assert stored_results(storage) == list(range(i + 1))
        assert stored_errors(storage) == [100 + n for n in range(i + 1)]
    assert find_parts(storage, RESULTS).parts == []
    writer.close()
    assert storage.names("parts") == ["part-00000.parquet"]
    assert storage.names("errors") == ["error-00000.parquet"]
    assert storage.names("pending") == []
    assert stored_results(storage) == [0, 1, 2, 3]
    assert (writer.result_rows, writer.error_rows) == (4, 4)


def test_columns_and_values_are_those_of_the_row(tmp_path: Path) -> None:
    full = result(
        7,
        token_ids=[1, 2**31 - 1],
        queue_s=0.25,
        ttft_s=0.5,
        latency_s=1.5,
        replica="r-1",
        attempts=2,
        evictions=1,
        recomputed_tokens=40,
        forecast_mu=4.0,
        forecast_sigma=0.7,
        forecast_lower=10,
        forecast_upper=300,
        forecast_source="learned",
        energy_joules=3.5,
        wasted_joules=0.25,
        energy_source="zeus:nvml",
        endpoint="/v1/completions",
        model="m",
    )
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    writer.add(full)
    writer.add(result(8))
    writer.add_error(error(9, error_kind="generation", endpoint="/v1/completions"))
    writer.close()
    parts = pq.read_table(tmp_path / "parts/part-00000.parquet")
    assert parts.schema.equals(RESULT_SCHEMA)
    assert RESULT_SCHEMA.names == list(pq.read_table(tmp_path / "parts").column_names)
    assert set(RESULT_SCHEMA.names) == set(ResultRow.__struct_fields__)
    assert [ResultRow(**row) for row in parts.to_pylist()] == [full, result(8)]
    errors = pq.read_table(tmp_path / "errors/error-00000.parquet")
    assert errors.schema.equals(ERROR_SCHEMA)
    assert errors.to_pylist() == [
        {
            "row_index": 9,
            "row_id": "id-9",
            "error": "row 9 is bad",
            "error_kind": "generation",
            "echo": "{}",
            "endpoint": "/v1/completions",
        }
    ]


def test_segments_of_an_older_program_without_a_column_become_a_part(tmp_path: Path) -> None:
    storage = local(tmp_path)
    for index in (3, 4):
        table = to_table([result(index)], RESULT_SCHEMA)
        table = table.drop_columns(["wasted_joules"]) if index == 3 else table
        name = RESULTS.segment(0, index)
        storage.write(name, lambda out, table=table: pq.write_table(table, out))
    writer = ResultWriter(storage)
    assert stored_results(storage) == [3, 4]
    assert writer.result_rows == 2
    assert pq.read_table(tmp_path / "parts").schema.equals(RESULT_SCHEMA)
    writer.close()


def test_a_row_ends_once(tmp_path: Path) -> None:
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    assert writer.add(result(1))
    assert not writer.add(result(1))
    assert not writer.add_error(error(1))
    writer.close()
    again = ResultWriter(storage)
    assert 1 in again.finished
    assert not again.add(result(1))
    assert again.add_error(error(2))
    again.close()
    assert (stored_results(storage), stored_errors(storage)) == ([1], [2])
    assert (again.result_rows, again.error_rows) == (1, 1)


def test_when_a_flush_is_due(tmp_path: Path) -> None:
    clock = Clock()
    writer = ResultWriter(local(tmp_path), flush_interval_s=5.0, clock=clock)
    clock.now_s += 60
    assert not writer.is_due()
    writer.add_error(error(0))
    clock.now_s += 4.5
    writer.add(result(1))
    assert not writer.is_due()
    clock.now_s += 0.5
    assert writer.is_due()
    writer.flush()
    assert not writer.is_due()
    clock.now_s += 60
    assert not writer.is_due()
    writer.add(result(2, text="x" * 33 * 1024 * 1024))
    assert writer.is_due()


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    writer = ResultWriter(local(tmp_path))
    writer.flush()
    writer.close()
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_long_job_of_small_flushes_makes_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.writing.outputs.SEGMENTS_PER_PART", 16)
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    most = 0
    for i in range(100):
        writer.add(result(i))
        writer.flush()
        most = max(most, len(list(tmp_path.rglob("*.parquet"))))
    assert most == 5 + 15
    writer.close()
    assert len(storage.names("parts")) == 7
    assert stored_results(storage) == naive_parts(tmp_path) == list(range(100))


def test_large_rows_make_parts_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.writing.outputs.BYTES_PER_PART", 1_000_000)
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    for i in range(6):
        writer.add(result(i, text="x" * 600_000))
        writer.flush()
    assert find_parts(storage, RESULTS).parts == [0, 1, 2]


def test_text_that_is_not_unicode_is_mended(tmp_path: Path) -> None:
    storage = local(tmp_path)
    writer = ResultWriter(storage)
    writer.add(result(0, text="ok \U0001f600 \ud83d end"))
    writer.close()
    table = pq.read_table(tmp_path / "parts/part-00000.parquet")
    assert table.column("text").to_pylist() == ["ok \U0001f600 \ufffd end"]


def test_rows_are_added_while_others_are_flushed(tmp_path: Path) -> None:
    storage = local(tmp_path)
    writer = ResultWriter(storage, rows_per_part=700)
    stop = threading.Event()

    def flush_all_the_time() -> None:
        while not stop.is_set():
            writer.flush()

    flusher = threading.Thread(target=flush_all_the_time)
    flusher.start()
    for i in range(5_000):
        writer.add(result(i)) if i % 3 else writer.add_error(error(i))
    stop.set()
    flusher.join()
    writer.close()
    assert stored_results(storage) == [i for i in range(5_000) if i % 3]
    assert stored_errors(storage) == [i for i in range(5_000) if not i % 3]
    assert not writer.is_due()


class TestFailures:
    def test_full_disk_loses_nothing_and_the_flush_can_be_repeated(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", 512) as disk:
            storage = local(disk / "out")
            writer = ResultWriter(storage, rows_per_part=10)
            for i in range(5):
                writer.add(result(i))
            writer.flush()
            ballast = disk / "ballast"
            fill(ballast)
            for i in range(5, 20):
                writer.add(result(i))
            for _ in range(3):
                with pytest.raises(OutputFullError, match="No space left on device"):
                    writer.flush()
                assert stored_results(storage) == [0, 1, 2, 3, 4]
            writer.add(result(20))
            ballast.unlink()
            writer.close()
            assert stored_results(storage) == naive_parts(disk / "out") == list(range(21))
            assert storage.names("pending") == []

    def test_file_size_limit(self, tmp_path: Path) -> None:
        storage = local(tmp_path)
        writer = ResultWriter(storage)
        writer.add(result(0))
        writer.flush()
        writer.add(result(1, text="".join(map(str, range(50_000)))))
        with file_size_limit(20_000), pytest.raises(OutputFullError, match="File too large"):
            writer.flush()
        assert stored_results(storage) == [0]
        writer.flush()
        writer.close()
        assert stored_results(storage) == [0, 1]

    def test_segments_that_cannot_be_deleted_are_void(self, tmp_path: Path) -> None:
        class Stubborn(LocalStorage):
            def delete(self, name: str) -> None:
                raise OutputError(f"{name}: stays")

        writer = ResultWriter(Stubborn(str(tmp_path)), rows_per_part=3)
        for i in range(8):
            writer.add(result(i))
            writer.flush()
        writer.close()
        storage = local(tmp_path)
        assert len(storage.names("pending")) == 6
        assert stored_results(storage) == naive_parts(tmp_path) == list(range(8))
        ResultWriter(storage)
        assert storage.names("pending") == []

    def test_after_an_interrupted_flush_only_reopening_helps(self, tmp_path: Path) -> None:
        class Interrupted(LocalStorage):
            def write(self, name: str, produce: Callable[..., object]) -> None:
                super().write(name, produce)
                raise KeyboardInterrupt

        writer = ResultWriter(Interrupted(str(tmp_path)))
        writer.add(result(0))
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
        with pytest.raises(OutputError, match="an earlier flush was interrupted; run the same"):
            writer.close()
        again = ResultWriter(local(tmp_path))
        assert not again.add(result(0))
        again.close()
        assert naive_parts(tmp_path) == [0]

    def test_a_damaged_part_is_named(self, tmp_path: Path) -> None:
        storage = local(tmp_path)
        writer = ResultWriter(storage)
        writer.add(result(0))
        writer.close()
        path = tmp_path / "parts/part-00000.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(OutputError) as caught:
            ResultWriter(storage)
        assert str(caught.value).startswith(
            f"{tmp_path}: parts/part-00000.parquet cannot be read: "
        )
        assert "; delete it, and its rows are generated again" in str(caught.value)
        path.unlink()
        assert ResultWriter(storage).add(result(0))


def test_errors_can_be_forgotten_whether_or_not_they_are_parts(tmp_path: Path) -> None:
    storage = local(tmp_path)
    writer = ResultWriter(storage, rows_per_part=2)
    for i in range(5):
        writer.add_error(error(i))
        writer.add(result(10 + i))
        writer.flush()
    del writer
    delete_errors(storage)
    assert stored_errors(storage) == []
    assert len(finished_rows(storage)) == 5
    again = ResultWriter(storage)
    assert again.add(result(0))
    assert not again.add(result(10))


def fill(ballast: Path) -> None:
    """Write `ballast` until its disk is full."""
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes beyond `size_bytes` of a file fail with EFBIG in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


steps = st.lists(st.sampled_from(["result", "error", "flush", "reopen", "crash"]), max_size=25)


@settings(any_speed, max_examples=40)
@given(steps, st.integers(1, 6))
def test_any_history_leaves_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, history: list[str], rows_per_part: int
) -> None:
    """A crash loses the rows since the last flush and no others."""
    folder = tmp_path_factory.mktemp("out")
    storage = local(folder)
    writer = ResultWriter(storage, rows_per_part=rows_per_part)
    durable: dict[int, str] = {}
    fresh: dict[int, str] = {}
    for step in [*history, "reopen"]:
        if step in ("result", "error"):
            row_index = next(i for i in range(100) if i not in durable and i not in fresh)
            fresh[row_index] = step
            writer.add(result(row_index)) if step == "result" else writer.add_error(
                error(row_index)
            )
        elif step == "flush":
            writer.flush()
            durable |= fresh
            fresh = {}
        elif step == "reopen":
            writer.close()
            durable |= fresh
            fresh = {}
            writer = ResultWriter(storage, rows_per_part=rows_per_part)
        else:
            fresh = {}
            writer = ResultWriter(storage, rows_per_part=rows_per_part)
        assert stored_results(storage) == sorted(
            i for i, kind in durable.items() if kind == "result"
        )
        assert stored_errors(storage) == sorted(i for i, kind in durable.items() if kind == "error")
        finished = finished_rows(storage)
        assert len(finished) == len(durable)
        assert all(i in finished for i in durable)
        assert len(writer.finished) == len(durable) + len(fresh)
    assert naive_parts(folder) == stored_results(storage)
