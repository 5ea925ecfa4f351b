"""The latest rows, by request id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from cluster.snapshot import Event
from cluster.statistics.finished_row import FinishedRow
from cluster.visible_ids import VisibleIds


class RowRing:
    """Keeps so many rows, the latest ones; of one request id the latest row only.

    Args:
        size: How many.

    Attributes:
        visible: Their ids by what HTTP clients know of them.
    """

    def __init__(self, size: int) -> None:
        self.visible = VisibleIds()
        self._size = size
        self._rows: OrderedDict[str, tuple[FinishedRow, list[Event]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        """The ids, the latest first."""
        return reversed(self._rows)

    def add(self, row: FinishedRow, events: list[Event]) -> None:
        """Keep a row, and what happened to its request."""
        if row.request_id in self._rows:
            self._discard(row.request_id)
        self._rows[row.request_id] = row, events
        self.visible.add(row.request_id, row.tenant)
        if len(self._rows) > self._size:
            self._discard(next(iter(self._rows)))

    def get(self, request_id: str) -> tuple[FinishedRow, list[Event]] | None:
        """A row and its events; None: not known, or too long ago."""
        return self._rows.get(request_id)

    def _discard(self, request_id: str) -> None:
        row, _ = self._rows.pop(request_id)
        self.visible.discard(request_id, row.tenant)
