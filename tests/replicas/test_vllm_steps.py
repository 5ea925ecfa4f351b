"""Reading steps from vLLM's statistics, with a scheduler whose every step is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from replicas.step_log import StepLog
from replicas.step_time import StepWork
from replicas.vllm_steps import VllmSteps

pytest.importorskip("vllm", reason="needs vLLM")
from vllm.v1.metrics.stats import (
    FinishedRequestStats,
    IterationStats,
    RequestStateStats,
    SchedulerIterationDetails,
    SchedulerStats,
)


@dataclass
class Sequence:
    """What the steps read of vLLM's `RequestState`, and what the engine below needs."""

    prompt_len: int
    final_tokens: int
    num_cached_tokens: int = 0
    is_prefilling: bool = True
    stats: RequestStateStats = field(default_factory=RequestStateStats)
    computed: int = 0
    evicted: bool = False


class Engine:
    """Continuous batching with chunked prefill; each step takes `seconds` and reports like vLLM."""

    def __init__(self, budget: int = 1 << 30) -> None:
        self.log = StepLog()
        self.sequences: list[Sequence] = []
        self.steps = VllmSteps(self.log, lambda: self.sequences)
        self.truth: list[StepWork] = []
        self.now_s = 100.0
        self.index = 0
        self.budget = budget

    def add(self, prompt: int, outputs: int, cached: int = 0) -> Sequence:
        sequence = Sequence(prompt, prompt + outputs, cached, computed=cached)
        self.sequences.append(sequence)
        return sequence

    def step(self, seconds: float = 0.01, *, delay_s: float = 0.0, extra: int = 0) -> StepWork:
        """Run a step.

        Args:
            seconds: It takes so long.
            delay_s: Until its statistics arrive.
            extra: Tokens that the engine reports beyond those that it returns.
        """
        self.now_s += seconds
        iteration = IterationStats()
        details = SchedulerIterationDetails(self.index, 0, 0, 0, extra, 0.0)
        budget, pairs, context = self.budget, 0, 0
        for sequence in list(self.sequences):
            tokens = sequence.prompt_len + sequence.stats.num_generation_tokens
            todo = min(tokens - sequence.computed, budget)
            budget -= todo
            if not todo or sequence.evicted:
                continue
            if sequence.is_prefilling:
                details.num_ctx_requests += 1
                details.num_ctx_tokens += todo
                pairs += sum(range(sequence.computed + 1, sequence.computed + todo + 1))
            else:
                details.num_generation_requests += 1
                details.num_generation_tokens += 1
                context += tokens
            sequence.computed += todo
            if sequence.computed == tokens:
                self._produce(sequence, iteration)
        self.index += 1
        work = StepWork(details.num_ctx_tokens, pairs, details.num_generation_requests, context)
        stats = SchedulerStats(num_running_reqs=len(self.sequences), iteration_details=details)
        produced = iteration.num_generation_tokens
        self.steps.observe(stats, iteration if produced else None, self.now_s + delay_s)
        self.truth.append(work)
        return work

    def _produce(self, sequence: Sequence, iteration: IterationStats) -> None:
        stats = sequence.stats
        if sequence.is_prefilling:
            iteration.time_to_first_tokens_iter.append(0.1)
            stats.first_token_ts = self.now_s
        else:
            iteration.inter_token_latencies_iter.append(self.now_s - stats.last_token_ts)
        sequence.is_prefilling = False
        stats.last_token_ts = self.now_s
        stats.num_generation_tokens += 1
        iteration.num_generation_tokens += 1
        if sequence.prompt_len + stats.num_generation_tokens == sequence.final_tokens:
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


def test_every_step_after_the_first_is_logged_with_its_work():
    engine = Engine()
    engine.add(10, 6)
    engine.step()
    engine.add(7, 3)
    engine.add(20, 1)
    while engine.sequences:
        engine.step()
    assert engine.logged() == engine.truth[1:]
    assert engine.truth[1] == StepWork(27, 28 + 210, 1, 11)
    assert engine.seconds() == pytest.approx([0.01] * len(engine.truth[1:]))


