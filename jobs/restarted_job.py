"""An offline job in a process of its own, which may be killed and is then started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jobs.writing.output_uri import open_storage
from jobs.writing.parts import ERRORS, RESULTS, live_files, read_batches

MOST_STARTS = 100
"""Starts of one job after which something else than kills must be what ends it."""

LAST_LINES = 30
"""Of a failed job's output that its error quotes."""


class JobFailedError(RuntimeError):
    """An offline job ended before its rows; the message has what it wrote last."""


@dataclass(frozen=True, slots=True)
class RowCount:
    """What became of a job's rows.

    Attributes:
        asked: Rows of the input.
        lost: Of them, neither in the answers nor in the errors.
        repeated: In the answers or the errors more than once.
        failed: In the errors.
    """

    asked: int
    lost: int
    repeated: int
    failed: int

    def __add__(self, other: RowCount) -> RowCount:
        return RowCount(
            self.asked + other.asked,
            self.lost + other.lost,
            self.repeated + other.repeated,
            self.failed + other.failed,
        )


NO_ROWS = RowCount(0, 0, 0, 0)


class RestartedJob:
    """`tiebreak generate` over prompts of its own, started again until all of its rows are done.

    Args:
        folder: Keeps its input and its output.
        rows: Rows of the input.
        max_tokens: Most tokens of each answer.
        address: Of the Ray cluster to join.
    """

    def __init__(self, folder: Path, rows: int, max_tokens: int, address: str) -> None:
        folder.mkdir(parents=True)
        self._rows = rows
        self._output = folder / "output"
        source = folder / "input.jsonl"
        lines = (json.dumps({"prompt": f"Count to {number}."}) for number in range(rows))
        source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self._command = [
            *(sys.executable, "-m", "jobs.cli", "generate"),
            *("--input", str(source), "--output", str(self._output)),
            *("--max-tokens", str(max_tokens), "--flush-s", "1", "--ray.address", address),
        ]
        self._log = folder / "log"
        self._process: asyncio.subprocess.Process | None = None
        self._kills = 0

    @property
    def pid(self) -> int | None:
        """Of its process; None while none runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    def kill(self) -> None:
        """SIGKILL its process, if one runs."""
        if self._process is not None and self._process.returncode is None:
            self._kills += 1
            self._process.kill()

    async def run(self) -> RowCount:
        """Run until a process says that everything is done; what is in its output then.

        Raises:
            JobFailedError: It ended otherwise without having been killed.
        """
        for _ in range(MOST_STARTS):
            kills = self._kills
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdout=log, stderr=log
                )
                try:
                    status = await self._process.wait()
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        self._process.kill()
            if status == 0:
                return await asyncio.to_thread(self._count)
            if self._kills == kills:
                raise JobFailedError(f"the job ended with status {status}: {self._last_words()}")
        raise JobFailedError(f"the job was not done after {MOST_STARTS} starts")

    def _count(self) -> RowCount:
        storage = open_storage(str(self._output))
        seen = {
            kind: Counter(
                row
                for name in live_files(storage, kind)
                for batch in read_batches(storage, name, ["row_index"])
                for row in batch.column("row_index").to_pylist()
            )
            for kind in (RESULTS, ERRORS)
        }
        every = seen[RESULTS] + seen[ERRORS]
        return RowCount(
            asked=self._rows,
            lost=self._rows - len(every),
            repeated=sum(times > 1 for times in every.values()),
            failed=len(seen[ERRORS]),
        )

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-LAST_LINES:]) or "it wrote nothing"
