"""Work by request from vLLM's statistics, with a scheduler whose every step is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas.request_work import NO_REQUEST_WORK, RequestWork, Worked
from replicas.vllm_work import VllmWork

pytest.importorskip("vllm", reason="needs vLLM")
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.metrics.stats import (
    RequestStateStats,
    SchedulerIterationDetails,
    SchedulerStats,
)

STEP_S = 0.25


@dataclass
class Sequence:
    """What is read of vLLM's `RequestState`, and what the engine below needs."""

    name: str
    prompt_len: int
    num_cached_tokens: int
    stats: RequestStateStats = field(default_factory=RequestStateStats)
    computed: int = 0
    to_say: int = 0  # preemptions, told with the next token

    @property
    def tokens(self) -> int:
        return self.prompt_len + int(self.stats.num_generation_tokens)


class Engine:
    """Continuous batching with chunked prefill that reports as vLLM does, and knows the truth."""

    def __init__(self, budget: int = 1 << 30) -> None:
        self.work = VllmWork()
        self.running: list[Sequence] = []
        self.truth: dict[str, RequestWork] = {}
        self.budget = budget
        self.index = 0
        self.now_s = 100.0

    def add(self, name: str, prompt: int, cached: int = 0) -> None:
        sequence = Sequence(name, prompt, cached, computed=cached)
        self.running.append(sequence)
        self.truth[name] = NO_REQUEST_WORK
        self.work.begin(name, cast(RequestState, sequence))

    def end(self, name: str) -> None:
        self.running = [s for s in self.running if s.name != name]
        self.work.end(name)

    def evict(self, name: str) -> None:
        for sequence in self.running:
            if sequence.name == name:
                sequence.computed = 0
                sequence.to_say += 1

    def step(self) -> None:
        details = SchedulerIterationDetails(self.index, 0, 0, 0, 0, 0.0)
        budget = self.budget
        todo: list[tuple[Sequence, int]] = []
        for sequence in self.running:
            tokens = min(sequence.tokens - sequence.computed, budget)
            budget -= tokens
            if tokens:
                todo.append((sequence, tokens))
        for sequence, tokens in todo:
            if sequence.stats.num_generation_tokens:
                details.num_generation_requests += 1
                details.num_generation_tokens += tokens
            else:
                details.num_ctx_requests += 1
                details.num_ctx_tokens += tokens
            self._compute(sequence, tokens, 1 / len(todo))
        self.now_s += STEP_S
        details.elapsed_ms = 1e3 * STEP_S
        self.index += 1
        stats = SchedulerStats(num_running_reqs=len(self.running), iteration_details=details)
        self.work.observe(stats, self.now_s)

    def _compute(self, sequence: Sequence, tokens: int, share: float) -> None:
        stats = sequence.stats
        begin, end = sequence.computed, sequence.computed + tokens
        decodes = begin > 0 and tokens == 1 and stats.num_generation_tokens
        pairs = sum(range(begin + 1, end + 1))
        self.truth[sequence.name] = self.truth[sequence.name].plus(
            RequestWork(decode_shares=share, decode_tokens=1, context_tokens=end)
            if decodes
            else RequestWork(share, tokens, pairs, tokens if stats.num_generation_tokens else 0)
        )
        sequence.computed = end
        if end == sequence.tokens:
            stats.num_generation_tokens += 1
            stats.num_preemptions += sequence.to_say
            sequence.to_say = 0

    def take(self) -> Worked:
        return self.work.take(self.now_s)


