"""Output tokens that each replica has made, as far as it has told."""

from __future__ import annotations

from collections import Counter


class MadeTokens:
    """Counts, for rates over time.

    Attributes:
        total: Of all replicas, those that are gone included.
    """

    def __init__(self) -> None:
        self.total = 0
        self._by_replica: Counter[str] = Counter()

    def __getitem__(self, replica_id: str) -> int:
        return self._by_replica[replica_id]

    def add(self, replica_id: str, tokens: int) -> None:
        """A replica has made so many more; none below 0 are counted."""
        if tokens > 0:
            self.total += tokens
            self._by_replica[replica_id] += tokens

    def forget(self, replica_id: str) -> None:
        """A replica is gone."""
        self._by_replica.pop(replica_id, None)
