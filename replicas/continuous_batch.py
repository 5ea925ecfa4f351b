"""Continuous batching over a paged KV cache as a state machine, without a model or a clock."""

from __future__ import annotations

import math

from policies.eviction import Eviction
from policies.forecast import Forecast
from policies.gate import Gate
from policies.request import Request
from replicas.batch_limits import BatchLimits
from replicas.batch_work import BatchWork
from replicas.decoding_set import DecodingSet, Sequence
from replicas.protocol import EngineTerms
from replicas.request_work import RequestWork
from replicas.step_time import StepTimeModel, StepWork
from replicas.stretch import Chunk, Evicted, Plan, StepResult, Stretch
from replicas.turns import GateTurns, PriorityTurns, Turns


class ContinuousBatch:
    """Which requests an engine runs in each step, and the KV blocks that they hold.

    The rules are those of vLLM's V1 scheduler. Running requests come first, each getting the tokens
    that it lacks (one when it decodes) from the step's token budget. Blocks are allocated as tokens
    are computed; when they run out, running requests lose all of theirs. Waiting requests start,
    smallest priority first, then by arrival, while the budget and `max_num_seqs` last and the free
    blocks hold all tokens of the first. A request whose known tokens all have KV produces its next
    token in that step. A `Gate`, where there is one, has the say in who starts and who is evicted.

    One round is `make_room`, `begin` and `complete`, with whatever the caller adds between the
    first two. Between two changes of the batch nothing but decoding happens, and `begin` plans all
    those steps at once: a request costs O(log n) however long its output is. `step` is one round
    of one step.
    """

    def __init__(
        self,
        limits: BatchLimits,
        step_time: StepTimeModel,
        *,
        eviction: Eviction | None = None,
        gate: Gate | None = None,
        gives_back: bool = False,
        slack: int = 0,
    ) -> None:
        """Start empty.

        Args:
            limits: What fits.
            step_time: How long steps take.
            eviction: Who loses memory first; None: the request of the worst priority, among equals
                the one started latest, as vLLM does. It needs `request` and `forecast` of `add`.
                Beside a gate it is the gate's own, or None: then every step may reach a deadline,
                and steps are planned one by one.
            gate: Who starts, when and in which order, and who loses memory; priorities then say
                nothing. It needs `request` and `forecast` of `add`, too.
            gives_back: Whether an evicted request is the caller's again. Otherwise it waits here
                at its old place and its tokens are computed again.
            slack: Tokens a running request holds room for beyond those it has computed: 1 for the
                papers' model, whose memory counts a token from the step that produces it.

        Raises:
            ValueError: What a gate evicts would be the caller's again.
        """
        if gate is not None and gives_back:
            raise ValueError("gives_back is True, must be False with a gate: it keeps who waits")
        self.limits = limits
        self._step_time = step_time
        self._gives_back = gives_back
        self._slack = slack
        self._work: BatchWork | None = None
        self._sequences: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._decoding = DecodingSet(limits.block_size, slack)
        self._prefilling: Sequence | None = None  # at most one: others wait for the budget it takes
        self._turns: Turns = PriorityTurns(eviction) if gate is None else GateTurns(gate, eviction)
        self._arrivals = 0
        self._starts = 0
        self._plan: Plan | None = None
        self._prefills: list[tuple[Sequence, int]] = []
        self._preempted = False
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
        return len(self._turns)

    @property
    def used_blocks(self) -> int:
        """Blocks in use."""
        return self._decoding.blocks + self._blocks_of_prefilling()

    def held_blocks(self) -> dict[str, int]:
        """Blocks per running request, in the order of their start."""
        clock = self._decoding.clock
        return {
            s.request_id: self._blocks_of(s.offset + clock if s.joined else s.computed)
            for s in self._running.values()
        }

    def tokens(self, request_id: str) -> int:
        """Prompt and output tokens that exist of a request."""
        sequence = self._sequences[request_id]
        return self._decoding.tokens_of(sequence) if sequence.joined else sequence.tokens

    def add(
        self,
        request_id: str,
        prompt_tokens: int,
        output_tokens: int,
        priority: float = 0.0,
        *,
        request: Request | None = None,
        forecast: Forecast | None = None,
        terms: EngineTerms | None = None,
        once_computed: int = 0,
    ) -> None:
        """Queue a request; it can run from the next `begin` on.

        Args:
            request_id: Unique among the requests that are queued or running.
            prompt_tokens: Tokens to prefill, earlier output included.
            output_tokens: Tokens to produce, at least 1.
            priority: Smaller runs first.
            request: What policies may know of it.
            forecast: What policies may know of it.
            terms: What a gate takes over from the cluster: key, class and earlier evictions; None:
                the gate's policy computes the key.
            once_computed: Prompt tokens whose KV it had before, here or elsewhere, and lost.

        Raises:
            ValueError: The id is in use, a size is out of range, or the request can never fit.
        """
        if request_id in self._sequences:
            raise ValueError(f"request {request_id!r} is queued or running already")
        if prompt_tokens < 0 or output_tokens < 1:
            raise ValueError(
                f"request {request_id!r}: prompt_tokens is {prompt_tokens}, must be >= 0, and "
                f"output_tokens is {output_tokens}, must be >= 1"
            )
        if prompt_tokens + output_tokens > self.limits.kv_tokens:
            raise ValueError(
                f"request {request_id!r} needs {prompt_tokens} + {output_tokens} tokens, the KV "
                f"cache holds {self.limits.kv_tokens}"
            )
        self._arrivals += 1
        sequence = Sequence(
            request_id, prompt_tokens, output_tokens, priority, self._arrivals, request, forecast
        )
        sequence.once_computed = once_computed
        self._turns.add(sequence, terms)
        self._sequences[request_id] = sequence

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False when it is unknown.

        Raises:
            RuntimeError: Between `begin` and `complete`.
        """
        self._require_no_plan()
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if request_id in self._running:
            self._stop(sequence)
        self._turns.remove(sequence)
        return True

    def make_room(self) -> list[Evicted]:
        """Evict what must go before the next step of the running requests."""
        self._require_no_plan()
        turns, running, clock = self._turns, self._running, self._decoding.clock
        evicted = [self._evict(sequence) for sequence in turns.overdue(running, clock)]
        while (excess := self._blocks_after_next_step() - self.limits.kv_blocks) > 0:
            gone = turns.victims(running, clock, self._blocks_of, excess)
            evicted += [self._evict(sequence) for sequence in gone]
        # As in vLLM, nobody starts in a step that preempts: but for whom that was done.
        self._preempted = bool(evicted) and not self._gives_back
        if not self._preempted:
            evicted += [self._evict(sequence) for sequence in turns.make_way(running)]
        return evicted

    def begin(self, now: float, max_steps: int | None = None) -> float:
        """Plan the steps until the batch changes, beginning at `now`; returns when they end.

        Args:
            now: Seconds of the caller's clock.
            max_steps: Most steps to plan; None: no limit.

        Raises:
            ValueError: The steps before have not ended at `now`, or the step-time model answered
                with something that is not a duration.
        """
        if now < self._busy_until_s:
            raise ValueError(
                f"step at {now} s, but the step before it ends at {self._busy_until_s} s"
            )
        self._require_no_plan()
        decodes = len(self._decoding)
        self._prefills = self._plan_prefills(self.limits.max_num_batched_tokens - decodes)
        tokens = pairs = 0
        for sequence, chunk in self._prefills:
            tokens += chunk
            pairs += chunk * sequence.computed + chunk * (chunk + 1) // 2
        work = StepWork(tokens, pairs, decodes, self._decoding.context_tokens if decodes else 0)
        steps = int(bool(self._prefills))
        if decodes and not steps:
            # Nothing starts in a step that preempts, but something may in the next.
            alike = 1 if self._preempted else self._steps_alike()
            steps = min(alike, max_steps or self.limits.kv_tokens)
        self._plan = Plan.of(now, steps, work, self._step_time)
        return self._plan.ends_s

    def cut(self, now: float) -> float:
        """Shorten the plan to the step that is in progress at `now`; returns when that ends.

        What is added then starts after it, as in an engine that cannot look ahead.
        """
        assert self._plan is not None, "begin() comes first"
        self._plan = self._plan.cut(now)
        return self._plan.ends_s

    def next_step_ends_s(self, now: float) -> float:
        """When the step in progress at `now` ends; infinite without a plan."""
        return math.inf if self._plan is None else self._plan.next_end_s(now)

    def complete(self) -> Stretch:
        """Account for the planned steps, which have ended."""
        plan, self._plan = self._plan, None
        assert plan is not None, "begin() comes first"
        self._busy_until_s = plan.ends_s
        decoding = self._decoding
        requests = len(decoding) + len(self._prefills)
        if self._work is not None:
            self._work.advanced(plan.steps, requests)
        decoding.advance(plan.steps)
        ended = decoding.ended()
        chunks, prefilled = self._account_prefills()
        if self._work is not None:
            self._work.prefilled(chunks, requests)
            for sequence in prefilled:
                self._work.joined(sequence.request_id, sequence.offset, decoding.clock)
        self._turns.advanced(plan.steps, self._prefilling)
        # Others that have ended a stretch are overdue, and the next `make_room` sees it.
        finished = [s for s in ended if decoding.tokens_of(s) == s.final_tokens]
        finished += [s for s in prefilled if s.tokens == s.final_tokens]
        peak_blocks = self.used_blocks
        for sequence in finished:
            self._stop(sequence)
            self._turns.remove(sequence)
            del self._sequences[sequence.request_id]
        return Stretch(
            started_s=plan.started_s,
            duration_s=plan.duration_s,
            steps=plan.steps,
            work=plan.work,
            prefilled=tuple(s.request_id for s in prefilled),
            finished=tuple(s.request_id for s in finished),
            recomputed={c.request_id: c.recomputed for c in chunks if c.recomputed},
            peak_blocks=peak_blocks,
            chunks=tuple(chunks),
        )

    def _account_prefills(self) -> tuple[list[Chunk], list[Sequence]]:
        """What was prefilled, and the requests whose prefill ended."""
        chunks, prefilled = [], []
        for sequence, tokens in self._prefills:
            start, end = sequence.computed, sequence.computed + tokens
            again = max(0, min(end, sequence.once_computed) - start)
            chunks.append(Chunk(sequence.request_id, start, tokens, again))
            sequence.computed = end
            sequence.once_computed = max(end, sequence.once_computed)
            if end < sequence.tokens:
                self._prefilling = sequence
                continue
            self._prefilling = None
            sequence.tokens += 1
            self._decoding.join(sequence)
            prefilled.append(sequence)
        return chunks, prefilled

    def step(self, now: float) -> StepResult:
        """One round of one step that begins at `now`; nothing, in no time, when there is no work.

        It decides, computes and accounts at once: a caller applies the outputs at `ends_s`.
        """
        evicted = self.make_room()
        decoding = [sequence.request_id for sequence in self._decoding]
        self.begin(now, max_steps=1)
        stretch = self.complete()
        return StepResult(stretch, (*decoding, *stretch.prefilled), tuple(evicted))

    def take_work(self) -> dict[str, RequestWork]:
        """What each request has had computed since the last call; counted from the first one on."""
        if self._work is None:
            self._work = BatchWork()
        return self._work.take(self._decoding.clock)

    def generated(self, now: float) -> dict[str, int]:
        """Output tokens of the running requests that were added with their `request`."""
        steps = 0 if self._plan is None else self._plan.ended(now)
        known = self._decoding.clock + steps + 1
        counts = {
            s.request_id: s.offset + known - s.prompt_tokens
            for s in self._decoding
            if s.request is not None
        }
        for sequence in self._running.values() if len(counts) < len(self._running) else ():
            if sequence.request is not None and not sequence.joined:
                counts[sequence.request_id] = sequence.tokens - sequence.prompt_tokens
        return counts

    def _plan_prefills(self, budget: int) -> list[tuple[Sequence, int]]:
        """The prompt tokens that the next step computes, per request; waiting requests start."""
        prefills: list[tuple[Sequence, int]] = []
        if self._prefilling is not None:
            prefills.append((self._prefilling, self._chunk(self._prefilling, budget)))
            budget -= prefills[0][1]
        if not self.waiting or self._preempted or self._is_full:
            return prefills
        free_blocks = self.limits.kv_blocks - self._blocks_after_next_step()
        while budget > 0 and not self._is_full:
            sequence = self._turns.first()
            if sequence is None:
                break
            free_blocks -= self._blocks_of(sequence.tokens)
            if free_blocks < 0:
                break
            self._turns.start(sequence)
            self._starts += 1
            sequence.started = self._starts
            sequence.prefill_until = sequence.tokens
            self._running[sequence.request_id] = sequence
            prefills.append((sequence, self._chunk(sequence, budget)))
            budget -= prefills[-1][1]
        return prefills

    @property
    def _is_full(self) -> bool:
        return len(self._running) >= self.limits.max_num_seqs

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        return min(sequence.tokens - sequence.computed, budget)

    def _steps_alike(self) -> int:
        """Steps until a request ends, memory runs out or somebody's turn may come."""
        if self._turns.may_change(self._is_full):
            return 1
        decoding = self._decoding
        steps = decoding.steps_to_end
        free_blocks = self.limits.kv_blocks - decoding.blocks
        if decoding.blocks_needed(steps) > free_blocks:
            steps = decoding.steps_within(free_blocks)
        return steps

    def _blocks_of_prefilling(self, more_tokens: int = 0) -> int:
        sequence = self._prefilling
        if sequence is None:
            return 0
        return self._blocks_of(sequence.computed + more_tokens)

    def _blocks_after_next_step(self) -> int:
        """Blocks that the running requests hold once their next step is made."""
        decoding = self._decoding
        blocks = decoding.blocks + decoding.blocks_needed(1)
        if self._prefilling is not None:
            budget = self.limits.max_num_batched_tokens - len(decoding)
            blocks += self._blocks_of_prefilling(self._chunk(self._prefilling, budget))
        return blocks

    def _blocks_of(self, tokens: int) -> int:
        return self.limits.blocks(tokens + self._slack)

    def _evict(self, sequence: Sequence) -> Evicted:
        self._stop(sequence)
        evicted = Evicted(sequence.request_id, sequence.tokens, sequence.computed)
        sequence.computed = 0
        if self._gives_back:
            self._turns.remove(sequence)
            del self._sequences[sequence.request_id]
        else:
            self._turns.evict(sequence)
        return evicted

    def _stop(self, sequence: Sequence) -> None:
        """A running request holds no blocks any more; its counts of tokens are up to date."""
        del self._running[sequence.request_id]
        if sequence is self._prefilling:
            self._prefilling = None
        else:
            if self._work is not None:
                self._work.left(sequence.request_id, self._decoding.clock)
            self._decoding.leave(sequence)

    def _require_no_plan(self) -> None:
        if self._plan is not None:
            raise RuntimeError("complete() the planned steps first")
