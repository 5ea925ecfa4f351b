"""Sharing the energy of steps: what each request is booked against a count step by step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.batch_energy import BatchEnergy, Cost
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.silicon_tables import Deployment, load_silicon_step_time
from replicas.step_shares import StepShares
from replicas.step_time import LinearStepTime, StepWork, UnitStepTime
from replicas.step_weights import weights_of

LINEAR = LinearStepTime(0.5, 0.25, 0.125, 0.0625, 0.03125)
WATTS = 3.0


def engine(requests: list[tuple[int, int]], kv_blocks: int, seqs: int) -> ContinuousBatch:
    batch = ContinuousBatch(BatchLimits(kv_blocks, 2, seqs, 12), LINEAR)
    for number, (prompt, output) in enumerate(requests):
        batch.add(str(number), prompt, output, once_computed=min(prompt, 3) * (number % 2))
    return batch


def booked(batch: ContinuousBatch) -> tuple[dict[str, Cost], float]:
    """Costs by request, the batch run out in stretches as long as they come; and all energy."""
    book, costs, total, now = BatchEnergy(LINEAR), {}, 0.0, 0.0
    while batch.has_work:
        for evicted in batch.make_room():
            book.evicted(evicted.request_id)
        now = batch.begin(now)
        stretch = batch.complete()
        book.book(stretch, WATTS * stretch.duration_s)
        total += WATTS * stretch.duration_s
        costs |= {request_id: book.take(request_id) for request_id in stretch.finished}
    return costs, total


def counted(batch: ContinuousBatch, prompts: list[int]) -> tuple[dict[str, float], float]:
    """Joules by request and wasted ones, counted step by step from what each attends to."""
    joules: Counter[str] = Counter()
    wasted = now = 0.0
    context = dict(enumerate(prompts))
    while batch.has_work:
        step = batch.step(now)
        now = step.stretch.ends_s
        decoding = [i for i in step.produced if i not in step.stretch.prefilled]
        fixed = LINEAR.base_s / (len(decoding) + len(step.stretch.chunks))
        for name in decoding:
            context[int(name)] += 1
            joules[name] += fixed + 0.125 + 0.0625 * context[int(name)]
        for name, start, tokens, again in step.stretch.chunks:
            pairs = sum(start + position for position in range(1, tokens + 1))
            joules[name] += fixed + 0.25 * tokens + 0.03125 * pairs
            pairs = sum(start + position for position in range(1, again + 1))
            wasted += fixed * again / tokens + 0.25 * again + 0.03125 * pairs
            context[int(name)] = start + tokens
    return {name: WATTS * value for name, value in joules.items()}, WATTS * wasted


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 15), st.integers(1, 12)), min_size=1, max_size=7),
    st.integers(14, 30),
    st.integers(1, 5),
)
def test_every_request_is_booked_its_own_work(
    requests: list[tuple[int, int]], kv_blocks: int, seqs: int
) -> None:
    costs, total = booked(engine(requests, kv_blocks, seqs))
    joules, wasted = counted(engine(requests, kv_blocks, seqs), [p for p, _ in requests])
    assert sum(cost.joules for cost in costs.values()) == pytest.approx(total, rel=1e-12)
    assert {name: cost.joules for name, cost in costs.items()} == pytest.approx(joules, rel=1e-9)
    assert sum(cost.wasted_joules for cost in costs.values()) == pytest.approx(wasted, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 15), st.integers(1, 12)), min_size=1, max_size=7),
    st.integers(14, 30),
    st.integers(1, 5),
)
def test_the_simulator_books_as_a_replica_s_account_weighs(
    requests: list[tuple[int, int]], kv_blocks: int, seqs: int
) -> None:
    """Both share by the seconds that the same weights give to the same work."""
    costs, _ = booked(engine(requests, kv_blocks, seqs))
    batch, now = engine(requests, kv_blocks, seqs), 0.0
    batch.take_work()  # counts from now on
    weighed: Counter[str] = Counter()
    while batch.has_work:
        now = batch.step(now).stretch.ends_s
        for name, work in batch.take_work().items():
            weighed[name] += work.prefill_seconds(LINEAR) + work.decode_seconds(LINEAR)
    joules = {name: WATTS * seconds for name, seconds in weighed.items()}
    assert {name: cost.joules for name, cost in costs.items()} == pytest.approx(joules, rel=1e-9)


def test_one_that_leaves_early_keeps_what_it_cost_and_no_more() -> None:
    batch, book = engine([(4, 50), (4, 50)], 100, 4), BatchEnergy(LINEAR)
    total = 0.0
    for leaves in (False, True):
        batch.make_room()
        batch.begin(100.0 * leaves, max_steps=3)
        stretch = batch.complete()
        book.book(stretch, WATTS * stretch.duration_s)
        total += WATTS * stretch.duration_s
    batch.abort("0")
    gone = book.take("0")
    assert gone.joules == pytest.approx(total / 2, rel=0.2)
    batch.make_room()
    batch.begin(200.0, max_steps=5)
    stretch = batch.complete()
    book.book(stretch, WATTS * stretch.duration_s)
    total += WATTS * stretch.duration_s
    assert book.take("0") == Cost()
    assert gone.joules + book.take("1").joules == pytest.approx(total, rel=1e-12)


@given(
    st.integers(0, 500), st.integers(0, 64), st.integers(0, 9000), st.floats(0, 1e6), st.booleans()
)
def test_shares_sum_to_what_was_shared(
    prefill: int, decodes: int, context: int, joules: float, weigh: bool
) -> None:
    weights = LINEAR if weigh else LinearStepTime(0.0, 0.0, 0.0, 0.0)
    requests = decodes + bool(prefill) or 1
    work = StepWork(prefill, prefill * (prefill + 1) // 2, decodes, context * bool(decodes))
    shares = StepShares.of(weights, work, joules, requests=requests)
    booked = requests * shares.per_request + shares.prefill(0, prefill)
    booked += shares.decode(work.context_tokens, decodes)
    assert booked == pytest.approx(joules, rel=1e-12)


def test_what_nobody_computed_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match=r"5 J of 1 steps with 0 requests: both must be at least"):
        StepShares.of(LINEAR, StepWork(0, 0, 0, 0), 5, requests=0)


def test_weights_of_a_step_time_that_is_not_linear_are_fitted_to_it() -> None:
    limits = BatchLimits(4096, 16, 64, 2048)
    assert weights_of(LINEAR, limits) is LINEAR
    assert weights_of(UnitStepTime(), limits).seconds(StepWork(9, 9, 9, 9)) == 1.0
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `simulation`")
    measured = load_silicon_step_time(Deployment("h100_sxm", "meta-llama/Meta-Llama-3.1-8B"))
    fitted = weights_of(measured, limits)
    for work in (StepWork(0, 0, 32, 32 * 700), StepWork(1500, 1500 * 750, 20, 9000)):
        assert fitted.seconds(work) == pytest.approx(measured.seconds(work), rel=0.15)
