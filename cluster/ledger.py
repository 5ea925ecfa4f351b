"""What one replica holds and is projected to hold: our own account of its KV memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from policies.batch import Floats, Ints, RequestBatch
from policies.forecast import Forecast
from policies.projection import MemoryProfile
from policies.request import Request

_REFRESH_SHARE = 8
"""A row is estimated again once it has advanced by 1/8 of the steps it had left: refinement while
decoding at a cost per request that is logarithmic in its length."""

# Rows of a ledger's integer matrix; the first seven are a `RequestBatch`'s own columns.
_PROMPT, _CAP, _GENERATED, _LOWER, _UPPER, _TRUE, _ESTIMATE, _ESTIMATED_AT = range(8)
_ARRIVAL, _MU, _SIGMA = range(3)


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as the scheduler sees it.

    Attributes:
        replica_id: Unique among the replicas that are alive.
        kv_blocks: Capacity M in blocks.
        block_size: Tokens per block.
        slots: Requests it may hold at once.
        max_model_len: Prompt plus output tokens one request may have.
    """

    replica_id: str
    kv_blocks: int
    block_size: int
    slots: int
    max_model_len: int

    @property
    def largest_request(self) -> int:
        """Tokens (prompt and output) of the largest request it can hold."""
        return min(self.max_model_len, self.kv_blocks * self.block_size)


class ReplicaLedger:
    """Entries from dispatch to a terminal event, in columns.

    Attributes:
        replica: Whose account this is.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._ints = np.zeros((8, 16), np.int64)
        self._floats = np.zeros((3, 16), np.float64)
        self._profile: MemoryProfile | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._rows

    @property
    def request_ids(self) -> list[str]:
        """Ids of all entries."""
        return list(self._ids)

    @property
    def free_slots(self) -> int:
        """Requests it may hold beyond those it holds."""
        return self.replica.slots - len(self._ids)

    @property
    def used_blocks(self) -> int:
        """Blocks held now: every entry with the next token's place, which its step needs."""
        n, size = len(self._ids), self.replica.block_size
        return int(((self._ints[_PROMPT, :n] + self._ints[_GENERATED, :n] + size) // size).sum())

    @property
    def profile(self) -> MemoryProfile:
        """Projected use over the coming steps, with steps counted from now."""
        if self._profile is None:
            ints = self._ints[:, : len(self._ids)]
            generated = ints[_GENERATED]
            # A row that has reached its estimate makes one more step until it is estimated again.
            steps = np.maximum(ints[_ESTIMATE] - generated, 1)
            self._profile = MemoryProfile(ints[_PROMPT] + generated, steps, self.replica.block_size)
        return self._profile

    def add(self, request: Request, forecast: Forecast, estimate: int) -> None:
        """Enter a request that is dispatched here, projected to reach `estimate` output tokens."""
        row = len(self._ids)
        if row == self._ints.shape[1]:
            self._ints = np.concatenate([self._ints, np.zeros_like(self._ints)], axis=1)
            self._floats = np.concatenate([self._floats, np.zeros_like(self._floats)], axis=1)
        self._ids.append(request.request_id)
        self._rows[request.request_id] = row
        generated = request.generated_tokens
        self._ints[:, row] = (
            request.prompt_tokens,
            request.max_tokens,
            generated,
            forecast.lower,
            forecast.upper,
            request.output_tokens or 0,
            estimate,
            generated,
        )
        self._floats[:, row] = request.arrival_s, forecast.mu, forecast.sigma
        self._profile = None

    def remove(self, request_id: str) -> None:
        """Take an entry out: the request finished, was aborted or was recalled."""
        row = self._rows.pop(request_id)
        last_id = self._ids.pop()
        if last_id != request_id:
            last = len(self._ids)
            self._ids[row] = last_id
            self._rows[last_id] = row
            self._ints[:, row] = self._ints[:, last]
            self._floats[:, row] = self._floats[:, last]
        self._profile = None

    def progressed(self, tokens_by_request: Mapping[str, int]) -> None:
        """Correct entries by the engine's own counts of output tokens; ids not here are ignored."""
        known = [
            (row, t) for i, t in tokens_by_request.items() if (row := self._rows.get(i, -1)) >= 0
        ]
        if known:
            rows, tokens = np.array(known).T
            generated = np.minimum(tokens, self._ints[_CAP, rows] - 1)
            self._ints[_GENERATED, rows] = np.maximum(self._ints[_GENERATED, rows], generated)
            self._profile = None

    def learn(self, request_id: str, forecast: Forecast) -> None:
        """Replace an entry's forecast: a later one, or a lower bound raised by an eviction."""
        row = self._rows[request_id]
        self._ints[_LOWER, row], self._ints[_UPPER, row] = forecast.lower, forecast.upper
        self._floats[_MU, row], self._floats[_SIGMA, row] = forecast.mu, forecast.sigma
        self._ints[_ESTIMATE, row] = 0  # stale from now on
        self._profile = None

    def stale(self) -> Ints:
        """Rows whose estimate should be made again, shape (k,)."""
        ints = self._ints[:, : len(self._ids)]
        left = np.maximum(ints[_ESTIMATE] - ints[_GENERATED], 1)
        advanced = ints[_GENERATED] - ints[_ESTIMATED_AT]
        return np.flatnonzero(
            (advanced * _REFRESH_SHARE >= left) | (ints[_ESTIMATE] <= ints[_GENERATED])
        )

    def columns(self, rows: Ints) -> tuple[Ints, Floats]:
        """Integer columns (8, k) and float columns (3, k) of these rows, for `as_batch`."""
        return self._ints[:, rows], self._floats[:, rows]

    def set_estimates(self, rows: Ints, estimates: Ints) -> None:
        """Set the projected output tokens of these rows."""
        self._ints[_ESTIMATE, rows] = estimates
        self._ints[_ESTIMATED_AT, rows] = self._ints[_GENERATED, rows]
        self._profile = None


def as_batch(ints: Ints, floats: Floats) -> RequestBatch:
    """Ledger columns as policies see them."""
    return RequestBatch(
        prompt_tokens=ints[_PROMPT],
        max_tokens=ints[_CAP],
        generated_tokens=ints[_GENERATED],
        arrival_s=floats[_ARRIVAL],
        mu=floats[_MU],
        sigma=floats[_SIGMA],
        lower=ints[_LOWER],
        upper=ints[_UPPER],
        output_tokens=ints[_TRUE],
    )


def raised_lower(forecast: Forecast, tokens: int) -> Forecast:
    """The forecast after the request was seen to reach `tokens`: A_min's learned bound."""
    if tokens <= forecast.lower:
        return forecast
    return replace(forecast, lower=tokens, upper=max(forecast.upper, tokens))
