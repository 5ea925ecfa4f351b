"""How many output tokens a replica with work makes per second."""

from __future__ import annotations

import math
from dataclasses import dataclass

AVERAGED_S = 30.0
"""Time over which is averaged, in seconds in which somebody reports, however many replicas do."""

LEAST_S = 2.0
"""Time of replicas with work below which nothing is said."""


@dataclass(slots=True)
class _Count:
    made_tokens: int = 0
    at_s: float | None = None  # None while it has no work


class Throughput:
    """Averages over all replicas, each for the time in which it has work."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}
        self._tokens = 0.0
        self._busy_s = 0.0
        self._counted_s: float | None = None

    @property
    def tokens_s(self) -> float | None:
        """Output tokens per second of a replica with work; None: not known yet."""
        return self._tokens / self._busy_s if self._busy_s >= LEAST_S else None

    def reported(self, replica_id: str, made_tokens: int, has_work: bool, now: float) -> None:
        """A replica has reported.

        Args:
            replica_id: Which.
            made_tokens: Output tokens it has made since it joined. What its requests had made
                elsewhere before is not among them.
            has_work: Whether requests are left to run there.
            now: Seconds.
        """
        count = self._counts.setdefault(replica_id, _Count())
        if count.at_s is not None:
            busy_s = now - count.at_s
            # By the clock: summed over replicas, time would pass faster the more there are.
            age_s = 0.0 if self._counted_s is None else max(now - self._counted_s, 0.0)
            decay = math.exp(-age_s / AVERAGED_S)
            self._counted_s = now
            self._tokens = self._tokens * decay + made_tokens - count.made_tokens
            self._busy_s = self._busy_s * decay + busy_s
        count.made_tokens = made_tokens
        count.at_s = now if has_work else None

    def forget(self, replica_id: str) -> None:
        """A replica is gone."""
        self._counts.pop(replica_id, None)
