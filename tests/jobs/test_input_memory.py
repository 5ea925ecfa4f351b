"""Memory for reading does not grow with the input, in a process of its own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SMALL_ROWS, LARGE_ROWS = 30_000, 150_000
PROMPT_CHARACTERS = 300
ALLOWED_GROWTH_BYTES = 12_000_000

READ_AND_MEASURE = """
import sys
from jobs.reading.inputs import open_input

def peak_bytes():
    # getrusage would count what this process inherited from its parent.
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024

def read(uri):
    source = open_input(uri)
    source.check()
    return sum(1 for _ in source.rows())

small, large = sys.argv[1:5], sys.argv[5:9]
for uri in small:
    read(uri)
peak = peak_bytes()
for uri in large:
    rows = read(uri)
    print(uri, rows, peak_bytes() - peak)
    peak = peak_bytes()
"""


def write_files(folder: Path, rows: int) -> list[str]:
    """The same rows in four formats; the Parquet file has a single row group."""
    folder.mkdir()
    ids = [f"id-{i}" for i in range(rows)]
    prompts = [str(i).rjust(PROMPT_CHARACTERS, "x") for i in range(rows)]
    with open(folder / "in.jsonl", "w", encoding="utf-8") as file:
        for row_id, prompt in zip(ids, prompts, strict=True):
            file.write(json.dumps({"id": row_id, "prompt": prompt}) + "\n")
    with open(folder / "in.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "prompt"), *zip(ids, prompts, strict=True)])
    (folder / "in.txt").write_text("\n".join(prompts), encoding="utf-8")
    table = pa.table({"id": ids, "prompt": prompts})
    pq.write_table(table, folder / "in.parquet", row_group_size=rows, compression="none")
    return [str(folder / name) for name in ("in.jsonl", "in.csv", "in.txt", "in.parquet")]


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    files = write_files(tmp_path / "small", SMALL_ROWS) + write_files(
        tmp_path / "large", LARGE_ROWS
    )
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_MEASURE, *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(rows) for _, rows, _ in lines] == [LARGE_ROWS] * 4
    for uri, _, growth in lines:
        assert Path(uri).stat().st_size > 3 * ALLOWED_GROWTH_BYTES
        assert int(growth) < ALLOWED_GROWTH_BYTES, f"{uri} took {growth} bytes more"
