"""Kills a writer at each of its steps in turn and checks what it leaves.

A step is a system call on the job's folder (open, mkdir, rename, remove, listdir, fsync) or the
first byte of a file. A child
is forked for each, which sends itself SIGKILL just before step k; the parent then looks at the
folder as readers do, resumes the job, and looks again. Ends when a child survives all its steps.

    python -m tests.jobs.kill_at_step SCENARIO FOLDER
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from jobs.errors import OutputError
from jobs.writing.local_storage import LocalStorage
from jobs.writing.manifest import JobFolder, claim_folder
from jobs.writing.ordered import write_openai_batch, write_ordered
from jobs.writing.output_uri import open_storage
from jobs.writing.outputs import ResultWriter
from jobs.writing.parts import finished_rows
from jobs.writing.storage import Produce
from tests.jobs.factories import error, naive_parts, result, stored_errors, stored_results

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir")
ROWS = 5
"""Rows of the input; every other one is an error."""


def claim(folder: Path, model: str = "old", **options: Any) -> Any:
    return claim_folder(
        str(folder), {"model": model}, input_uri="in", now_unix_s=1_700_000_000.0, **options
    )


def work(job: JobFolder, acknowledge: Callable[[int], None], text: str = "old") -> None:
    """Do what is left of the job."""
    writer = ResultWriter(job.storage, rows_per_part=2)
    for i in range(ROWS):
        if i not in writer.finished:
            writer.add_error(error(i)) if i % 2 else writer.add(result(i, text=text))
            writer.flush()
            acknowledge(i)
    writer.close()
    write_ordered(job.storage)
    write_openai_batch(job.storage)
    if not job.is_complete:
        job.complete(
            rows=ROWS,
            result_rows=writer.result_rows,
            error_rows=writer.error_rows,
            now_unix_s=1_700_000_001.0,
        )


def interrupted(folder: Path) -> None:
    """Leave segments that no part has taken up, and one that a part has."""
    with claim(folder) as job:
        writer = ResultWriter(job.storage, rows_per_part=2)
        for i in (0, 2, 4):
            writer.add(result(i, text="old"))
            writer.flush()
            if i == 0:
                void = (folder / "pending/part-00000-00000.parquet").read_bytes()
        writer.add_error(error(1))
        writer.flush()
        (folder / "pending/part-00000-00000.parquet").write_bytes(void)


def completed(folder: Path) -> None:
    with claim(folder) as job:
        work(job, lambda _: None)


def run(folder: Path, acknowledge: Callable[[int], None]) -> None:
    with claim(folder) as job:
        work(job, acknowledge)


def recover(folder: Path, acknowledge: Callable[[int], None]) -> None:
    with claim(folder) as job:
        finished = ResultWriter(job.storage, rows_per_part=2).finished
        for i in filter(finished.__contains__, range(ROWS)):
            acknowledge(i)


def retry(folder: Path, acknowledge: Callable[[int], None]) -> None:
    with claim(folder, retry_errors=True):
        pass


def overwrite(folder: Path, acknowledge: Callable[[int], None]) -> None:
    with claim(folder, "new", overwrite=True):
        pass


def redo(folder: Path, acknowledge: Callable[[int], None]) -> None:
    with claim(folder, overwrite=True):
        pass


SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[..., None]]] = {
    "fresh": (lambda folder: folder.mkdir(), run),
    "recover": (interrupted, recover),
    "retry": (completed, retry),
    "overwrite": (completed, overwrite),
    "redo": (completed, redo),
}


def die_at(step: int, folder: Path) -> None:
    """Make this process kill itself just before its `step`-th step on `folder`."""
    taken = 0
    sync = os.fsync

    def take() -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and str(arguments[0]).startswith(str(folder)):
            take()

    def counted_sync(descriptor: int) -> None:
        take()
        sync(descriptor)

    write = LocalStorage.write

    def counted_write(self: LocalStorage, name: str, produce: Produce) -> None:
        def counted(out: IO[bytes]) -> None:
            take()
            produce(out)

        write(self, name, counted)

    os.fsync = counted_sync
    LocalStorage.write = counted_write
    sys.addaudithook(audit)


def survives(act: Callable[..., None], folder: Path, step: int) -> tuple[bool, set[int]]:
    """Whether `act` ends before its `step`-th step, and the rows it said were durable."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            die_at(step, folder)
            act(folder, lambda row: os.write(writing, bytes([row])))
            os._exit(0)
        except BaseException as failure:
            print(repr(failure), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = set(pipe.read())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False, acknowledged
    assert os.WEXITSTATUS(status) == 0, f"step {step}: the child failed"
    return True, acknowledged


def check_readers(folder: Path, acknowledged: set[int]) -> None:
    """No row is there twice, and all that was acknowledged is there."""
    storage = open_storage(str(folder))
    rows = stored_results(storage) + stored_errors(storage)
    assert len(rows) == len(set(rows)), f"rows are there twice: {sorted(rows)}"
    assert acknowledged <= set(rows), f"lost: {acknowledged - set(rows)}"
    assert len(finished_rows(storage)) == len(rows)
    naive = naive_parts(folder)
    assert len(naive) == len(set(naive)), f"parts/ has rows twice: {naive}"


def check_resumed(folder: Path, model: str, text: str) -> None:
    """The same command ends the job with every row once and nothing else in the folder.

    All answers are this run's (`text`) or, if it was not begun, all are the old job's.
    """
    with contextlib.ExitStack() as held:
        try:
            job = held.enter_context(claim(folder, model))
        except OutputError:
            # Killed before the new job was begun: the folder is still the old job's.
            job = held.enter_context(claim(folder, model, overwrite=True))
        begun = not job.is_complete
        work(job, lambda _: None, text)
    results = list(range(0, ROWS, 2))
    assert naive_parts(folder) == results
    table = pq.read_table(folder / "output.parquet")
    assert table.column("row_index").to_pylist() == list(range(ROWS))
    answers = {answer for answer in table.column("text").to_pylist() if answer is not None}
    assert answers == {text if begun else "old"}
    assert (
        b"".join((folder / f).read_bytes() for f in ("output.jsonl", "errors.jsonl")).count(b"\n")
        == ROWS
    )
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".tmp")]
    assert not list((folder / "pending").iterdir())


def main(name: str, base: Path) -> int:
    prepare, act = SCENARIOS[name]
    prepare(base / "start")
    for step in range(1, 10_000):
        folder = base / str(step)
        shutil.copytree(base / "start", folder)
        survived, acknowledged = survives(act, folder, step)
        try:
            check_readers(folder, acknowledged)
            check_resumed(
                folder,
                model="new" if act is overwrite else "old",
                text="new" if act in (overwrite, redo) else "old",
            )
        except BaseException:
            print(f"{name}: killed before step {step}", file=sys.stderr)
            raise
        shutil.rmtree(folder)
        if survived:
            return step
    raise AssertionError("the scenario does not end")


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
