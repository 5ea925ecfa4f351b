"""Requests that decode together, one token each per step, advanced any number of steps at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from policies.forecast import Forecast
from policies.request import Request


class Sequence:
    """One request in an engine: `tokens` exist, `computed` of them have KV.

    While it decodes both are those of the moment it began to; `DecodingSet.leave` brings them up
    to date.

    Attributes:
        request_id: Its name.
        priority: Smaller starts first and is preempted last.
        arrival: Place in the order in which the engine accepted it.
        started: Place in the order in which requests (re)started.
        tokens: Prompt and output tokens that exist.
        final_tokens: Tokens with which it is complete.
        deadline_tokens: Tokens at which it is evicted if it is not complete.
        prefill_until: Tokens that existed when it started.
        computed: Tokens whose KV is in the cache.
        once_computed: Most tokens whose KV it ever had.
        offset: `computed` minus the clock of the decoding set.
        joined: `started` while it decodes, else 0.
        prompt_tokens: Original prompt tokens, from which policies count; those of the restarted
            prompt where no policy asks.
        request: What policies know of it; None where no policy asks.
        forecast: The same.
    """

    __slots__ = (
        "arrival",
        "computed",
        "deadline_tokens",
        "final_tokens",
        "forecast",
        "joined",
        "offset",
        "once_computed",
        "prefill_until",
        "priority",
        "prompt_tokens",
        "request",
        "request_id",
        "started",
        "tokens",
    )

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
        priority: float,
        arrival: int,
        request: Request | None = None,
        forecast: Forecast | None = None,
    ) -> None:
        self.request_id = request_id
        self.priority = priority
        self.arrival = arrival
        self.started = 0
        self.tokens = prompt_tokens
        self.final_tokens = self.deadline_tokens = prompt_tokens + output_tokens
        self.prefill_until = prompt_tokens
        self.computed = 0
        self.once_computed = 0
        self.offset = 0
        self.joined = 0
        self.prompt_tokens = prompt_tokens if request is None else request.prompt_tokens
        self.request = request
        self.forecast = forecast

    @property
    def rank(self) -> tuple[float, int]:
        """Worse is larger: vLLM preempts the worst of the running requests."""
        return self.priority, self.started


class DecodingSet:
    """Requests that decode, on a clock that counts steps.

    A request that joins at clock c with k tokens computed has computed `offset + clock` tokens from
    then on, `offset = k - c`. So one number advances all, and the blocks that n requests will take
    are known for any number of steps ahead from how many of them stand at each offset modulo the
    block size. Advancing costs O(block size) whatever the steps; joining and leaving O(log n).

    Attributes:
        clock: Steps made so far.
        blocks: KV blocks held.
    """

    __slots__ = (
        "_block_size",
        "_ends",
        "_members",
        "_offsets",
        "_residues",
        "_slack",
        "blocks",
        "clock",
    )

    def __init__(self, block_size: int, slack: int = 0) -> None:
        """Start empty.

        Args:
            block_size: Tokens per block.
            slack: Tokens each request holds room for beyond those it has computed.
        """
        self._block_size = block_size
        self._slack = slack
        self._members: dict[str, Sequence] = {}
        self._residues = [0] * block_size
        self._offsets = 0
        self._ends: list[tuple[int, int, Sequence]] = []
        self.clock = 0
        self.blocks = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._members.values())

    @property
    def context_tokens(self) -> int:
        """KV tokens that the next step attends to, its own included."""
        return self._offsets + len(self._members) * (self.clock + 1)

    @property
    def steps_to_end(self) -> int:
        """Steps until the first request is complete or reaches its deadline; there must be one."""
        while (end := self._ends[0])[2].joined != end[1]:
            heapq.heappop(self._ends)
        return end[0] - self.clock

    def join(self, sequence: Sequence) -> None:
        """A request whose tokens all have KV but the latest decodes from now on."""
        sequence.offset = sequence.computed - self.clock
        sequence.joined = sequence.started
        self._members[sequence.request_id] = sequence
        self._residues[(sequence.offset + self._slack) % self._block_size] += 1
        self._offsets += sequence.offset
        self.blocks += self._blocks_of(sequence)
        end = self.clock + min(sequence.final_tokens, sequence.deadline_tokens) - sequence.tokens
        heapq.heappush(self._ends, (end, sequence.started, sequence))

    def leave(self, sequence: Sequence) -> None:
        """Take a request out, with its counts of tokens up to date."""
        self.blocks -= self._blocks_of(sequence)
        del self._members[sequence.request_id]
        self._residues[(sequence.offset + self._slack) % self._block_size] -= 1
        self._offsets -= sequence.offset
        sequence.computed = sequence.offset + self.clock
        sequence.tokens = sequence.computed + 1
        sequence.once_computed = max(sequence.once_computed, sequence.computed)
        sequence.joined = 0

    def tokens_of(self, sequence: Sequence) -> int:
        """Prompt and output tokens that exist of a member."""
        return sequence.offset + self.clock + 1

    def ended(self) -> list[Sequence]:
        """Members that are complete or have reached their deadline, in the order of their start."""
        ended = []
        while self._ends and self._ends[0][0] <= self.clock:
            _, started, sequence = heapq.heappop(self._ends)
            if sequence.joined == started:
                ended.append(sequence)
        return ended

    def blocks_needed(self, steps: int) -> int:
        """Blocks that the next `steps` steps take beyond those held."""
        if steps == 1:
            return self._residues[-self.clock % self._block_size]
        cycles, rest = divmod(steps, self._block_size)
        needed = cycles * len(self._members)
        for step in range(self.clock, self.clock + rest):
            needed += self._residues[-step % self._block_size]
        return needed

    def steps_within(self, free_blocks: int) -> int:
        """Most steps that take at most `free_blocks` blocks."""
        cycles, free_blocks = divmod(free_blocks, len(self._members))
        steps = cycles * self._block_size
        for step in range(self.clock, self.clock + self._block_size):
            free_blocks -= self._residues[-step % self._block_size]
            if free_blocks < 0:
                break
            steps += 1
        return steps

    def advance(self, steps: int) -> None:
        """Make `steps` steps."""
        self.blocks += self.blocks_needed(steps)
        self.clock += steps

    def _blocks_of(self, sequence: Sequence) -> int:
        return -(-(sequence.offset + self.clock + self._slack) // self._block_size)