def test_chunks_of_prompts_make_the_pairs_that_they_attend_to():
    engine = Engine(budget=16)
    engine.add(4, 30)
    engine.step()
    for prompt in (50, 9, 3, 40):
        engine.add(prompt, 5)
    while engine.sequences:
        engine.step()
    assert engine.logged() == engine.truth[1:]
    assert sum(work.prefill_pairs for work in engine.logged()) == sum(
        n * (n + 1) // 2 for n in (50, 9, 3, 40)
    )


def test_cached_tokens_are_attended_to_but_not_computed():
    engine = Engine()
    engine.add(4, 30)
    engine.step()
    engine.add(50, 5, cached=32)
    assert engine.step().prefill_tokens == 18
    assert engine.logged() == engine.truth[1:]


def test_requests_that_come_and_go_at_once_are_told_apart():
    engine = Engine()
    engine.add(10, 3)
    engine.step()
    engine.step()
    engine.add(90, 8)  # joins in the step in which the first one ends
    for _ in range(4):
        engine.step()
    assert engine.logged() == engine.truth[1:]


def test_an_aborted_request_is_no_longer_counted():
    engine = Engine()
    engine.add(10, 30)
    gone = engine.add(1000, 30)
    for _ in range(5):
        engine.step()
    engine.sequences.remove(gone)
    engine.step()
    engine.step()
    assert engine.logged() == engine.truth[1:]


def test_an_evicted_request_is_not_counted_while_it_waits():
    engine = Engine()
    engine.add(10, 30)
    victim = engine.add(1000, 30)
    for _ in range(3):
        engine.step()
    victim.evicted = True
    engine.step()
    engine.step()
    assert engine.logged() == engine.truth[1:]


def test_a_step_after_an_idle_gap_is_not_logged():
    engine = Engine()
    engine.add(10, 2)
    engine.step()
    engine.step()
    engine.now_s += 5
    engine.add(10, 2)
    engine.step()
    engine.step()
    assert engine.logged() == [engine.truth[1], engine.truth[3]]


def test_steps_whose_predecessor_was_not_seen_are_not_logged():
    engine = Engine()
    engine.add(10, 20)
    engine.step()
    engine.step()
    engine.index += 1
    engine.step()
    engine.step()
    assert len(engine.logged()) == 2


def test_tokens_that_are_computed_again_or_thrown_away_are_not_logged():
    engine = Engine()
    engine.add(10, 20)
    engine.step()
    engine.step(extra=40)
    engine.step()
    assert engine.logged() == [engine.truth[2]]


def test_durations_are_the_engines_own_not_those_of_the_messages():
    engine = Engine()
    engine.add(10, 20)
    for delay_s in (0.0, 0.5, 0.1, 0.7):
        engine.step(0.02, delay_s=delay_s)
    assert engine.seconds() == pytest.approx([0.02] * 3)


def test_what_says_nothing_of_a_step_is_ignored():
    engine = Engine()
    engine.add(10, 20)
    engine.step()
    engine.steps.observe(None, None, 0.0)
    engine.steps.observe(SchedulerStats(), None, 0.0)
    dummy = SchedulerIterationDetails(99, 0, 0, 0, 0, 0.0, is_dummy=True)
    engine.steps.observe(SchedulerStats(iteration_details=dummy), None, 0.0)
    engine.step()
    assert engine.logged() == [engine.truth[1]]


def test_the_log_keeps_the_latest_steps():
    log = StepLog(kept=3)
    for n in range(5):
        log.append(0.1 * n, StepWork(n, n, n, n))
    assert log.read()[:, 1].tolist() == [2, 3, 4]
    assert StepLog().read().shape == (0, 5)
