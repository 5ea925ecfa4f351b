"""One engine's own decisions: which waiting request may start, and which running one gives way."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from policies.bundle import Policy
from policies.eviction import after_eviction, choose_victims
from policies.forecast import Forecast
from policies.ledger import REFINE_AFTER, Replica, ReplicaLedger, as_batch
from policies.projection import MemoryProfile
from policies.request import Request
from policies.waiting import Waiting, WaitingQueue

MAX_EVICTIONS = 3
"""Evictions after which a request is protected."""

COMPANY_TOKENS = 128
"""Beside requests that go before them, others start in a step while no more tokens are prefilled in
it, and one in any case: each prolongs the step for all whose next token it makes."""


@dataclass(slots=True)
class _Entry:
    waiting: Waiting  # what it waited as, last; its forecast and sequence stay
    evictions: int
    started: int = 0  # 0 while it waits
    reserved_blocks: int = 0  # while it runs and is protected: what it holds at its cap

    @property
    def precedence(self) -> int:
        """What goes before the key, smaller first."""
        given = self.waiting.precedence
        return int(self.waiting.request.request_class) if given is None else given


class Gate:
    """The requests of one engine: those that wait, in order, and those that run, projected.

    It is told what happens and answers who may start (`first`) and who is evicted (`victims`); the
    engine does it and says so (`start`, `evict`). Requests start in the strict order of their keys,
    when the projection admits them, and always when nothing runs.

    Precedence goes before keys. Beside requests of an earlier one, others start a few tokens in a
    step (`COMPANY_TOKENS`), and they give way: who finds no place or no memory has them evicted
    (`make_way`).

    A request that was evicted `max_evictions` times is protected: it starts again only when all of
    its cap fits beside all of the other protected ones' caps, and is a victim only after all that
    are not. These then suffice, so that no request is evicted more often, every eviction brings the
    end of the work nearer, and no two can evict each other for ever. That the projection has room
    is not enough for it: a prefill in several steps has its request end later than projected, and
    then beside others that have grown.

    Shared blocks (a common prefix in the cache) are counted once by whoever calls `share`.
    """

    def __init__(
        self,
        policy: Policy,
        replica: Replica,
        *,
        max_evictions: int = MAX_EVICTIONS,
        give_way: bool = True,
        refine_after: float = REFINE_AFTER,
        lag_steps: int = 0,
    ) -> None:
        """Start empty.

        Args:
            policy: What to decide with; its `backfill` and `guard_band` are not used here.
            replica: What the engine holds; `slots` is its batch size.
            max_evictions: Evictions of a request after which it is protected, at least 1.
            give_way: Whether running requests give way to waiting ones of an earlier precedence.
            refine_after: See `policies.ledger.REFINE_AFTER`.
            lag_steps: Steps that the engine begins before it notices the end of a request.

        Raises:
            ValueError: `max_evictions` is below 1.
        """
        if max_evictions < 1:
            raise ValueError(f"max_evictions is {max_evictions}, must be at least 1")
        self._policy = policy
        self._max_evictions = max_evictions
        self._gives_way = give_way
        self._refine_after = refine_after
        self._lag_steps = lag_steps
        self._ledger = ReplicaLedger(replica, lag_steps)
        self._queue = WaitingQueue(policy.ordering, policy.admission)
        self._entries: dict[str, _Entry] = {}
        self._precedences: Counter[int] = Counter()  # of the entries; none that is 0
        self._starts = itertools.count(1)
        self._started_tokens = 0  # in this step, prefilled by those that start
        self._way_for: int | None = None  # the precedence for which way was made in this step
        self._pool_blocks = 0
        self._reserved_blocks = 0
        self._answer: tuple[int, str | None] | None = None  # of `first`, until something changes
        self._own_steps_only = policy.horizon == "own"

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that run."""
        return len(self._ledger)

    def runs(self, request_id: str) -> bool:
        """Whether the request runs."""
        return request_id in self._ledger

    def evictions(self, request_id: str) -> int:
        """Times the request was evicted."""
        return self._entries[request_id].evictions

    @property
    def is_mixed(self) -> bool:
        """Whether some of its requests go before others whatever their keys."""
        return len(self._precedences) > 1

    @property
    def running_ids(self) -> list[str]:
        """Requests that run."""
        return self._ledger.request_ids

    def tokens(self, request_id: str) -> int:
        """Output tokens of a request."""
        if request_id in self._ledger:
            return self._ledger.generated(request_id)
        return self._entries[request_id].waiting.request.generated_tokens

    def waiting_tokens(self) -> dict[str, int]:
        """Output tokens of each request that waits."""
        return {
            request_id: entry.waiting.request.generated_tokens
            for request_id, entry in self._entries.items()
            if request_id in self._queue
        }

    def add(
        self,
        request: Request,
        forecast: Forecast,
        *,
        key: float | None = None,
        evictions: int = 0,
        precedence: int | None = None,
    ) -> None:
        """A request waits; one of the same id is superseded.

        Args:
            request: The request.
            forecast: Its forecast.
            key: Its key, where it was computed elsewhere; None: by the policy's ordering. After an
                eviction it is always computed here.
            evictions: Times it was evicted before, elsewhere.
            precedence: What goes before the key, smaller first; None: the request's class.
        """
        self.remove(request.request_id)
        waiting = Waiting(request, forecast, 1, 0.0, given_key=key, precedence=precedence)
        entry = self._entries[request.request_id] = _Entry(waiting, evictions)
        self._precedences[entry.precedence] += 1
        self._queue.add(waiting)

    def remove(self, request_id: str) -> None:
        """A request finished or was aborted, wherever it is; an unknown one is ignored."""
        self._answer = None
        if (entry := self._entries.pop(request_id, None)) is None:
            return
        self._precedences[entry.precedence] -= 1
        if not self._precedences[entry.precedence]:
            del self._precedences[entry.precedence]
        self._reserve(entry, 0)
        if request_id in self._ledger:
            self._ledger.remove(request_id)
        elif request_id in self._queue:
            self._queue.remove(request_id)

    def progressed(self, tokens_by_request: Mapping[str, int]) -> None:
        """Output tokens of running requests, counted from the original prompt."""
        self._step_ended()
        self._ledger.progressed(tokens_by_request)

    def advanced(self, steps: int, standing: Mapping[str, int]) -> None:
        """Running requests have made so many steps, but for some (`ReplicaLedger.advance`)."""
        self._step_ended()
        self._ledger.advance(steps, standing)

    def head(self) -> str | None:
        """The first in order, whether or not it may start."""
        self._queue.key_pending(self._ledger.replica.slots)
        head = self._queue.first()
        return None if head is None else head.request.request_id

    def first(self, shared_tokens: int = 0) -> str | None:
        """The waiting request that may start now.

        Args:
            shared_tokens: Tokens of the head whose blocks are shared with running requests.
        """
        if self._answer is None or self._answer[0] != shared_tokens:
            self._answer = shared_tokens, self._first(shared_tokens)
        return self._answer[1]

    def _first(self, shared_tokens: int) -> str | None:
        if len(self._ledger) >= self._ledger.replica.slots:
            return None
        request_id = self.head()
        if request_id is None or not len(self._ledger):
            return request_id
        entry = self._entries[request_id]
        if self._waits_a_step(entry):
            return None
        if self._is_protected(entry) and not self._is_reservable(entry):
            return None
        self._refine()
        fits = self._fits(entry, self._ledger.profile, shared_tokens)
        return request_id if fits else None

    def _fits(self, entry: _Entry, profile: MemoryProfile, shared_tokens: int = 0) -> bool:
        """Whether memory is projected to hold a waiting request beside what the profile is of."""
        request = entry.waiting.request
        held = request.prompt_tokens + request.generated_tokens - shared_tokens
        steps = self._estimate(entry) - request.generated_tokens + self._lag_steps
        during, peak = profile.peaks(0, held, steps)
        fits = during if self._own_steps_only else peak
        return fits <= self._ledger.replica.kv_blocks - self._pool_blocks

    def _waits_a_step(self, entry: _Entry) -> bool:
        """Whether a request leaves this step to those of an earlier precedence."""
        if self._way_for is not None and entry.precedence > self._way_for:
            return True
        if not self._started_tokens or entry.precedence <= min(self._precedences):
            return False
        request = entry.waiting.request
        tokens = request.prompt_tokens + request.generated_tokens
        return self._started_tokens + tokens > COMPANY_TOKENS

    def make_way(self) -> list[str]:
        """Running requests to evict now so that the first waiting one may start in this step.

        They are of a later precedence than it, not protected, in the order of `victims`, and no
        more than it takes. None where it may start as it is, and where all of them would not do.
        Until the step has ended nobody of a later precedence starts.
        """
        if not (self._gives_way and self.is_mixed):
            return []
        head = self.head()
        if head is None or self._entries[head].precedence >= max(self._precedences):
            return []
        entry = self._entries[head]
        if self.first() is not None or (
            self._is_protected(entry) and not self._is_reservable(entry)
        ):
            return []
        later = [
            i
            for i in self._ledger.request_ids
            if (e := self._entries[i]).precedence > entry.precedence and not self._is_protected(e)
        ]
        fewest = max(len(self._ledger) - self._ledger.replica.slots + 1, 1)
        if len(later) < fewest:
            return []
        self._refine()
        later = self._in_order_of_eviction(later)
        counts = range(fewest, len(later) + 1)
        # Memory without more of them is never less, so that those that do follow all that do not.
        enough = bisect.bisect_left(
            counts, True, key=lambda n: self._fits(entry, self._ledger.profile_without(later[:n]))
        )
        if enough == len(counts):
            return []
        self._way_for = entry.precedence
        self._answer = None
        return later[: counts[enough]]

    def hold(self, request_id: str) -> None:
        """Take a waiting request out of the order until it starts or is given back."""
        self._answer = None
        self._queue.remove(request_id)

    def give_back(self, request_id: str) -> None:
        """A request that was held waits again, at its old place."""
        self._answer = None
        self._queue.restore([self._entries[request_id].waiting])

    def start(self, request_id: str) -> None:
        """A request that waits or is held runs now."""
        self._answer = None
        entry = self._entries[request_id]
        if request_id in self._queue:
            self._queue.remove(request_id)
        estimate = self._estimate(entry)
        protected = self._is_protected(entry)
        if protected:
            self._reserve(entry, self._blocks_at_cap(entry))
        entry.started = next(self._starts)
        waiting = entry.waiting
        self._started_tokens += waiting.request.prompt_tokens + waiting.request.generated_tokens
        self._ledger.add(
            waiting.request,
            waiting.forecast,
            estimate,
            least_estimate=estimate if protected else 0,
        )

    def overdue(self) -> list[str]:
        """Running requests that the eviction takes whatever the memory; no protected ones."""
        if self._policy.eviction.memory_only:
            return []
        ids = [i for i in self._ledger.request_ids if not self._is_protected(self._entries[i])]
        batch = as_batch(*self._ledger.columns(self._ledger.rows(ids)))
        late = batch.generated_tokens >= self._policy.eviction.deadlines(batch)
        return [i for i, is_late in zip(ids, late.tolist(), strict=True) if is_late]

    def victims(self, blocks: Mapping[str, int], excess: int) -> list[str]:
        """Who is evicted, in this order, so that memory suffices.

        Those whose precedence is last are evicted first, and among these the policy's eviction
        decides. Protected requests come after all others.

        Args:
            blocks: Blocks that evicting each of these running requests frees.
            excess: Blocks to free.

        Returns:
            Ids; all of `blocks` when even that frees too little.
        """
        ids = self._in_order_of_eviction(blocks)
        sizes = np.array([blocks[request_id] for request_id in ids], np.int64)
        ranks = np.arange(len(ids), dtype=np.float64)
        return [ids[i] for i in choose_victims(ranks, sizes, excess).tolist()]

    def _in_order_of_eviction(self, request_ids: Iterable[str]) -> list[str]:
        """Running requests, the first victim first."""
        # Equal keys: the one that was started last goes first.
        ids = sorted(request_ids, key=lambda request_id: -self._entries[request_id].started)
        batch = as_batch(*self._ledger.columns(self._ledger.rows(ids)))
        entries = [self._entries[request_id] for request_id in ids]
        keys = self._policy.eviction.keys(batch, np.array([float(e.started) for e in entries]))
        last = np.array([-entry.precedence for entry in entries], np.int64)
        protected = np.array([self._is_protected(entry) for entry in entries], np.bool_)
        return [ids[i] for i in np.lexsort((keys, last, protected)).tolist()]

    def evict(self, request_id: str, tokens: int) -> None:
        """A running request lost its memory at `tokens` output tokens, or more: it waits again."""
        self._answer = None
        entry = self._entries[request_id]
        old = entry.waiting
        tokens = max(tokens, self._ledger.generated(request_id))
        tokens = min(tokens, old.request.max_tokens - 1)
        request, forecast = after_eviction(self._policy.eviction, old.request, old.forecast, tokens)
        self._ledger.remove(request_id)
        self._reserve(entry, 0)
        entry.evictions += 1
        entry.started = 0
        entry.waiting = Waiting(
            request, forecast, 1, 0.0, sequence=old.sequence, precedence=old.precedence
        )
        self._queue.add(entry.waiting)

    def share(self, tokens_by_request: Mapping[str, int], pool_blocks: int) -> None:
        """Blocks that several running requests use are counted once.

        Args:
            tokens_by_request: Tokens of running requests that lie in shared blocks, whole blocks;
                0 for those not named.
            pool_blocks: How many such blocks there are.
        """
        self._answer = None
        self._ledger.share(tokens_by_request)
        self._pool_blocks = pool_blocks

    def _step_ended(self) -> None:
        self._answer = None
        self._started_tokens = 0
        self._way_for = None

    def _refine(self) -> None:
        """Make the estimates again that running requests have outgrown."""
        rows = self._ledger.stale(self._refine_after)
        if len(rows):
            batch = as_batch(*self._ledger.columns(rows))
            self._ledger.set_estimates(rows, self._policy.admission.estimates(batch))

    def _is_protected(self, entry: _Entry) -> bool:
        return entry.evictions >= self._max_evictions

    def _is_reservable(self, entry: _Entry) -> bool:
        blocks = self._reserved_blocks + self._blocks_at_cap(entry)
        return blocks <= self._ledger.replica.kv_blocks

    def _blocks_at_cap(self, entry: _Entry) -> int:
        replica, request = self._ledger.replica, entry.waiting.request
        tokens = min(request.prompt_tokens + request.max_tokens, replica.max_model_len)
        return -(-tokens // replica.block_size)

    def _reserve(self, entry: _Entry, blocks: int) -> None:
        self._reserved_blocks += blocks - entry.reserved_blocks
        entry.reserved_blocks = blocks

    def _estimate(self, entry: _Entry) -> int:
        """Output tokens that a waiting request is projected to reach."""
        waiting = entry.waiting
        return waiting.request.max_tokens if self._is_protected(entry) else waiting.estimate
