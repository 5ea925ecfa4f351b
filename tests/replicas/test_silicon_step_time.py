import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas.silicon_step_time import SiliconStepTime, StepTables
from replicas.step_time import StepWork

BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (2, 8, 64, 512, 4096)
TOKENS = (1, 4, 16, 64, 256, 1024)
LENGTHS = (1, 4, 16, 64, 256, 1024)


def tables(**changes) -> StepTables:
    """A device whose dense part is flat up to 64 tokens, and attention that has kinks."""
    values = StepTables(
        label="silicon: test",
        tokens=TOKENS,
        dense_s=[max(0.01, n * 1e-4) for n in TOKENS],
        logits_s=[1e-3 + n * 1e-6 for n in TOKENS],
        decode_batches=BATCHES,
        decode_contexts=CONTEXTS,
        decode_attention_s=[[1e-4 + 1e-6 * max(0, b * s - 256) for s in CONTEXTS] for b in BATCHES],
        prefill_lengths=LENGTHS,
        prefill_tokens=TOKENS,
        prefill_attention_s=[
            [1e-4 + n * (length + 1) / 2 * 1e-7 for n in TOKENS] for length in LENGTHS
        ],
        measured_tokens=1024,
        measured_decode={1: 4096, 4: 512, 16: 64},
        measured_prefill={1: 1024, 4: 256},
    )
    return replace(values, **changes)


def decode(requests: int, context: int) -> StepWork:
    return StepWork(0, 0, requests, requests * context)


def prompts(count: int, length: int) -> StepWork:
    return StepWork(count * length, count * length * (length + 1) // 2, 0, 0)


@pytest.mark.parametrize(("row", "requests"), list(enumerate(BATCHES)))
@pytest.mark.parametrize(("column", "context"), list(enumerate(CONTEXTS)))
def test_a_measured_decode_step_is_its_own_sum(row, requests, column, context):
    table = tables()
    dense = max(0.01, requests * 1e-4)
    expected = dense + 1e-3 + requests * 1e-6 + table.decode_attention_s[row][column]
    assert SiliconStepTime(table).seconds(decode(requests, context)) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "length"), [(1, 64), (4, 16), (3, 100), (1, 1000), (2, 7)])
def test_prefill_attention_that_is_linear_in_pairs_is_reproduced_everywhere(count, length):
    work = prompts(count, length)
    model = SiliconStepTime(tables())
    dense = max(0.01, 1e-4 * work.prefill_tokens)
    expected = dense + 1e-3 + 1e-6 + 1e-4 + work.prefill_pairs * 1e-7
    assert model.seconds(work) == pytest.approx(expected)


def test_a_chunk_late_in_a_prompt_costs_more_than_its_first_chunk():
    model = SiliconStepTime(tables())
    first, late = (StepWork(64, 64 * before + 64 * 65 // 2, 0, 0) for before in (0, 900))
    assert model.seconds(late) - model.seconds(first) == pytest.approx(64 * 900 * 1e-7)


def test_a_mixed_step_runs_the_dense_part_once():
    model = SiliconStepTime(tables())
    prefill, decoding = prompts(1, 16), decode(8, 512)
    mixed = StepWork(*(a + b for a, b in zip(prefill, decoding, strict=True)))
    apart = model.seconds(prefill) + model.seconds(decoding)
    # Up to 64 tokens the dense part is flat, so one of the two is saved, and one set of logits.
    assert model.seconds(mixed) == pytest.approx(apart - 0.01 - 1e-3 - 1e-6 + 1e-6, rel=1e-3)
    assert model.seconds(mixed) > model.seconds(decoding)


@given(
    requests=st.integers(1, 40),
    context=st.integers(1, 6000),
    steps=st.integers(0, 3000),
)
def test_many_decode_steps_are_the_sum_of_single_ones(requests, context, steps):
    model = SiliconStepTime(tables())
    total = sum(model.seconds(decode(requests, context + i)) for i in range(steps))
    assert model.decode_seconds(requests, requests * context, steps) == pytest.approx(total, 5e-3)


@given(
    requests=st.integers(1, 40),
    context_tokens=st.integers(40, 200_000),
    steps=st.integers(0, 10_000),
    more=st.integers(1, 500),
)
def test_more_decode_steps_take_longer(requests, context_tokens, steps, more):
    model = SiliconStepTime(tables())
    shorter = model.decode_seconds(requests, context_tokens, steps)
    assert model.decode_seconds(requests, context_tokens, steps + more) > shorter


@given(requests=st.integers(1, 40), context_tokens=st.integers(40, 200_000))
def test_one_decode_step_is_that_step(requests, context_tokens):
    model = SiliconStepTime(tables())
    step = model.seconds(StepWork(0, 0, requests, context_tokens))
    assert model.decode_seconds(requests, context_tokens, 1) == step
    assert model.decode_seconds(requests, context_tokens, 0) == 0.0


@given(
    prefill=st.integers(0, 3000),
    keys=st.integers(1, 3000),
    requests=st.integers(0, 60),
    context=st.integers(1, 9000),
)
def test_every_step_takes_a_positive_time_and_more_context_no_less(
    prefill, keys, requests, context
):
    model = SiliconStepTime(tables())
    work = StepWork(prefill, prefill * keys, requests, requests * context)
    if prefill + requests:
        assert 0.01 <= model.seconds(work) < 100
        longer = work._replace(context_tokens=work.context_tokens + requests)
        assert model.seconds(longer) >= model.seconds(work)
    else:
        assert model.seconds(work) == 0.0


@pytest.mark.parametrize(
    ("work", "covered"),
    [
        (decode(1, 4096), True),
        (decode(1, 4097), False),
        (decode(2, 512), True),
        (decode(2, 513), False),  # beyond what was measured for the next larger batch
        (decode(16, 64), True),
        (decode(17, 2), False),
        (prompts(1, 1024), True),
        (prompts(1, 1025), False),
        (prompts(4, 256), True),
        (prompts(2, 400), False),
        (StepWork(64, 64 * 960 + 64 * 65 // 2, 0, 0), True),
        (StepWork(64, 64 * 961 + 64 * 65 // 2, 0, 0), False),
        (StepWork(1000, 1000 * 1001 // 2, 16, 64 * 16), True),
        (StepWork(1010, 1010 * 1011 // 2, 16, 64 * 16), False),
    ],
)
def test_covers_what_was_measured(work, covered):
    assert SiliconStepTime(tables()).covers(work) is covered


def test_travels_to_another_process():
    model = SiliconStepTime(tables())
    model.seconds(decode(3, 100))
    copy = pickle.loads(pickle.dumps(model))
    assert copy.seconds(decode(3, 100)) == model.seconds(decode(3, 100))
    assert copy.label == "silicon: test"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_s": [0.01] * 5}, "dense_s"),
        ({"logits_s": [0.02, 0.01, 0.03, 0.04, 0.05, 0.06]}, "logits_s"),
        ({"dense_s": [-1.0, 0, 0, 0, 0, 0]}, "dense_s"),
        ({"dense_s": [0.0, 0, 0, 0, 0, float("nan")]}, "dense_s"),
        ({"decode_attention_s": [[1.0] * 5] * 4}, "decode_attention_s"),
        ({"prefill_attention_s": [[1.0] * 5] * 6}, "prefill_attention_s"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tables(**changes)
