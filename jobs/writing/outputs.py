"""The output of an offline job: results and errors, durable a few seconds after they are added.

with claim_folder(output_uri, identity, input_uri=..., now_unix_s=...) as job:
    writer = ResultWriter(job.storage)
    for row in source.rows(skip=writer.finished):
        ...
        writer.add(result)              # or add_error; no IO
        if writer.is_due():
            writer.flush()              # from any thread, while others add
    writer.close()
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import OutputError, OutputFullError
from jobs.reading.rows import BadRow
from jobs.writing.finished import FinishedRows
from jobs.writing.part_writer import PartWriter
from jobs.writing.parts import ERRORS, RESULTS, PartKind, count_rows, finished_rows
from jobs.writing.results import ResultRow, row_bytes, to_table
from jobs.writing.storage import Storage

__all__ = ["FinishedRows", "OutputError", "OutputFullError", "ResultRow", "ResultWriter"]

BYTES_PER_PART = 64 * 1024 * 1024
"""A part is made when its rows take this much memory, however few they are."""

SEGMENTS_PER_PART = 256
"""A part is made after this many flushes, however few rows they brought."""

BYTES_PER_FLUSH = 32 * 1024 * 1024
"""A flush is due when the rows added take this much memory, however fresh they are."""


class ResultWriter:
    """Writes each row of the input once, to the results or to the errors.

    The caller must hold the folder (`jobs.writing.manifest.claim_folder`). `add`, `add_error` and
    `flush` may be called from different threads.

    Args:
        storage: The job's folder.
        flush_interval_s: A flush is due when the oldest row has waited so long: what a kill of
            the process can cost.
        rows_per_part: A part is made once it has this many rows.
        clock: Seconds of a clock that does not go back.

    Attributes:
        finished: Rows that have ended, in earlier runs or in this one.

    Raises:
        OutputError: What an earlier run left cannot be read or finished.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        flush_interval_s: float = 5.0,
        rows_per_part: int = 50_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uri = storage.uri
        self._clock = clock
        self._flush_interval_s = flush_interval_s
        self._results = _Log.open(storage, RESULTS, rows_per_part)
        self._errors = _Log.open(storage, ERRORS, rows_per_part)
        self._logs = (self._results, self._errors)
        self._adding = threading.Lock()
        self._flushing = threading.Lock()
        self._interrupted = False
        self.finished = finished_rows(storage)

    @property
    def result_rows(self) -> int:
        """Rows with a result, those of earlier runs and those not flushed yet included."""
        return self._results.rows

    @property
    def error_rows(self) -> int:
        """Rows with an error, those of earlier runs and those not flushed yet included."""
        return self._errors.rows

    def add(self, result: ResultRow) -> bool:
        """Take a result, without IO; False if its row has ended already and this is dropped."""
        return self._add(self._results, result)

    def add_error(self, bad: BadRow) -> bool:
        """Take an error, without IO; False if its row has ended already and this is dropped."""
        return self._add(self._errors, bad)

    def is_due(self) -> bool:
        """Whether rows have waited for the flush interval or take too much memory."""
        with self._adding:
            oldest = [log.oldest_s for log in self._logs if log.oldest_s is not None]
            waited = bool(oldest) and self._clock() - min(oldest) >= self._flush_interval_s
            return waited or sum(log.pending_bytes for log in self._logs) >= BYTES_PER_FLUSH

    def flush(self) -> None:
        """Make every row added before the call durable. Rows may be added meanwhile.

        Raises:
            OutputFullError: There is no room; the rows are held and the call may be repeated.
            OutputError: They cannot be written; the same holds.
        """
        with self._one_flush():
            for log in self._logs:
                self._flush(log)

    def close(self) -> None:
        """Flush, and turn what is pending into parts.

        Raises:
            OutputError: As `flush`.
        """
        self.flush()
        with self._one_flush():
            for log in self._logs:
                log.writer.close()

    def _add(self, log: _Log, row: ResultRow | BadRow) -> bool:
        with self._adding:
            if not self.finished.add(row.row_index):
                return False
            log.pending.append(row)
            log.pending_bytes += row_bytes(row)
            log.rows += 1
            if log.oldest_s is None:
                log.oldest_s = self._clock()
            return True

    def _flush(self, log: _Log) -> None:
        with self._adding:
            rows, since_s = log.pending[:], self._clock()
        if not rows:
            return
        log.writer.append(to_table(rows, log.kind.schema))
        with self._adding:
            del log.pending[: len(rows)]
            log.pending_bytes = sum(map(row_bytes, log.pending))
            log.oldest_s = since_s if log.pending else None

    @contextlib.contextmanager
    def _one_flush(self) -> Iterator[None]:
        """One flush at a time, and none after one that ended in the middle.

        An `OutputError` leaves the state known. After anything else (Ctrl-C) it is not known
        whether the rows are in the file, and only opening the folder again can tell.
        """
        with self._flushing:
            if self._interrupted:
                raise OutputError(
                    f"{self._uri}: an earlier flush was interrupted; run the same command again "
                    "to resume"
                )
            self._interrupted = True
            try:
                yield
            except OutputError:
                self._interrupted = False
                raise
            self._interrupted = False


@dataclass(slots=True)
class _Log:
    """Rows of one kind on their way to their parts."""

    kind: PartKind
    writer: PartWriter
    rows: int
    pending: list[Any] = field(default_factory=list)
    pending_bytes: int = 0
    oldest_s: float | None = None

    @classmethod
    def open(cls, storage: Storage, kind: PartKind, rows_per_part: int) -> _Log:
        writer = PartWriter(
            storage,
            kind,
            rows_per_part=rows_per_part,
            bytes_per_part=BYTES_PER_PART,
            segments_per_part=SEGMENTS_PER_PART,
        )
        return cls(kind, writer, count_rows(storage, kind))
