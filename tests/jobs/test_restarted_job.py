"""A job that is killed and started again, with a stand-in for its command."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from jobs.restarted_job import JobFailedError, RestartedJob, RowCount
from jobs.writing.output_uri import open_storage
from jobs.writing.outputs import ResultWriter
from tests.jobs.factories import error, result

WRITES = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.jobs.test_restarted_job import write
write(sys.argv[1], int(sys.argv[2]))
"""


def write(folder: str, rows: int) -> None:
    """Write what is missing of the rows; every third is an error."""
    writer = ResultWriter(open_storage(folder), rows_per_part=2)
    for row in range(rows):
        if row not in writer.finished:
            writer.add_error(error(row)) if row % 3 == 2 else writer.add(result(row))
    writer.close()


def job(folder: Path, rows: int, *, written: int, first: str = "") -> RestartedJob:
    """A job whose first process does `first` before it writes so many rows."""
    made = RestartedJob(folder / "job", rows, 8, "nowhere")
    (folder / "job" / "output").mkdir()
    script = folder / "script.py"
    script.write_text(first + WRITES)
    made._command = [sys.executable, str(script), str(folder / "job" / "output"), str(written)]
    return made


def test_its_rows_are_counted(tmp_path: Path) -> None:
    count = asyncio.run(job(tmp_path, 7, written=7).run())
    assert count == RowCount(asked=7, lost=0, repeated=0, failed=2)
    assert count + count == RowCount(14, 0, 0, 4)


def test_a_missing_row_is_a_lost_one(tmp_path: Path) -> None:
    assert asyncio.run(job(tmp_path, 7, written=5).run()).lost == 2


def test_a_killed_job_is_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    hang_once = f"""
import pathlib, time
if not pathlib.Path({str(mark)!r}).exists():
    pathlib.Path({str(mark)!r}).touch()
    time.sleep(600)
"""
    running = job(tmp_path, 4, written=4, first=hang_once)

    async def killed() -> RowCount:
        task = asyncio.create_task(running.run())
        while not (mark.exists() and running.pid):
            await asyncio.sleep(0.02)
        running.kill()
        return await task

    assert asyncio.run(killed()).lost == 0
    assert running.pid is None


def test_a_job_that_fails_by_itself_says_its_last_words(tmp_path: Path) -> None:
    failing = job(tmp_path, 4, written=4, first="raise SystemExit('no such row')\n")
    with pytest.raises(JobFailedError, match="no such row"):
        asyncio.run(failing.run())
