import math
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.step_time import LinearStepTime, StepWork, UnitStepTime
from replicas.stretch import StepResult, Stretch

LINEAR = LinearStepTime(
    base_s=0.5,
    per_prefill_token_s=0.25,
    per_decode_token_s=0.125,
    per_kv_token_s=0.0625,
    per_prefill_pair_s=0.03125,
)


def make_batch(
    kv_blocks: int = 100,
    block_size: int = 1,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 100,
) -> ContinuousBatch:
    limits = BatchLimits(kv_blocks, block_size, max_num_seqs, max_num_batched_tokens)
    return ContinuousBatch(limits, LINEAR)


def steps(batch: ContinuousBatch, count: int) -> list[StepResult]:
    results: list[StepResult] = []
    for _ in range(count):
        now = results[-1].stretch.ends_s if results else 0.0
        results.append(batch.step(now))
    return results


def run_out(batch: ContinuousBatch, now: float = 0.0) -> list[StepResult]:
    results: list[StepResult] = []
    while batch.has_work:
        results.append(batch.step(now))
        now = results[-1].stretch.ends_s
        assert len(results) < 10_000, "the batch never runs out of work"
    return results


def preempted(result: StepResult) -> list[str]:
    return [evicted.request_id for evicted in result.evicted]


def finish_order(results: list[StepResult]) -> list[str]:
    return [request_id for result in results for request_id in result.stretch.finished]


@dataclass(frozen=True)
class Sizes:
    prompt_tokens: int
    output_tokens: int
    priority: int


sizes = st.builds(Sizes, st.integers(1, 30), st.integers(1, 30), st.integers(0, 2))


