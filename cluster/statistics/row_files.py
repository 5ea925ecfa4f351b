"""Rows of finished requests in Parquet files, written while the cluster serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.messages import Submission
from cluster.snapshot import Event
from cluster.statistics.finished_row import ROW_SCHEMA, FinishedRow
from predictor.atomic_file import replace_file

logger = logging.getLogger(__name__)

WRITE_S = 3.0
"""How often new rows go to the file: what a killed controller loses."""

FILE_ROWS = 20_000
"""Rows from which on a file is complete."""

FILE_S = 600.0
"""Age from which on a file is complete."""

MOST_WAITING = 100_000
"""Rows that wait in memory for a disk that does not take them; beyond it the oldest are dropped."""

_UNFIT = (ValueError, TypeError, OverflowError)
"""What pyarrow raises of a number that is too large, or of text that is not Unicode."""


class RowFiles:
    """Files `rows-<number>-<n>.parquet`, of `ROW_SCHEMA`, all but the last complete.

    New rows are collected, and every few seconds the last file is written anew with them, in a
    thread, beside the old one and then in its place: whoever reads finds whole files, whenever the
    controller is killed. It is small (`FILE_ROWS`, `FILE_S`), so that this stays cheap.

    A disk that is full or gone is tried again each time; the rows wait, up to a bound. A row that
    Parquet cannot hold is given up, and the others are written.

    Args:
        folder: Where; made when it is missing.
        number: The controller's.
        dropped: Told how many rows were given up.

    Attributes:
        written: Rows in the files.
        given_up: Rows that are in none and never will be.
    """

    def __init__(
        self, folder: Path, number: int, dropped: Callable[[int], None] = lambda rows: None
    ) -> None:
        self.folder = folder
        self.written = 0
        self.given_up = 0
        self._number = number
        self._dropped = dropped
        self._new: list[FinishedRow] = []
        self._last: list[pa.RecordBatch] = []
        self._files = 0
        self._began_s: float | None = None
        self._error = ""
        self._writes = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "tiebreak-rows")
        pa.array([0])  # imports pandas, which would stop the first decisions for a moment later

    @property
    def state(self) -> str:
        """For people: where the rows are, or why they are not."""
        lost = f", {self.given_up:,} rows given up" if self.given_up else ""
        if self._error:
            return f"{self.folder}: {len(self._new):,} rows wait{lost}: {self._error}"
        return f"{self.folder}: {self.written:,} rows{lost}"

    def add(self, row: FinishedRow, events: list[Event], submission: Submission) -> None:
        """A request has ended; its row is written soon."""
        self._new.append(row)
        if len(self._new) > MOST_WAITING:
            excess = MOST_WAITING // 10
            del self._new[:excess]
            self.given_up += excess
            self._dropped(excess)

    async def forever(self) -> None:
        """Write what has come, every few seconds."""
        while True:
            await asyncio.sleep(WRITE_S)
            await self.write(asyncio.get_running_loop().time())

    async def write(self, now: float) -> None:
        """Write what has come; what cannot be written waits for the next time.

        Args:
            now: Seconds of any clock.
        """
        async with self._writes:
            rows, self._new = self._new, []
            if not rows:
                return
            began_s = now if self._began_s is None else self._began_s
            path = self.folder / f"rows-{self._number}-{self._files}.parquet"
            loop = asyncio.get_running_loop()
            try:
                batches = await loop.run_in_executor(self._thread, _write, path, self._last, rows)
            except BaseException as error:
                # A write that was cancelled goes on; the next one comes after it, to the same file.
                self._new = rows + self._new
                if not isinstance(error, Exception):
                    raise
                self._failed(error)
                return
            if self._error:
                logger.warning("rows are written again to %s", self.folder)
            written = sum(map(len, batches)) - sum(map(len, self._last))
            self._error, self._last, self._began_s = "", batches, began_s
            self.written += written
            if unfit := len(rows) - written:
                self.given_up += unfit
                self._dropped(unfit)
            if sum(map(len, batches)) >= FILE_ROWS or now - began_s >= FILE_S:
                self._files, self._last, self._began_s = self._files + 1, [], None

    def _failed(self, error: Exception) -> None:
        message = str(error)
        if message != self._error:
            logger.error("rows of finished requests cannot be written, they wait: %s", message)
        self._error = message


def _write(path: Path, last: list[pa.RecordBatch], rows: list[FinishedRow]) -> list[pa.RecordBatch]:
    """Write the file of these batches and rows; all of its batches, without what does not fit.

    Raises:
        OSError: It cannot be written; an older file of the name is as it was.
    """
    batches = [*last, *_batches(rows)]
    table = pa.Table.from_batches(batches, ROW_SCHEMA)
    replace_file(path, lambda stream: pq.write_table(table, stream, compression="zstd"))
    return batches


def _batches(rows: list[FinishedRow]) -> list[pa.RecordBatch]:
    """The rows in one batch; where one of them does not fit, in some without it."""
    try:
        return [record_batch(rows)]
    except _UNFIT as error:
        if half := len(rows) // 2:
            return _batches(rows[:half]) + _batches(rows[half:])
        logger.error("the row of %r does not fit in Parquet: %s", rows[0].request_id, error)
        return []


def record_batch(rows: list[FinishedRow]) -> pa.RecordBatch:
    """Rows as Parquet keeps them; at least one."""
    columns = zip(*map(msgspec.structs.astuple, rows), strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, ROW_SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=ROW_SCHEMA)
