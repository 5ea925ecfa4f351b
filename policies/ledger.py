"""What one replica holds and is projected to hold: our own account of its KV memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from policies.batch import Floats, Ints, RequestBatch
from policies.compiled import compiled
from policies.forecast import Forecast
from policies.projection import MemoryProfile
from policies.request import Request

REFINE_AFTER = 1 / 8
"""A row is estimated again once it has advanced by this share of the steps it had left: refinement
while decoding at a cost per request that is logarithmic in its length."""

# Rows of a ledger's integer matrix; the first six are a `RequestBatch`'s own columns.
_PROMPT, _CAP, _GENERATED, _LOWER, _UPPER, _TRUE = range(6)
_ESTIMATE, _ESTIMATED_AT, _LEAST, _SHARED = range(6, 10)
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
        look_ahead: Those of the slots that are beyond its batch, and the most requests that may
            wait there having been sent ahead of there being room for them.
        gives_way: Whether its engine evicts offline requests for online ones that find no room, so
            that these are sent there as long as its batch would hold all that are.
    """

    replica_id: str
    kv_blocks: int
    block_size: int
    slots: int
    max_model_len: int
    look_ahead: int = 0
    gives_way: bool = False

    @property
    def largest_request(self) -> int:
        """Tokens (prompt and output) of the largest request it can hold."""
        return min(self.max_model_len, self.kv_blocks * self.block_size)


class ReplicaLedger:
    """Entries from dispatch to a terminal event, in columns.

    Attributes:
        replica: Whose account this is.
    """

    def __init__(self, replica: Replica, lag_steps: int = 0) -> None:
        """Start empty.

        Args:
            replica: Whose account this is.
            lag_steps: Steps that are begun before the end of a request is noticed, so that it
                holds its memory that much longer.
        """
        self.replica = replica
        self._lag_steps = lag_steps
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._ints = np.zeros((10, 16), np.int64)
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
        """Blocks needed now: every entry with the next token's place, which its step needs.

        More than the capacity where the engine has evicted some, which stay entries.
        """
        return _used_blocks(self._ints, len(self._ids), self.replica.block_size)

    @property
    def profile(self) -> MemoryProfile:
        """Projected use over the coming steps, with steps counted from now."""
        if self._profile is None:
            held, steps = np.empty((2, len(self._ids)), np.int64)
            _project(self._ints, self._lag_steps, held, steps)
            self._profile = MemoryProfile(held, steps, self.replica.block_size)
        return self._profile

    def profile_without(self, request_ids: Iterable[str]) -> MemoryProfile:
        """The projection as if these entries were not here."""
        others = np.setdiff1d(np.arange(len(self._ids)), self.rows(request_ids))
        ints, _ = self.columns(others)
        held, steps = np.empty((2, ints.shape[1]), np.int64)
        _project(ints, self._lag_steps, held, steps)
        return MemoryProfile(held, steps, self.replica.block_size)

    def sizes(self, request_id: str) -> tuple[int, int]:
        """Tokens that an entry holds, and the steps that it is projected to make."""
        held, steps = np.empty((2, 1), np.int64)
        _project(self.columns(self.rows([request_id]))[0], self._lag_steps, held, steps)
        return int(held[0]), int(steps[0])

    def add(
        self, request: Request, forecast: Forecast, estimate: int, *, least_estimate: int = 0
    ) -> None:
        """Enter a request that is dispatched here.

        Args:
            request: The request.
            forecast: Its forecast.
            estimate: Output tokens it is projected to reach.
            least_estimate: What no later estimate goes below.
        """
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
            least_estimate,
            0,
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

    def progressed(self, tokens_by_request: Mapping[str, int]) -> tuple[int, int]:
        """Correct entries by the engine's own counts of output tokens; ids not here are ignored.

        Returns:
            How many entries have gained tokens, and how many tokens together.
        """
        count = len(tokens_by_request)
        rows = np.fromiter(map(self._rows.get, tokens_by_request, repeat(-1)), np.int64, count)
        tokens = np.fromiter(tokens_by_request.values(), np.int64, count)
        rose, gained = _progress(self._ints, rows, tokens)
        if rose:
            self._profile = None
        return rose, gained

    def advance(self, steps: int, standing: Mapping[str, int]) -> None:
        """All entries have made some steps, but for those that stand at given counts.

        Args:
            steps: Output tokens that every other entry has gained.
            standing: Output tokens of the others.
        """
        _advance(self._ints, len(self._ids), steps)
        for request_id, tokens in standing.items():
            self._ints[_GENERATED, self._rows[request_id]] = tokens
        self._profile = None

    def learn(self, request_id: str, forecast: Forecast) -> None:
        """Replace an entry's forecast: a later one, or a lower bound raised by an eviction."""
        row = self._rows[request_id]
        self._ints[_LOWER, row], self._ints[_UPPER, row] = forecast.lower, forecast.upper
        self._floats[_MU, row], self._floats[_SIGMA, row] = forecast.mu, forecast.sigma
        self._ints[_ESTIMATE, row] = 0  # stale from now on
        self._profile = None

    def share(self, tokens_by_request: Mapping[str, int]) -> None:
        """Set what of each entry's memory is not its own, in whole blocks; 0 for those not named.

        Such blocks are the caller's to count, once.
        """
        self._ints[_SHARED, : len(self._ids)] = 0
        for request_id, tokens in tokens_by_request.items():
            self._ints[_SHARED, self._rows[request_id]] = tokens
        self._profile = None

    def generated(self, request_id: str) -> int:
        """Output tokens of an entry, below its cap."""
        return int(self._ints[_GENERATED, self._rows[request_id]])

    def rows(self, request_ids: Iterable[str]) -> Ints:
        """Rows of these entries, (n,)."""
        return np.fromiter((self._rows[i] for i in request_ids), np.int64)

    def stale(self, refine_after: float = REFINE_AFTER) -> Ints:
        """Rows whose estimate should be made again, shape (k,).

        Args:
            refine_after: Share of the steps a row had left that it must have made since.
        """
        return _stale(self._ints, len(self._ids), refine_after)

    def columns(self, rows: Ints) -> tuple[Ints, Floats]:
        """Integer columns (10, k) and float columns (3, k) of these rows, for `as_batch`."""
        return self._ints.take(rows, axis=1), self._floats.take(rows, axis=1)

    def set_estimates(self, rows: Ints, estimates: Ints) -> None:
        """Set the projected output tokens of these rows."""
        _set_estimates(self._ints, rows, estimates)
        self._profile = None


