"""Rows of finished requests on disk: whole files whenever somebody looks, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import ray

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.messages import ClusterStatus, Submission
from cluster.statistics import row_files
from cluster.statistics.finished_row import ROW_SCHEMA, FinishedRow
from cluster.statistics.row_files import RowFiles
from replicas.protocol import Generation
from tests.jobs.places import small_disk
from tests.local_ray import cluster_of

SUBMISSION = Submission(Generation("r", "c", b""), 5, 50)


def row(number: int) -> FinishedRow:
    return FinishedRow(
        request_id=f"r{number}", request_class="online", tenant="acme", job="", policy="tie",
        arrival_unix_s=1.5e9, forecast_s=None, dispatched_s=0.25, first_token_s=None,
        finished_s=number * 0.5, prompt_tokens=5, max_tokens=50, output_tokens=number,
        finish_reason="stop", forecast_mu=2.0, forecast_sigma=0.5, forecast_lower=1,
        forecast_upper=9, forecast_source="prior", replica_id="a", attempts=1, evictions=0,
        recalls=0, recomputed_tokens=0, energy_joules=None, wasted_joules=None,
        energy_source="none",
    )  # fmt: skip


def add(files: RowFiles, *numbers: int) -> None:
    for number in numbers:
        files.add(row(number), [], SUBMISSION)


def stored(folder: Path) -> dict[str, list[str]]:
    """Request ids by file; whatever stands there can be read."""
    return {
        path.name: pq.read_table(path)["request_id"].to_pylist()
        for path in sorted(folder.glob("rows-*.parquet"))
    }


async def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    files = RowFiles(tmp_path / "made" / "here", 7)
    add(files, 1, 2)
    await files.write(0.0)
    add(files, 3)
    await files.write(3.0)
    await files.write(6.0)
    (path,) = (tmp_path / "made" / "here").iterdir()
    assert path.name == "rows-7-0.parquet"
    table = pq.read_table(path)
    assert table.schema.equals(ROW_SCHEMA)
    assert msgspec.convert(table.to_pylist(), list[FinishedRow]) == [row(i) for i in (1, 2, 3)]
    assert (files.written, files.given_up) == (3, 0)


async def test_files_are_complete_when_they_are_large_or_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "FILE_ROWS", 3)
    files = RowFiles(tmp_path, 7)
    for number, now in ((1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0), (5, 3.0 + row_files.FILE_S)):
        add(files, number)
        await files.write(now)
    add(files, 6)
    await files.write(700.0)
    assert stored(tmp_path) == {
        "rows-7-0.parquet": ["r1", "r2", "r3"],
        "rows-7-1.parquet": ["r4", "r5"],
        "rows-7-2.parquet": ["r6"],
    }


async def test_rows_wait_for_a_disk_that_takes_none_and_the_oldest_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(row_files, "MOST_WAITING", 20)
    dropped: list[int] = []
    folder = tmp_path / "rows"
    folder.write_text("a file stands where the folder should be")
    files = RowFiles(folder, 7, dropped.append)
    for number in range(25):
        add(files, number)
        await files.write(float(number))
    assert (files.written, files.given_up, sum(dropped)) == (0, 6, 6)
    assert "19 rows wait, 6 rows given up" in files.state
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    folder.unlink()
    await files.write(30.0)
    assert stored(folder) == {"rows-7-0.parquet": [f"r{number}" for number in range(6, 25)]}
    assert files.state == f"{folder}: 19 rows, 6 rows given up"


def fill(path: Path) -> None:
    """Take what room there is on the disk."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


async def test_a_row_that_parquet_cannot_hold_takes_no_other_with_it(tmp_path: Path) -> None:
    dropped: list[int] = []
    files = RowFiles(tmp_path, 1, dropped.append)
    add(files, 1)
    files.add(msgspec.structs.replace(row(2), max_tokens=2**31), [], SUBMISSION)
    files.add(msgspec.structs.replace(row(3), job="\ud800"), [], SUBMISSION)
    add(files, 4)
    await files.write(0.0)
    add(files, 5)
    await files.write(1.0)
    assert stored(tmp_path) == {"rows-1-0.parquet": ["r1", "r4", "r5"]}
    assert (files.written, files.given_up, sum(dropped)) == (3, 2, 2)
    files = RowFiles(tmp_path, 2)
    files.add(msgspec.structs.replace(row(2), max_tokens=2**31), [], SUBMISSION)
    await files.write(0.0)
    assert (files.written, files.given_up) == (0, 1)


