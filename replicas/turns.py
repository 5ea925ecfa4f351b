"""Who starts next in an engine's batch, and who gives way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Protocol

from policies.eviction import Eviction
from policies.gate import Gate
from replicas.decoding_set import Sequence
from replicas.protocol import EngineTerms
from replicas.start_queue import StartQueue
from replicas.victims import blocks_freed, columns, tokens_at, victims


class Turns(Protocol):
    """What a batch asks and tells whoever decides for it.

    `running` are the requests that hold blocks, in the order of their start, and `clock` is that of
    the decoding set.
    """

    def __len__(self) -> int:
        """Requests that wait."""

    def add(self, sequence: Sequence, terms: EngineTerms | None) -> None:
        """A new request waits."""

    def remove(self, sequence: Sequence) -> None:
        """A request has finished or was aborted, wherever it was."""

    def first(self) -> Sequence | None:
        """The request that starts as soon as its blocks are free; None when none may."""

    def start(self, sequence: Sequence) -> None:
        """What `first` returned runs now."""

    def evict(self, sequence: Sequence) -> None:
        """A running request has lost its blocks and waits again."""

    def advanced(self, steps: int, prefilling: Sequence | None) -> None:
        """All running requests produced so many tokens, but for one that is still prefilled."""

    def overdue(self, running: Mapping[str, Sequence], clock: int) -> list[Sequence]:
        """The running requests that are evicted whatever the memory."""

    def victims(
        self,
        running: Mapping[str, Sequence],
        clock: int,
        blocks_of: Callable[[int], int],
        excess: int,
    ) -> list[Sequence]:
        """Who is evicted so that at least part of `excess` blocks becomes free.

        `blocks_of` says how many blocks hold a number of computed tokens.
        """

    def make_way(self, running: Mapping[str, Sequence]) -> list[Sequence]:
        """Running requests that are evicted so that one which goes before them starts now."""

    def may_change(self, is_full: bool) -> bool:
        """Whether another step of the same requests may let one start or be overdue.

        Deadlines on the requests themselves do not count. `is_full` says that `max_num_seqs` run.
        """


class PriorityTurns:
    """Smallest priority first, then by arrival; an eviction, or else vLLM's rule, names victims."""

    def __init__(self, eviction: Eviction | None) -> None:
        self._eviction = eviction
        self._queue = StartQueue()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sequence: Sequence, terms: EngineTerms | None) -> None:
        """See `Turns.add`."""
        if self._eviction is not None and not self._eviction.memory_only:
            assert sequence.request is not None
            (deadline,) = self._eviction.deadlines(columns([sequence], 0)).tolist()
            sequence.deadline_tokens = sequence.request.prompt_tokens + deadline
        self._queue.push(sequence)

    def remove(self, sequence: Sequence) -> None:
        """See `Turns.remove`."""
        self._queue.remove(sequence.request_id)

    def first(self) -> Sequence | None:
        """See `Turns.first`."""
        return self._queue.first()

    def start(self, sequence: Sequence) -> None:
        """See `Turns.start`."""
        self._queue.pop()

    def evict(self, sequence: Sequence) -> None:
        """See `Turns.evict`."""
        self._queue.push(sequence)

    def advanced(self, steps: int, prefilling: Sequence | None) -> None:
        """See `Turns.advanced`."""

    def overdue(self, running: Mapping[str, Sequence], clock: int) -> list[Sequence]:
        """See `Turns.overdue`."""
        if self._eviction is None or self._eviction.memory_only:
            return []
        return [
            s for s in running.values() if s.joined and tokens_at(s, clock) >= s.deadline_tokens
        ]

    def victims(
        self,
        running: Mapping[str, Sequence],
        clock: int,
        blocks_of: Callable[[int], int],
        excess: int,
    ) -> list[Sequence]:
        """See `Turns.victims`."""
        if self._eviction is None:
            return [max(running.values(), key=attrgetter("rank"))]
        return victims(self._eviction, list(running.values()), clock, blocks_of, excess)

    def make_way(self, running: Mapping[str, Sequence]) -> list[Sequence]:
        """See `Turns.make_way`."""
        return []

    def may_change(self, is_full: bool) -> bool:
        """See `Turns.may_change`."""
        return False


class GateTurns:
    """As a gate decides, by a policy and its projection of memory."""

    def __init__(self, gate: Gate, eviction: Eviction | None) -> None:
        """Wrap a gate without requests.

        Args:
            gate: Who decides.
            eviction: The gate's own; None: it may have deadlines.
        """
        self._gate = gate
        self._has_deadlines = eviction is None or not eviction.memory_only
        self._sequences: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return self._gate.waiting

    def add(self, sequence: Sequence, terms: EngineTerms | None) -> None:
        """See `Turns.add`."""
        request, forecast = sequence.request, sequence.forecast
        assert request is not None
        assert forecast is not None, "a gate needs requests with their forecasts"
        if terms is None:
            self._gate.add(request, forecast)
        else:
            self._gate.add(
                request,
                forecast,
                key=terms.key,
                evictions=terms.evictions,
                precedence=terms.precedence,
            )
        self._sequences[request.request_id] = sequence

    def remove(self, sequence: Sequence) -> None:
        """See `Turns.remove`."""
        del self._sequences[sequence.request_id]
        self._gate.remove(sequence.request_id)

    def first(self) -> Sequence | None:
        """See `Turns.first`."""
        request_id = self._gate.first()
        return None if request_id is None else self._sequences[request_id]

    def start(self, sequence: Sequence) -> None:
        """See `Turns.start`."""
        self._gate.start(sequence.request_id)

    def evict(self, sequence: Sequence) -> None:
        """See `Turns.evict`."""
        self._gate.evict(sequence.request_id, sequence.tokens - sequence.prompt_tokens)

    def advanced(self, steps: int, prefilling: Sequence | None) -> None:
        """See `Turns.advanced`."""
        standing = {}
        if prefilling is not None:
            standing[prefilling.request_id] = prefilling.tokens - prefilling.prompt_tokens
        self._gate.advanced(steps, standing)

    def overdue(self, running: Mapping[str, Sequence], clock: int) -> list[Sequence]:
        """See `Turns.overdue`."""
        return [running[request_id] for request_id in self._gate.overdue()]

    def victims(
        self,
        running: Mapping[str, Sequence],
        clock: int,
        blocks_of: Callable[[int], int],
        excess: int,
    ) -> list[Sequence]:
        """See `Turns.victims`."""
        freed = blocks_freed(running.values(), clock, blocks_of)
        return [running[request_id] for request_id in self._gate.victims(freed, excess)]

    def make_way(self, running: Mapping[str, Sequence]) -> list[Sequence]:
        """See `Turns.make_way`."""
        return [running[request_id] for request_id in self._gate.make_way()]

    def may_change(self, is_full: bool) -> bool:
        """See `Turns.may_change`."""
        somebody_may_start = not is_full or self._gate.is_mixed
        return self._has_deadlines or (self._gate.waiting > 0 and somebody_may_start)