def as_batch(ints: Ints, floats: Floats) -> RequestBatch:
    """Ledger columns as policies see them."""
    prompt, cap, generated, lower, upper, true = ints[: _TRUE + 1]
    arrival, mu, sigma = floats
    return RequestBatch(prompt, cap, generated, arrival, mu, sigma, lower, upper, true)


@compiled
def _used_blocks(ints: Ints, count: int, block_size: int) -> int:
    used = 0
    for row in range(count):
        held = ints[_PROMPT, row] + ints[_GENERATED, row] - ints[_SHARED, row]
        used += (held + block_size) // block_size
    return int(used)


@compiled
def _project(ints: Ints, lag: int, held: Ints, steps: Ints) -> None:
    """Fill in what each entry holds and the steps it has left, (n,)."""
    for row in range(len(held)):
        generated = ints[_GENERATED, row]
        held[row] = ints[_PROMPT, row] + generated - ints[_SHARED, row]
        # A row that has reached its estimate makes one more step until it is estimated again.
        steps[row] = max(ints[_ESTIMATE, row] - generated, 1) + lag


@compiled
def _progress(ints: Ints, rows: Ints, tokens: Ints) -> tuple[int, int]:
    """Raise what these rows have generated; row -1 is nobody's. Returns rows and tokens gained."""
    rose, gained = 0, 0
    for i in range(len(rows)):
        row = rows[i]
        if row >= 0:
            generated = min(tokens[i], ints[_CAP, row] - 1)
            if generated > ints[_GENERATED, row]:
                gained += generated - ints[_GENERATED, row]
                ints[_GENERATED, row] = generated
                rose += 1
    return rose, gained


@compiled
def _advance(ints: Ints, count: int, steps: int) -> None:
    for row in range(count):
        ints[_GENERATED, row] = min(ints[_GENERATED, row] + steps, ints[_CAP, row] - 1)


@compiled
def _stale(ints: Ints, count: int, refine_after: float) -> Ints:
    rows = np.empty(count, np.int64)
    found = 0
    for row in range(count):
        generated = ints[_GENERATED, row]
        left = ints[_ESTIMATE, row] - generated
        made = generated - ints[_ESTIMATED_AT, row]
        if left <= 0 or (made > 0 and made >= left * refine_after):
            rows[found] = row
            found += 1
    return rows[:found]


@compiled
def _set_estimates(ints: Ints, rows: Ints, estimates: Ints) -> None:
    for i in range(len(rows)):
        row = rows[i]
        ints[_ESTIMATE, row] = max(estimates[i], ints[_LEAST, row])
        ints[_ESTIMATED_AT, row] = ints[_GENERATED, row]
