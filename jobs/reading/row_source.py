"""What an offline job reads its rows from."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Protocol

from jobs.reading.rows import BadRow, JobRow


class RowSource(Protocol):
    """Rows of work in ascending order of their `row_index`, the same ones at every reading."""

    def rows(self, skip: Container[int] = ()) -> Iterator[JobRow | BadRow]:
        """Every row in order, except those whose `row_index` is in `skip`.

        Raises:
            InputError: The input cannot be read on.
        """