@settings(max_examples=200, deadline=None)
@given(
    block_size=st.integers(1, 8),
    max_num_seqs=st.integers(1, 6),
    spare_blocks=st.integers(0, 20),
    spare_tokens=st.integers(0, 20),
    arrivals=st.lists(st.tuples(sizes, st.integers(0, 5), st.none() | st.integers(0, 20))),
)
def test_memory_stays_within_the_blocks_and_every_request_completes(
    block_size: int,
    max_num_seqs: int,
    spare_blocks: int,
    spare_tokens: int,
    arrivals: list[tuple[Sizes, int, int | None]],
) -> None:
    kv_blocks = -(-60 // block_size) + spare_blocks
    batch = make_batch(kv_blocks, block_size, max_num_seqs, max_num_seqs + spare_tokens)
    produced: Counter[str] = Counter()
    finished: list[str] = []
    now = 0.0

    def check_step() -> None:
        nonlocal now
        held_before = batch.held_blocks()
        result = batch.step(now)
        now = result.stretch.ends_s
        produced.update(result.produced)
        finished.extend(result.stretch.finished)
        assert sum(batch.held_blocks().values()) == batch.used_blocks <= kv_blocks
        assert batch.running <= max_num_seqs
        work = result.stretch.work
        assert work.prefill_tokens + work.decode_tokens <= batch.limits.max_num_batched_tokens
        assert set(preempted(result)) <= set(held_before)
        assert batch.has_work == (batch.running + batch.waiting > 0)

    wanted: dict[str, int] = {}
    for number, (size, pause_steps, aborted) in enumerate(arrivals):
        wanted[str(number)] = size.output_tokens
        batch.add(str(number), size.prompt_tokens, size.output_tokens, size.priority)
        for _ in range(pause_steps):
            check_step()
        if aborted is not None and batch.abort(str(aborted)):
            del wanted[str(aborted)]
            produced.pop(str(aborted), None)
            assert str(aborted) not in batch
    for _ in range(10_000):
        if not batch.has_work:
            break
        check_step()
    assert batch.used_blocks == 0
    assert produced == wanted
    assert sorted(finished) == sorted(wanted)


def test_requests_of_one_priority_start_in_order_of_arrival() -> None:
    batch = make_batch(max_num_seqs=1)
    for name in "cab":
        batch.add(name, 4, 3)
    assert finish_order(run_out(batch)) == ["c", "a", "b"]


@settings(max_examples=100, deadline=None)
@given(requests=st.lists(sizes, max_size=12), budget=st.integers(4, 12))
def test_every_token_is_computed_once_and_the_recomputed_ones_again(
    requests: list[Sizes], budget: int
) -> None:
    batch = make_batch(kv_blocks=60, max_num_seqs=4, max_num_batched_tokens=budget)
    for number, size in enumerate(requests):
        batch.add(str(number), size.prompt_tokens, size.output_tokens, size.priority)
    results = run_out(batch)
    computed = sum(r.stretch.work.prefill_tokens + r.stretch.work.decode_tokens for r in results)
    recomputed = sum(sum(r.stretch.recomputed.values()) for r in results)
    assert computed - recomputed == sum(s.prompt_tokens + s.output_tokens - 1 for s in requests)
    assert (recomputed > 0) == any(r.evicted for r in results)


def test_a_smaller_priority_value_starts_first() -> None:
    batch = make_batch(max_num_seqs=1)
    batch.add("late", 4, 3, priority=1)
    batch.add("early", 4, 3, priority=-1)
    batch.add("middle", 4, 3, priority=0)
    assert finish_order(run_out(batch)) == ["early", "middle", "late"]


def test_without_room_the_request_started_last_is_preempted_and_recomputed() -> None:
    batch = make_batch(kv_blocks=10)
    batch.add("first", 3, 5)
    batch.add("second", 3, 5)
    results = run_out(batch)
    assert [preempted(r) for r in results] == [[], [], [], ["second"], [], [], []]
    # "second" had 3 prompt tokens and 2 outputs computed and a third output not yet.
    assert [r.stretch.recomputed for r in results[5:]] == [{"second": 5}, {}]
    assert [r.stretch.work.prefill_tokens for r in results] == [6, 0, 0, 0, 0, 6, 0]
    assert [r.stretch.work.decode_tokens for r in results] == [0, 2, 2, 1, 1, 0, 1]
    assert [r.stretch.work.context_tokens for r in results] == [0, 8, 10, 6, 7, 0, 7]
    assert [r.stretch.work.prefill_pairs for r in results] == [12, 0, 0, 0, 0, 21, 0]
    assert finish_order(results) == ["first", "second"]


def test_without_room_the_worst_priority_is_preempted_even_when_it_started_first() -> None:
    batch = make_batch(kv_blocks=10)
    batch.add("worse", 3, 5, priority=1)
    batch.step(0.0)
    batch.add("better", 3, 5, priority=0)
    results = run_out(batch, now=100.0)
    assert [i for r in results for i in preempted(r)] == ["worse"]
    assert finish_order(results) == ["better", "worse"]


def test_a_request_that_is_itself_the_worst_gives_up_its_own_blocks() -> None:
    batch = make_batch(kv_blocks=8, max_num_seqs=2)
    batch.add("holder", 5, 2)
    batch.add("grower", 2, 3)
    first, second = steps(batch, 2)
    assert first.produced == ("holder", "grower")
    assert second.produced == ("holder",)
    assert preempted(second) == ["grower"]


def test_nothing_starts_in_a_step_that_preempts() -> None:
    batch = make_batch(kv_blocks=10)
    batch.add("better", 3, 5)
    batch.add("worse", 6, 4, priority=1)
    batch.step(0.0)
    batch.add("small", 2, 1)
    preempting, after = (batch.step(now) for now in (100.0, 200.0))
    assert (preempted(preempting), preempting.produced) == (["worse"], ("better",))
    assert after.produced == ("better", "small")


def test_a_preempted_request_goes_before_later_arrivals() -> None:
    batch = make_batch(kv_blocks=10)
    batch.add("first", 3, 5)
    batch.add("second", 3, 5)
    batch.add("third", 9, 1)
    assert finish_order(run_out(batch)) == ["first", "second", "third"]


def test_a_request_starts_only_when_all_its_known_tokens_fit() -> None:
    batch = make_batch(kv_blocks=10, max_num_batched_tokens=8)
    batch.add("holder", 2, 8)
    batch.step(0.0)
    batch.add("large", 9, 1)
    result = batch.step(100.0)
    assert result.stretch.work.prefill_tokens == 0
    assert batch.held_blocks() == {"holder": 3}


def test_long_prompts_are_prefilled_in_chunks_of_the_token_budget() -> None:
    batch = make_batch(max_num_seqs=2, max_num_batched_tokens=4)
    batch.add("long", 10, 1)
    batch.add("next", 3, 1)
    results = run_out(batch)
    assert [r.stretch.work.prefill_tokens for r in results] == [4, 4, 4, 1]
    assert [r.produced for r in results] == [(), (), ("long",), ("next",)]
    assert not any(r.stretch.recomputed for r in results)


def test_the_step_time_model_sees_the_work_and_sets_the_duration() -> None:
    batch = make_batch()
    batch.add("a", 6, 2)
    prefill, decode = run_out(batch)
    assert prefill.stretch.duration_s == 0.5 + 0.25 * 6 + 0.03125 * 21
    assert decode.stretch.duration_s == 0.5 + 0.125 + 0.0625 * 7
    assert decode.stretch.started_s == prefill.stretch.ends_s


def test_a_step_cannot_begin_before_the_last_one_ended() -> None:
    batch = make_batch()
    batch.add("a", 6, 3)
    ends_s = batch.step(1.0).stretch.ends_s
    with pytest.raises(ValueError, match=f"the step before it ends at {ends_s} s"):
        batch.step(math.nextafter(ends_s, 0.0))
    assert batch.step(ends_s).produced == ("a",)


def test_a_step_without_work_takes_no_time() -> None:
    assert make_batch().step(3.0) == StepResult(Stretch(started_s=3.0))


def test_abort_frees_the_blocks_of_running_and_the_place_of_waiting_requests() -> None:
    batch = make_batch(max_num_seqs=1)
    batch.add("running", 10, 5)
    batch.add("waiting", 10, 5)
    batch.step(0.0)
    assert (batch.running, batch.waiting, batch.used_blocks) == (1, 1, 10)
    assert batch.abort("waiting")
    assert batch.abort("running")
    assert not batch.abort("running")
    assert (batch.running, batch.waiting, batch.used_blocks) == (0, 0, 0)


def test_an_aborted_id_can_be_used_again() -> None:
    batch = make_batch(max_num_seqs=1)
    batch.add("holder", 2, 3)
    batch.add("again", 50, 5)
    batch.abort("again")
    batch.add("again", 2, 1)
    results = run_out(batch)
    assert finish_order(results) == ["holder", "again"]
    assert sum(r.stretch.work.prefill_tokens for r in results) == 4


def test_many_aborted_requests_behind_a_long_one_do_not_hide_the_next() -> None:
    batch = make_batch(kv_blocks=10, max_num_seqs=1)
    batch.add("holder", 1, 9)
    batch.step(0.0)
    for number in range(1000):
        batch.add(str(number), 1, 1)
    for number in range(0, 1000):
        if number != 500:
            batch.abort(str(number))
    assert batch.waiting == 1
    assert finish_order(run_out(batch, now=100.0)) == ["holder", "500"]


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "message"),
    [(-1, 1, "must be >= 0"), (1, 0, "must be >= 1"), (8, 3, r"8 \+ 3 tokens.* holds 10")],
)
def test_impossible_requests_are_refused(
    prompt_tokens: int, output_tokens: int, message: str
) -> None:
    batch = make_batch(kv_blocks=10)
    with pytest.raises(ValueError, match=message):
        batch.add("a", prompt_tokens, output_tokens)
    assert not batch.has_work


def test_an_id_in_use_is_refused() -> None:
    batch = make_batch()
    batch.add("a", 1, 1)
    with pytest.raises(ValueError, match="'a' is queued or running already"):
        batch.add("a", 1, 1)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_step_time_that_is_no_duration_is_refused(seconds: float) -> None:
    class Broken(UnitStepTime):
        def seconds(self, work: StepWork) -> float:
            return seconds

    batch = ContinuousBatch(BatchLimits(10, 1, 1, 10), Broken())
    batch.add("a", 1, 1)
    with pytest.raises(ValueError, match="Broken answered"):
        batch.step(0.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((0, 1, 1, 1), "kv_blocks is 0"),
        ((1, 0, 1, 1), "block_size is 0"),
        ((1, 1, 0, 1), "max_num_seqs is 0"),
        ((1, 1, 4, 3), "max_num_batched_tokens is 3, must be >= max_num_seqs"),
    ],
)
def test_limits_are_checked(limits: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchLimits(*limits)


def test_step_time_coefficients_are_checked() -> None:
    with pytest.raises(ValueError, match="per_kv_token_s is -1"):
        LinearStepTime(0.0, 0.0, 0.0, -1)
