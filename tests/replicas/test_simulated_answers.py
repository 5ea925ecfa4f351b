"""What a simulated engine answers: how long, with which tokens, or why not."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.protocol import Generation
from tests.replicas.simulated_engines import answer, answers, make_generation, make_options


@pytest.mark.parametrize(
    ("output_tokens", "max_tokens", "tokens", "reason"),
    [(7, 50, 7, "stop"), (50, 50, 50, "stop"), (51, 50, 50, "length"), (1, 1, 1, "stop")],
)
def test_length_and_finish_reason(
    output_tokens: int, max_tokens: int, tokens: int, reason: str
) -> None:
    delta = answer(make_generation(output_tokens=output_tokens, max_tokens=max_tokens))
    assert len(delta.token_ids) == tokens
    assert delta.finish_reason == reason
    assert delta.text == "".join(f" w{token}" for token in delta.token_ids)


def test_ignore_eos_and_min_tokens_lengthen_the_answer() -> None:
    whole = answer(make_generation(output_tokens=3, max_tokens=20, ignore_eos=True))
    assert (len(whole.token_ids), whole.finish_reason) == (20, "length")
    longer = answer(make_generation(output_tokens=3, max_tokens=20, min_tokens=8))
    assert (len(longer.token_ids), longer.finish_reason) == (8, "stop")


def test_max_tokens_none_means_the_rest_of_the_model_length() -> None:
    delta = answer(make_generation(max_tokens=None, ignore_eos=True))
    assert len(delta.token_ids) == 200 - 3


def test_drawn_lengths_follow_the_documented_distribution() -> None:
    options = make_options(
        max_model_len=100_000,
        kv_blocks=25_000,
        max_num_seqs=2000,
        max_num_batched_tokens=10_000,
        output_median_tokens=40.0,
        output_log_sigma=0.5,
    )
    ids = [f"r{number}" for number in range(1000)]
    drawn = answers([make_generation(i, max_tokens=10_000) for i in ids], options)
    logs = [math.log(len(drawn[i].token_ids)) for i in ids]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs))
    assert abs(mean - math.log(40)) < 4 * 0.5 / math.sqrt(1000)
    assert abs(spread - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_drawn_lengths_depend_on_request_and_seed_only() -> None:
    ids = [f"r{number}" for number in range(20)]

    def lengths(seed: int, prompt: Sequence[int]) -> list[int]:
        options = make_options(seed=seed, output_median_tokens=20.0)
        merged = answers([make_generation(i, prompt) for i in ids], options)
        return [len(merged[i].token_ids) for i in ids]

    assert lengths(1, [1, 2]) == lengths(1, [3, 4, 5])
    assert lengths(1, [1, 2]) != lengths(2, [1, 2])
    assert max(lengths(1, [1, 2])) <= 50


def test_tokens_depend_on_the_prompt() -> None:
    one, other = (
        answer(make_generation(prompt=p, output_tokens=10)) for p in ([1, 2, 3], [1, 2, 4])
    )
    assert one.token_ids != other.token_ids
    assert all(0 <= token < 32_000 for token in one.token_ids)


@settings(max_examples=30, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 31_999), min_size=1, max_size=40),
    cut=st.integers(0, 50),
    max_tokens=st.integers(1, 50),
)
def test_a_continued_request_gives_the_same_tokens_on_another_engine(
    prompt: list[int], cut: int, max_tokens: int
) -> None:
    whole = answer(make_generation(prompt=prompt, max_tokens=max_tokens))
    tail = whole.token_ids[:cut]
    other = make_options(kv_blocks=40, block_size=8, max_num_batched_tokens=9)
    rest = answer(
        make_generation(prompt=prompt, tail=tail, max_tokens=max_tokens, attempt=2), other
    )
    assert tail + rest.token_ids == whole.token_ids
    assert rest.finish_reason == whole.finish_reason
    assert rest.attempt == 2


def test_preempted_requests_complete_with_the_same_tokens() -> None:
    generations = [make_generation(f"r{n}", [n], output_tokens=40) for n in range(6)]
    roomy = answers(generations)
    tight = answers(generations, make_options(kv_blocks=20))
    assert {i: d.token_ids for i, d in tight.items()} == {i: d.token_ids for i, d in roomy.items()}
    assert all(d.preemptions == d.recomputed_tokens == 0 for d in roomy.values())
    preempted = [d for d in tight.values() if d.preemptions]
    assert preempted
    assert all(d.recomputed_tokens >= d.preemptions for d in preempted)
    assert tight["r0"].preemptions == 0


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (make_generation(prompt=range(150), max_tokens=51), "is 201, over max_model_len of 200"),
        (make_generation(prompt=range(250), max_tokens=None), "over max_model_len of 200"),
        (make_generation(max_tokens=0), "max_tokens is 0"),
        (make_generation(output_tokens=0), "simulated_output_tokens is 0"),
        (make_generation(prompt=()), "prompt is 0 bytes"),
        (make_generation(prompt=(), tail=(1, 2)), r"generated_tokens is 2, must be in 0..1"),
        (Generation("r", "c", b"12345"), "prompt is 5 bytes"),
        (make_generation(min_tokens="many"), "min_tokens is 'many'"),
    ],
)
def test_impossible_requests_get_an_error_and_others_run(
    generation: Generation, message: str
) -> None:
    merged = answers([generation, make_generation("good", output_tokens=2)])
    assert merged["r"].finish_reason == "error"
    assert message in (merged["r"].error or "")
    assert len(merged["good"].token_ids) == 2


def test_a_request_larger_than_the_kv_cache_is_refused_by_that_name() -> None:
    delta = answer(make_generation(max_tokens=80), make_options(kv_blocks=20))
    assert "is 83, over the KV cache (kv_blocks x block_size) of 80 tokens" in (delta.error or "")


def test_a_continued_request_that_was_complete_ends_at_once() -> None:
    whole = answer(make_generation(output_tokens=9))
    again = answer(make_generation(output_tokens=9, tail=whole.token_ids, attempt=2))
    assert (again.token_ids, again.finish_reason) == ([], "stop")
