"""How far an offline job is, on the terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from jobs.generate_job import Progress

LOG_INTERVAL_S = 10.0
"""How often progress is printed where there is no terminal to draw a bar on."""


class JobProgress:
    """A progress bar on a terminal, a line every few seconds elsewhere.

    Args:
        console: Where to draw.
        title: What the job is doing, in one word.
        rows: Rows of the whole job; None: not known.
        done: Rows that ended in earlier runs.
    """

    def __init__(self, console: Console, title: str, rows: int | None, done: int) -> None:
        self._console = console
        self._done = done
        self._rows = rows
        self._last_log_s = time.monotonic()
        self._bar = ProgressBar(
            TextColumn(f"[bold]{title}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=rows, completed=done, rate="")
        self._started_s = time.monotonic()

    def __enter__(self) -> JobProgress:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show what the job has done."""
        now_s = time.monotonic()
        completed = self._done + progress.finished + progress.errors
        rate = f"{progress.output_tokens / max(now_s - self._started_s, 1e-9):,.0f} tokens/s"
        if progress.errors:
            rate += f", {progress.errors:,} errors"
        if progress.disk_full:
            rate += ", NO ROOM for the output: free some space, nothing is lost"
        self._bar.update(self._task, completed=completed, rate=rate)
        if not self._console.is_terminal and now_s - self._last_log_s >= LOG_INTERVAL_S:
            self._last_log_s = now_s
            of = f" of {self._rows:,}" if self._rows else ""
            self._console.print(f"{completed:,}{of} rows, {rate}")
