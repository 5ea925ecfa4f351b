"""Rows of finished requests on disk: written as they come, read back a column at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.simulated_rows import ROW_SCHEMA
from policies.batch import Floats

_BATCH_ROWS = 1 << 16


class RowWriter:
    """A `RowSink` that appends to a Parquet file; the file appears whole, when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._file = pq.ParquetWriter(self._partial, ROW_SCHEMA)

    def __call__(self, batch: pa.RecordBatch) -> None:
        """Take in finished requests, in columns of `ROW_SCHEMA`."""
        self._file.write_batch(batch)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            self._partial.rename(self._path)
        else:
            self._partial.unlink()


class RowFile:
    """Finished requests in a Parquet file, in order of finishing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: int = pq.read_metadata(path).num_rows

    def batches(self, columns: Sequence[str]) -> Iterator[list[Floats]]:
        """The named columns as floats, some rows at a time, each of shape (rows,)."""
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                yield [batch.column(name).to_numpy().astype(np.float64) for name in columns]

    def values(self, columns: Sequence[str], expression: Callable[..., Floats]) -> Floats:
        """`expression` of the named columns for all rows, (rows,), holding nothing else of them."""
        out = np.empty(self.rows)
        at = 0
        for arrays in self.batches(columns):
            out[at : at + len(arrays[0])] = expression(*arrays)
            at += len(arrays[0])
        return out

    def sample(self, columns: Sequence[str], size: int, seed: int) -> list[Floats]:
        """The named columns of at most `size` rows drawn evenly, in order of finishing."""
        rng = np.random.default_rng(seed)
        chosen = np.arange(self.rows)
        if self.rows > size:
            chosen = np.sort(rng.choice(self.rows, size, replace=False))
        parts: list[list[Floats]] = []
        at = 0
        for arrays in self.batches(columns):
            count = len(arrays[0])
            low, high = np.searchsorted(chosen, (at, at + count))
            parts.append([array[chosen[low:high] - at] for array in arrays])
            at += count
        if not parts:
            return [np.empty(0) for _ in columns]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]