async def test_a_full_disk_keeps_what_it_has_and_gets_the_rest_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_kib=96) as folder:
        files = RowFiles(folder, 7)
        add(files, 1)
        await files.write(0.0)
        filler = folder / "filler"
        fill(filler)
        add(files, *range(2, 400))
        await files.write(1.0)
        assert stored(folder) == {"rows-7-0.parquet": ["r1"]}
        assert "No space left" in files.state
        filler.unlink()
        await files.write(2.0)
        assert stored(folder) == {"rows-7-0.parquet": [f"r{number}" for number in range(1, 400)]}


async def test_a_write_that_is_cancelled_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real: Callable[..., Any] = row_files.replace_file

    def slow(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        real(*arguments)

    monkeypatch.setattr(row_files, "replace_file", slow)
    files = RowFiles(tmp_path, 7)
    add(files, 1)
    first = asyncio.create_task(files.write(0.0))
    await asyncio.to_thread(begun.wait, 60)
    add(files, 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(files.write(1.0))
    go_on.set()
    await second
    assert stored(tmp_path) == {"rows-7-0.parquet": ["r1", "r2"]}


def generation(number: int, tokens: int) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"r{number}",
        prompt_token_ids=[1, 2, 3],
        max_tokens=1500,
        sampling={"extra_args": {"simulated_output_tokens": tokens}},
        tenant="acme",
        job="demo",
    )


def status_of(controller: Any) -> ClusterStatus:
    status: ClusterStatus = ray.get(controller.status.remote())
    return status


def test_a_killed_controller_leaves_the_rows_of_what_had_ended(tmp_path: Path) -> None:
    config = parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "count": 1,
                "max_num_seqs": 16,
                # So slow that the long answer outlives a restart of the controller.
                "engine_args": {"time_scale": 0.4},
            },
            "predictor": {"state": str(tmp_path / "state.json")},
            "statistics": {"rows": str(tmp_path / "rows")},
        }
    )

    async def played(controller: Any) -> None:
        async with ClusterClient(controller) as client:
            await asyncio.gather(*(client.complete(generation(i, 5)) for i in range(8)))
            long_one = asyncio.create_task(client.complete(generation(99, 1400)))
            async with asyncio.timeout(30):
                while "8 rows" not in (await client.status()).rows:
                    await asyncio.sleep(0.1)
            assert not long_one.done(), "it runs while the controller is killed"
            os.kill(await controller.pid.remote(), signal.SIGKILL)
            assert (await long_one).finish_reason == "stop"
            await asyncio.gather(*(client.complete(generation(i, 5)) for i in range(8, 12)))

    with cluster_of(config) as controller:
        asyncio.run(played(controller))
        until_s = time.monotonic() + 60
        while status_of(controller).finished < 5 and time.monotonic() < until_s:
            time.sleep(0.05)
    before, after = stored(tmp_path / "rows").values()
    assert sorted(before) == [f"r{number}" for number in range(8)]
    assert sorted(after) == ["r10", "r11", "r8", "r9", "r99"]
    rows = pq.read_table(tmp_path / "rows").to_pylist()
    assert {(r["tenant"], r["job"], r["finish_reason"]) for r in rows} == {("acme", "demo", "stop")}
    adopted = next(r for r in rows if r["request_id"] == "r99")
    assert (adopted["output_tokens"], adopted["dispatched_s"]) == (1400, None)
    for known in (r for r in rows if r["request_id"] != "r99"):
        assert 0 <= known["dispatched_s"] <= known["first_token_s"] <= known["finished_s"]
        assert known["forecast_lower"] <= known["forecast_upper"]


def test_what_rows_are_made_with_is_imported_before_the_cluster_serves(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from cluster.statistics.row_files import RowFiles
assert "pandas" not in sys.modules, "nothing to import: this test says nothing"
RowFiles(Path(sys.argv[1]), 1)
before = set(sys.modules)
import pyarrow as pa
pa.array(("text",), pa.string())
raise SystemExit(sorted(set(sys.modules) - before) or 0)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
