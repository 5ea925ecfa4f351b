"""The incremental count of who decodes in vLLM, held against a look at all requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM")
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from replicas.step_log import StepLog
from replicas.vllm_contexts import Contexts, VllmContexts
from replicas.vllm_steps import VllmSteps
from tests.replicas.stepping_engine import Engine, Sequence


class LookingAtAll(VllmContexts):
    """Looks at every request in every step."""

    def observe(self, iteration: IterationStats | None, *, one_each: bool) -> Contexts:
        self.missed()
        return super().observe(iteration, one_each=one_each)


def compared(budget: int) -> tuple[Engine, StepLog]:
    """An engine, and what whoever looks at all its requests in every step logs."""
    engine, log = Engine(budget), StepLog()
    looking = VllmSteps(log, lambda: engine.sequences)
    looking._contexts = LookingAtAll(lambda: engine.sequences)
    engine.watchers.append(looking)
    return engine, log


def happen(engine: Engine, what: str, number: int) -> None:
    """Something between two steps; `number` says to whom, or how long."""
    running = [s for s in engine.sequences if s.computed and not s.evicted]
    evicted = [s for s in engine.sequences if s.evicted]

    def chosen(sequences: list[Sequence]) -> list[Sequence]:
        return [sequences[number % len(sequences)]] if sequences else []

    if what in ("add", "add unnoticed"):
        prompt = 1 + number % 40
        told = what == "add"
        engine.add(prompt, 1 + number // 3 % 9, cached=number % prompt, told=told)
    for sequence in chosen(running):
        if what == "evict":
            engine.evict(sequence)
        elif what == "stop early":
            sequence.final_tokens = sequence.tokens + 1
    for sequence in chosen(evicted) if what == "resume" else []:
        engine.resume(sequence, lost=1 + number % 4)
    for sequence in chosen(engine.sequences) if what == "abort" else []:
        engine.abort(sequence)


HAPPENINGS = st.tuples(
    st.sampled_from(
        ["add", "add", "add", "add unnoticed", "evict", "resume", "resume", "stop early", "abort"]
    ),
    st.integers(0, 400),
)
STEPS = st.lists(
    st.tuples(st.lists(HAPPENINGS, max_size=3), st.integers(0, 19).map(lambda n: int(n == 0))),
    min_size=5,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.one_of(st.integers(12, 60), st.just(1 << 30)))
def test_the_count_logs_what_a_look_at_all_requests_logs(steps, budget: int) -> None:
    engine, looking = compared(budget)
    for happenings, thrown_away in steps:
        for what, number in happenings:
            happen(engine, what, number)
        engine.step(thrown_away=thrown_away)
        assert engine.log.read().tolist() == looking.read().tolist()


def test_requests_that_start_and_end_are_counted_without_a_look_at_the_others() -> None:
    engine = Engine(budget=64)
    for number in range(40):
        engine.add(5 + number, 1 + 3 * number)
        engine.step()
    while engine.sequences:
        engine.step(thrown_away=1)
        engine.step()
    assert engine.looks == 0
    assert len(engine.logged()) > 40


def test_who_waits_evicted_is_not_counted_beside_the_last_one_that_finishes() -> None:
    engine = Engine()
    engine.add(10, 9)
    engine.step()
    victim = engine.add(1000, 30)
    for _ in range(3):
        engine.step()
    engine.evict(victim)
    while len(engine.sequences) > 1:
        engine.step()
    assert engine.logged() == engine.truth[1:]


def test_output_that_came_without_a_step_is_made_up_for() -> None:
    engine, looking = compared(1 << 30)
    engine.add(10, 40)
    engine.add(20, 40)
    for _ in range(3):
        engine.step()
    watchers, engine.watchers = engine.watchers, []
    engine.step()
    engine.watchers = watchers
    engine.index -= 1
    for steps in watchers:
        steps.observe(SchedulerStats(), IterationStats(), engine.now_s)
    engine.step()
    assert engine.log.read().tolist() == looking.read().tolist()
    assert engine.logged()[-1] == engine.truth[-1]


def test_a_request_that_goes_on_in_the_place_of_another_is_seen() -> None:
    engine, looking = compared(1 << 30)
    engine.add(10, 40)
    first, second = engine.add(500, 40), engine.add(30, 40)
    for _ in range(3):
        engine.step()
    engine.evict(first)
    engine.step()
    engine.evict(second)
    engine.resume(first, lost=1)  # the rest is still cached
    engine.step()
    engine.step()
    assert engine.logged() == engine.truth[1:]
    assert engine.log.read().tolist() == looking.read().tolist()
