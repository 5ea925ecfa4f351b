"""Reading steps from vLLM's statistics, with a scheduler whose every step is known."""

from __future__ import annotations

import pytest

from replicas.step_log import StepLog
from replicas.step_time import StepWork

pytest.importorskip("vllm", reason="needs vLLM")
from vllm.v1.metrics.stats import SchedulerIterationDetails, SchedulerStats

from tests.replicas.stepping_engine import Engine


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
    engine.abort(gone)
    engine.step()
    engine.step()
    assert engine.logged() == engine.truth[1:]


def test_an_evicted_request_is_not_counted_while_it_waits():
    engine = Engine()
    engine.add(10, 30)
    victim = engine.add(1000, 30)
    for _ in range(3):
        engine.step()
    engine.evict(victim)
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