def test_requests_that_run_together_get_exactly_their_work() -> None:
    engine = Engine()
    engine.add("a", 10)
    engine.step()
    engine.add("b", 7, cached=3)
    engine.step()
    engine.step()
    worked = engine.take()
    assert worked.at_s == engine.now_s
    assert [(step.seconds, step.tokens) for step in worked.steps] == [
        (STEP_S, 10),
        (STEP_S, 5),
        (STEP_S, 2),
    ]
    assert (worked.unowned, worked.abandoned) == (NO_REQUEST_WORK, False)
    for name, truth in engine.truth.items():
        told = worked.requests[name]
        assert told._replace(prefill_shares=0, decode_shares=0) == truth._replace(
            prefill_shares=0, decode_shares=0
        )
    shares = sum(w.prefill_shares + w.decode_shares for w in worked.requests.values())
    assert shares == pytest.approx(5 * (1 + 0.5 + 0.5) / 3), "five parts of a mean step"
    for _ in range(4):
        engine.step()
    alike = engine.take().requests
    assert alike["a"].decode_shares == alike["b"].decode_shares == 2.0
    assert engine.take().requests == {}


def test_a_long_prompt_is_nobodys_until_its_owner_claims_it() -> None:
    engine = Engine(budget=16)
    engine.add("a", 40)
    engine.step()
    first = engine.take()
    assert first.requests == {}
    assert first.unowned == RequestWork(1.0, 16, 136)
    assert engine.take().unowned == NO_REQUEST_WORK
    engine.step()
    assert engine.take().unowned == RequestWork(1.0, 16, 32 * 33 // 2 - 136)
    engine.step()
    last = engine.take()
    assert (last.unowned, last.abandoned) == (NO_REQUEST_WORK, False)
    assert last.requests["a"].begun_tokens == 32
    assert last.requests["a"].prefill_tokens == 8


def test_a_prompt_that_was_given_up_is_abandoned() -> None:
    engine = Engine(budget=16)
    engine.add("a", 10)
    engine.step()
    engine.add("b", 40)
    engine.step()
    assert engine.take().unowned.prefill_tokens == 15
    engine.end("b")
    engine.step()
    assert engine.take().abandoned
    assert not engine.take().abandoned


@pytest.mark.parametrize("found", [0, 20])
def test_what_a_preempted_request_computes_again_is_told_with_its_next_token(found: int) -> None:
    engine = Engine()
    engine.add("a", 30)
    for _ in range(5):
        engine.step()
    engine.take()
    engine.evict("a")
    engine.running[0].computed = found  # still in the prefix cache
    engine.step()
    work = engine.take().requests["a"]
    assert work.recomputed_tokens == 35 - found - 1 == work.prefill_tokens
    assert engine.take().requests == {}


def test_what_ended_between_two_questions_is_told() -> None:
    engine = Engine()
    engine.add("a", 10)
    engine.step()
    engine.end("a")
    engine.add("a", 4)  # as its next attempt
    engine.step()
    assert engine.take().requests["a"].prefill_tokens == 14
    assert engine.take().requests == {}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 60)),
            st.tuples(st.just("end"), st.integers(0, 20)),
            st.tuples(st.just("step"), st.integers(1, 4)),
            st.tuples(st.just("take"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_no_token_is_lost_or_told_twice(happened: list[tuple[str, int]]) -> None:
    engine = Engine(budget=16)
    told, begun = NO_REQUEST_WORK, 0

    def take() -> None:
        nonlocal told, begun
        worked = engine.take()
        for work in (*worked.requests.values(), worked.unowned):
            told = told.plus(work)
        begun += worked.unowned.prefill_tokens
        assert sum(w.begun_tokens for w in worked.requests.values()) <= begun

    for number, (what, amount) in enumerate(happened):
        match what:
            case "add":
                engine.add(str(number), amount)
            case "end":
                engine.end(str(amount))
            case "step":
                for _ in range(amount):
                    engine.step()
            case "take":
                take()
    take()
    truth = NO_REQUEST_WORK
    for work in engine.truth.values():
        truth = truth.plus(work)
    assert told.prefill_tokens == truth.prefill_tokens
    assert (told.decode_tokens, told.context_tokens) == (truth.decode_tokens, truth.context_tokens)
