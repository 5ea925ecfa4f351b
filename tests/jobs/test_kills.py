"""A writer killed at any instant leaves each row once, and the same command ends the job."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.writing.output_uri import open_storage
from jobs.writing.outputs import ResultWriter
from tests.jobs.factories import error, naive_parts, result, stored_errors, stored_results

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.faults


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what is tested is the order of the steps, and each
    run syncs thousands of files.
    """
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as path:
        yield Path(path)


@pytest.mark.parametrize("scenario", ["fresh", "recover", "retry", "overwrite", "redo"])
def test_killed_before_each_step(folder: Path, scenario: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.jobs.kill_at_step", scenario, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


ENDLESS_DRIVER = """
import itertools, sys
from jobs.writing.output_uri import open_storage
from jobs.writing.outputs import ResultWriter
from tests.jobs.factories import error, result

writer = ResultWriter(open_storage(sys.argv[1]), rows_per_part=40)
for i in itertools.count():
    writer.add(result(i)) if i % 10 else writer.add_error(error(i))
    if i % 3 == 0:
        writer.flush()
        print(i, flush=True)
"""


def test_killed_at_random_instants(folder: Path) -> None:
    storage = open_storage(str(folder))
    instants = random.Random(7)
    before: set[int] = set()
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS_DRIVER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT
        ) as driver:
            assert driver.stdout is not None
            lines = [driver.stdout.readline() for _ in range(len(before) // 3 + 20)]
            time.sleep(instants.uniform(0, 0.02))
            driver.kill()
        rows = stored_results(storage) + stored_errors(storage)
        assert len(rows) == len(set(rows))
        assert before | set(range(int(lines[-1]) + 1)) <= set(rows)
        before = set(rows)
    last = max(before)
    writer = ResultWriter(storage)
    for i in range(last + 1):
        writer.add(result(i)) if i % 10 else writer.add_error(error(i))
    writer.close()
    assert naive_parts(folder) == [i for i in range(last + 1) if i % 10]
    assert stored_errors(storage) == list(range(0, last + 1, 10))
