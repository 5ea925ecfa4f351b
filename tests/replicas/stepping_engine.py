"""An engine whose every step is known, which reports them as vLLM does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from vllm.v1.metrics.stats import (
    FinishedRequestStats,
    IterationStats,
    RequestStateStats,
    SchedulerIterationDetails,
    SchedulerStats,
)

from replicas.step_log import StepLog
from replicas.step_time import StepWork
from replicas.vllm_steps import VllmSteps


@dataclass
class Sequence:
    """What the steps read of vLLM's `RequestState`, and what the engine below needs."""

    request_id: str
    prompt_len: int
    final_tokens: int
    num_cached_tokens: int = 0
    is_prefilling: bool = True
    stats: RequestStateStats = field(default_factory=RequestStateStats)
    computed: int = 0
    evicted: bool = False
    preempted: bool = False

    @property
    def tokens(self) -> int:
        """Prompt and output tokens."""
        return self.prompt_len + self.stats.num_generation_tokens


class Engine:
    """Continuous batching with chunked prefill; each step takes `seconds` and reports like vLLM.

    Its `watchers` are told the same; `looks` counts how often the first of them looked at all
    requests.
    """

    def __init__(self, budget: int = 1 << 30) -> None:
        self.log = StepLog()
        self.sequences: list[Sequence] = []
        self.looks = 0
        self.steps = VllmSteps(self.log, self._look)
        self.watchers = [self.steps]
        self.truth: list[StepWork] = []
        self.now_s = 100.0
        self.index = 0
        self.budget = budget
        self._added = itertools.count()

    def _look(self) -> list[Sequence]:
        self.looks += 1
        return self.sequences

    def add(self, prompt: int, outputs: int, cached: int = 0, *, told: bool = True) -> Sequence:
        """Queue a request; `told` says whether its beginning is noticed."""
        name = f"r{next(self._added)}"
        sequence = Sequence(name, prompt, prompt + outputs, cached, computed=cached)
        self.sequences.append(sequence)
        if told:
            for steps in self.watchers:
                steps.begin(name, sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Forget a request."""
        self.sequences.remove(sequence)
        for steps in self.watchers:
            steps.end(sequence.request_id)

    def evict(self, sequence: Sequence) -> None:
        """Take a request's memory away, until `resume`."""
        sequence.evicted, sequence.computed = True, 0

    def resume(self, sequence: Sequence, lost: int = 1 << 30) -> None:
        """Begin to compute an evicted request again, of whose tokens so many are not cached."""
        sequence.evicted, sequence.preempted = False, True
        sequence.computed = max(0, sequence.tokens - lost)

    def step(
        self, seconds: float = 0.01, *, delay_s: float = 0.0, extra: int = 0, thrown_away: int = 0
    ) -> StepWork:
        """Run a step.

        Args:
            seconds: It takes so long.
            delay_s: Until its statistics arrive.
            extra: Tokens that the engine reports beyond those that it returns.
            thrown_away: Requests that it reports though they had finished before.
        """
        self.now_s += seconds
        iteration = IterationStats()
        details = SchedulerIterationDetails(self.index, 0, 0, thrown_away, thrown_away + extra, 0.0)
        budget, pairs, context = self.budget, 0, 0
        for sequence in list(self.sequences):
            todo = 0 if sequence.evicted else min(sequence.tokens - sequence.computed, budget)
            if not todo:
                continue
            budget -= todo
            if sequence.is_prefilling:
                details.num_ctx_requests += 1
                details.num_ctx_tokens += todo
                pairs += sum(range(sequence.computed + 1, sequence.computed + todo + 1))
            else:
                details.num_generation_requests += 1
                details.num_generation_tokens += todo
                context += sequence.tokens
            sequence.computed += todo
            if sequence.computed == sequence.tokens:
                self._produce(sequence, iteration)
        self.index += 1
        work = StepWork(details.num_ctx_tokens, pairs, details.num_generation_requests, context)
        stats = SchedulerStats(num_running_reqs=len(self.sequences), iteration_details=details)
        produced = iteration.num_generation_tokens
        for steps in self.watchers:
            steps.observe(stats, iteration if produced else None, self.now_s + delay_s)
        self.truth.append(work)
        return work

    def _produce(self, sequence: Sequence, iteration: IterationStats) -> None:
        stats = sequence.stats
        if sequence.is_prefilling:
            iteration.time_to_first_tokens_iter.append(0.1)
            stats.first_token_ts = self.now_s
        else:
            iteration.inter_token_latencies_iter.append(self.now_s - stats.last_token_ts)
        if sequence.preempted:
            iteration.num_preempted_reqs += 1
        sequence.is_prefilling = sequence.preempted = False
        stats.last_token_ts = self.now_s
        stats.num_generation_tokens += 1
        iteration.num_generation_tokens += 1
        if sequence.tokens == sequence.final_tokens:
            self.sequences.remove(sequence)
            iteration.finished_requests.append(
                FinishedRequestStats(
                    finish_reason=None,
                    num_prompt_tokens=sequence.prompt_len,
                    num_generation_tokens=stats.num_generation_tokens,
                    num_cached_tokens=sequence.num_cached_tokens,
                )
            )

    def logged(self) -> list[StepWork]:
        return [StepWork(*(int(n) for n in row[1:])) for row in self.log.read().tolist()]

    def seconds(self) -> list[float]:
        return self.log.read()[:, 0].tolist()
