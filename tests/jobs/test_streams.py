"""What a stream is compared with, and that differences are seen."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.call import GenerationError, GenerationRequest
from jobs.known_answers import answer_to, request_of, text_of, tokens_of
from jobs.streams import Stream

REQUEST = request_of("seen", 3, output_tokens=12)
ANSWER = answer_to(REQUEST)


def stream(tokens: list[int], finish_reason: str = "stop", **fields: Any) -> Stream:
    return Stream(
        REQUEST,
        0.0,
        token_ids=tokens,
        text=fields.pop("text", text_of(tokens)),
        finish_reason=finish_reason,
        **fields,
    )


def test_an_undisturbed_stream_is_whole() -> None:
    assert stream(ANSWER.token_ids).verdict().whole


def test_every_difference_is_seen() -> None:
    tokens = ANSWER.token_ids
    twice = stream(tokens[:5] + tokens[3:]).verdict()
    assert (twice.extra_tokens, twice.missing_tokens, twice.whole) == (2, 0, False)
    missing = stream(tokens[:5] + tokens[7:]).verdict()
    assert (missing.extra_tokens, missing.missing_tokens, missing.whole) == (0, 2, False)
    foreign = stream([*tokens[:5], 40_000, *tokens[6:]]).verdict()
    assert (foreign.extra_tokens, foreign.missing_tokens) == (1, 1)
    assert stream(tokens, text=text_of(tokens[:-1])).verdict().text_differs
    assert stream(tokens, finish_reason="length").verdict().end_differs
    assert stream(tokens, finish_reason="").verdict().lost
    failed = stream(tokens[:5], finish_reason="", error=GenerationError("no engine")).verdict()
    assert failed.failed
    assert failed.missing_tokens == len(tokens) - 5
    assert not stream(tokens, deltas_after_end=1).verdict().whole


def test_an_answer_that_the_cap_cuts_ends_by_its_length() -> None:
    cut = request_of("cut", 0, output_tokens=12, max_tokens=5)
    assert answer_to(cut).finish_reason == "length"
    assert len(answer_to(cut).token_ids) == 5


def test_an_answer_depends_on_its_prompt_and_not_on_its_name() -> None:
    same = request_of("other", 3, output_tokens=12)
    assert answer_to(same) == ANSWER
    assert answer_to(request_of("seen", 4, output_tokens=12)) != ANSWER


def test_text_and_tokens_tell_the_same() -> None:
    assert tokens_of(text_of(ANSWER.token_ids)) == ANSWER.token_ids


def test_a_request_without_a_known_length_is_refused() -> None:
    with pytest.raises(ValueError, match="known to the engine alone"):
        answer_to(GenerationRequest("unknown", [1, 2], 10))
