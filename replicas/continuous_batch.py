"""Continuous batching over a paged KV cache as a state machine, without a model or a clock."""

from __future__ import annotations

import heapq
import math
from bisect import insort
from dataclasses import dataclass, field

from replicas.batch_limits import BatchLimits
from replicas.step_time import StepTimeModel


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. Its outputs exist from `ends_s` on.

    Attributes:
        started_s: When the step began, in the caller's seconds.
        duration_s: Seconds it took; 0 when there was nothing to do.
        prefill_tokens: Prompt tokens computed, recomputed ones included.
        decode_tokens: Requests that decoded.
        kv_tokens: Tokens in the KV cache that those requests attended to.
        produced: Requests that have one more output token, in batch order.
        finished: Those of `produced` whose output is complete; their blocks are free.
        preempted: Requests that lost their blocks and wait again.
        recomputed: Tokens per request whose KV was computed again in this step.
    """

    started_s: float
    duration_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    kv_tokens: int = 0
    produced: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    recomputed: dict[str, int] = field(default_factory=dict)

    @property
    def ends_s(self) -> float:
        """When the step ends and its outputs exist."""
        return self.started_s + self.duration_s


class _Sequence:
    """One request: `tokens` exist, `computed` of them have KV, `final_tokens` complete it."""

    __slots__ = (
        "arrival",
        "blocks",
        "computed",
        "final_tokens",
        "once_computed",
        "prefill_until",
        "priority",
        "request_id",
        "started",
        "tokens",
    )

    def __init__(
        self, request_id: str, prompt_tokens: int, output_tokens: int, priority: int, arrival: int
    ) -> None:
        self.request_id = request_id
        self.priority = priority
        self.arrival = arrival
        self.started = 0
        self.tokens = prompt_tokens
        self.final_tokens = prompt_tokens + output_tokens
        self.prefill_until = prompt_tokens
        self.computed = 0
        self.once_computed = 0
        self.blocks = 0


class ContinuousBatch:
    """Which requests an engine runs in each step, and the KV blocks that they hold.

    The rules are those of vLLM's V1 scheduler. Running requests come first, each getting the tokens
    that it lacks (one when it decodes) from the step's token budget. Blocks are allocated as tokens
    are computed; when none is free the running request of the worst priority, among equals the one
    started latest, loses all its blocks, keeps its tokens and waits again at its old place. In a
    step without preemption waiting requests start, smallest priority value first, then by arrival,
    while the budget and `max_num_seqs` last and the free blocks hold all tokens of the first.
    A request whose known tokens all have KV produces its next token in that step.

    `step` decides, computes and accounts at once; a caller applies the outputs when the clock
    reaches `StepResult.ends_s`. A step costs O(running requests).
    """

    def __init__(self, limits: BatchLimits, step_time: StepTimeModel) -> None:
        self.limits = limits
        self._step_time = step_time
        self._sequences: dict[str, _Sequence] = {}
        self._running: list[_Sequence] = []
        self._queue: list[tuple[int, int, _Sequence]] = []
        self._free_blocks = limits.kv_blocks
        self._arrivals = 0
        self._starts = 0
        self._busy_until_s = -math.inf

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._sequences)

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that have not started or were preempted."""
        return len(self._sequences) - len(self._running)

    @property
    def used_blocks(self) -> int:
        """Blocks in use."""
        return self.limits.kv_blocks - self._free_blocks

    def held_blocks(self) -> dict[str, int]:
        """Blocks per running request, best rank first."""
        return {sequence.request_id: sequence.blocks for sequence in self._running}

    def add(
        self, request_id: str, prompt_tokens: int, output_tokens: int, priority: int = 0
    ) -> None:
        """Queue a request; it can run from the next step on.

        Args:
            request_id: Unique among the requests that are queued or running.
            prompt_tokens: Tokens to prefill, at least 1.
            output_tokens: Tokens to produce, at least 1.
            priority: Smaller runs first.

        Raises:
            ValueError: The id is in use, a size is below 1, or the request can never fit.
        """
        if request_id in self._sequences:
            raise ValueError(f"request {request_id!r} is queued or running already")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(
                f"request {request_id!r}: prompt_tokens is {prompt_tokens} and output_tokens is "
                f"{output_tokens}, both must be >= 1"
            )
        if prompt_tokens + output_tokens > self.limits.kv_tokens:
            raise ValueError(
                f"request {request_id!r} needs {prompt_tokens} + {output_tokens} tokens, the KV "
                f"cache holds {self.limits.kv_tokens}"
            )
        self._arrivals += 1
        sequence = _Sequence(request_id, prompt_tokens, output_tokens, priority, self._arrivals)
        self._sequences[request_id] = sequence
        heapq.heappush(self._queue, (priority, sequence.arrival, sequence))

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False when it is unknown."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence.blocks:
            self._running.remove(sequence)
            self._release(sequence)
        elif len(self._queue) > 2 * self.waiting + 64:
            # Entries of aborted requests are skipped when they come up; they must not pile up.
            self._queue = [e for e in self._queue if self._sequences.get(e[2].request_id) is e[2]]
            heapq.heapify(self._queue)
        return True

    def step(self, now: float) -> StepResult:
        """Run one step that begins at `now`.

        Args:
            now: Seconds of the caller's clock.

        Returns:
            What the step did; nothing, in no time, when there is no work.

        Raises:
            ValueError: The step before has not ended at `now`, or the step-time model answered
                with something that is not a duration.
        """
        if now < self._busy_until_s:
            raise ValueError(
                f"step at {now} s, but the step before it ends at {self._busy_until_s} s"
            )
        batch: list[tuple[_Sequence, int]] = []
        budget, preempted = self._continue_running(batch)
        if not preempted:
            self._start_waiting(batch, budget)
        result = self._compute(now, batch, preempted)
        self._busy_until_s = result.ends_s
        return result

    def _continue_running(self, batch: list[tuple[_Sequence, int]]) -> tuple[int, list[str]]:
        """Plan the running requests, best rank first; the token budget left and who lost blocks."""
        budget = self.limits.max_num_batched_tokens
        preempted: list[str] = []
        index = 0
        while index < len(self._running) and budget:
            sequence = self._running[index]
            tokens = min(sequence.tokens - sequence.computed, budget)
            while not self._allocate(sequence, sequence.computed + tokens):
                # Ranks are sorted: the victim comes after every planned request, or is this one.
                preempted.append(self._preempt_last())
                if index == len(self._running):
                    return budget, preempted
            batch.append((sequence, tokens))
            budget -= tokens
            index += 1
        return budget, preempted

    def _start_waiting(self, batch: list[tuple[_Sequence, int]], budget: int) -> None:
        while self._queue and budget and len(self._running) < self.limits.max_num_seqs:
            sequence = self._queue[0][2]
            if self._sequences.get(sequence.request_id) is not sequence:
                heapq.heappop(self._queue)
                continue
            if self.limits.blocks(sequence.tokens) > self._free_blocks:
                return
            heapq.heappop(self._queue)
            tokens = min(sequence.tokens, budget)
            self._allocate(sequence, tokens)
            self._starts += 1
            sequence.started = self._starts
            insort(self._running, sequence, key=_rank)
            batch.append((sequence, tokens))
            budget -= tokens

    def _allocate(self, sequence: _Sequence, tokens: int) -> bool:
        """Let the request hold `tokens` tokens; False, and nothing changed, when it cannot."""
        missing = self.limits.blocks(tokens) - sequence.blocks
        if missing > self._free_blocks:
            return False
        sequence.blocks += missing
        self._free_blocks -= missing
        return True

    def _release(self, sequence: _Sequence) -> None:
        self._free_blocks += sequence.blocks
        sequence.blocks = 0

    def _preempt_last(self) -> str:
        victim = self._running.pop()
        self._release(victim)
        victim.computed = 0
        victim.prefill_until = victim.tokens
        heapq.heappush(self._queue, (victim.priority, victim.arrival, victim))
        return victim.request_id

    def _compute(
        self, now: float, batch: list[tuple[_Sequence, int]], preempted: list[str]
    ) -> StepResult:
        if not batch:
            return StepResult(now)
        prefill_tokens = decode_tokens = kv_tokens = 0
        produced: list[str] = []
        finished: list[str] = []
        recomputed: dict[str, int] = {}
        for sequence, tokens in batch:
            start, end = sequence.computed, sequence.computed + tokens
            if start < sequence.prefill_until:
                prefill_tokens += tokens
            else:
                decode_tokens += 1
            if start < sequence.once_computed:
                recomputed[sequence.request_id] = min(end, sequence.once_computed) - start
            sequence.computed = end
            sequence.once_computed = max(end, sequence.once_computed)
            kv_tokens += end
            if end == sequence.tokens:
                sequence.tokens += 1
                produced.append(sequence.request_id)
                if sequence.tokens == sequence.final_tokens:
                    finished.append(sequence.request_id)
        for request_id in finished:
            self._release(self._sequences.pop(request_id))
        if finished:
            self._running = [sequence for sequence in self._running if sequence.blocks]
        return StepResult(
            started_s=now,
            duration_s=self._duration_s(prefill_tokens, decode_tokens, kv_tokens),
            prefill_tokens=prefill_tokens,
            decode_tokens=decode_tokens,
            kv_tokens=kv_tokens,
            produced=tuple(produced),
            finished=tuple(finished),
            preempted=tuple(preempted),
            recomputed=recomputed,
        )

    def _duration_s(self, prefill_tokens: int, decode_tokens: int, kv_tokens: int) -> float:
        duration_s = self._step_time.seconds(prefill_tokens, decode_tokens, kv_tokens)
        if not (math.isfinite(duration_s) and duration_s >= 0):
            raise ValueError(
                f"the step-time model {type(self._step_time).__name__} answered {duration_s} s for "
                f"{prefill_tokens} prefill, {decode_tokens} decode and {kv_tokens} KV tokens; a "
                "duration is finite and >= 0"
            )
        return duration_s


def _rank(sequence: _Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.started
