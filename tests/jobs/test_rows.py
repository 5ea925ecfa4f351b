from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reading.records import Record
from jobs.reading.row_errors import RowError
from jobs.reading.rows import BadRow, JobRow, RowMaker, checked_messages, checked_prompt
from jobs.reading.sampling import SAMPLING_NAMES, SamplingError, checked_sampling
from predictor.excerpt import excerpt
from tests.jobs.factories import any_speed

USER = {"role": "user", "content": "Hi"}


def make(fields: dict[str, Any], **maker: Any) -> JobRow | BadRow:
    made = RowMaker(
        **{"id_column": None, "prompt_column": "prompt", "messages_column": "messages"} | maker
    )
    return made.row(Record(4, "in.jsonl", 9, ":", fields))


class TestSampling:
    @pytest.mark.parametrize(
        ("name", "value", "limit"),
        [
            ("max_tokens", 0, "an integer from 1 to 2147483647"),
            ("max_tokens", 10**30, "an integer from 1 to 2147483647"),
            ("max_tokens", 2.5, "an integer from 1 to 2147483647"),
            ("max_tokens", True, "an integer from 1 to 2147483647"),
            ("max_tokens", "16", "an integer from 1 to 2147483647"),
            ("min_tokens", -1, "an integer from 0 to 2147483647"),
            ("temperature", -0.1, "a number >= 0"),
            ("temperature", math.inf, "finite"),
            ("temperature", 10**400, "finite"),
            ("top_p", 0, "a number > 0 and <= 1"),
            ("top_p", 1.01, "a number > 0 and <= 1"),
            ("top_k", -2, "an integer from -1 to 2147483647"),
            ("min_p", 1.5, "a number >= 0 and <= 1"),
            ("seed", 2**63, "an integer from -9223372036854775808 to 9223372036854775807"),
            ("frequency_penalty", -2.1, "a number >= -2 and <= 2"),
            ("presence_penalty", 3, "a number >= -2 and <= 2"),
            ("repetition_penalty", 0, "a number > 0"),
            ("ignore_eos", 1, "true or false"),
            ("stop", "", "a non-empty string or a list of them"),
            ("stop", ["a", 1], "a non-empty string or a list of them"),
            ("stop_token_ids", 7, "a list of token ids"),
            ("stop_token_ids", [-1], "an integer from 0 to 2147483647"),
        ],
    )
    def test_out_of_range(self, name: str, value: Any, limit: str) -> None:
        with pytest.raises(SamplingError) as caught:
            checked_sampling({name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} is ")
        assert message.endswith(f", must be {limit}")
        assert len(message) < 200

    def test_limits_are_inside(self) -> None:
        values = {
            "max_tokens": 1,
            "min_tokens": 0,
            "temperature": 0,
            "top_p": 1,
            "top_k": -1,
            "min_p": 0,
            "seed": -(2**63),
            "frequency_penalty": -2,
            "presence_penalty": 2,
            "repetition_penalty": 1e-9,
            "ignore_eos": False,
            "stop": ["\n"],
            "stop_token_ids": [0],
        }
        assert checked_sampling(values) == values
        assert values.keys() == SAMPLING_NAMES

    def test_min_tokens_above_max_tokens(self) -> None:
        with pytest.raises(SamplingError, match=r"min_tokens is 9, must be <= max_tokens \(8\)"):
            checked_sampling({"min_tokens": 9, "max_tokens": 8})

    def test_nulls_and_unknown_names_are_left_out(self) -> None:
        assert checked_sampling({"seed": None, "top_p": math.nan, "n": 4, "zzz": 1}) == {}

    @pytest.mark.parametrize(
        ("name", "cell", "value"),
        [
            ("max_tokens", " 12 ", 12),
            ("max_tokens", "12.0", 12),
            ("temperature", "1e-1", 0.1),
            ("ignore_eos", "FALSE", False),
            ("stop", " END", [" END"]),
            ("stop", '["a"]', ["a"]),
            ("stop", "[a", ["[a"]),
            ("stop_token_ids", "[1, 2]", [1, 2]),
        ],
    )
    def test_cells_of_text_tables(self, name: str, cell: str, value: Any) -> None:
        assert checked_sampling({name: cell}, from_text=True) == {name: value}

    def test_cell_that_is_no_number(self) -> None:
        with pytest.raises(SamplingError, match="top_k is 'many', must be an integer from -1"):
            checked_sampling({"top_k": "many"}, from_text=True)


class TestContent:
    @pytest.mark.parametrize(
        ("prompt", "reason"),
        [
            ("", "prompt is empty, must have"),
            (5, "prompt is a int, must be text"),
            ([], "is a list"),
        ],
    )
    def test_prompts(self, prompt: Any, reason: str) -> None:
        with pytest.raises(RowError, match=reason):
            checked_prompt(prompt, "prompt")

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ([], "messages is [], must be a non-empty list of messages"),
            ("hi", "messages is 'hi', must be a non-empty list"),
            ({"role": "user"}, "must be a non-empty list"),
            ([USER, "hi"], "messages[1] is 'hi', must be an object"),
            ([{"content": "x"}], "messages[0].role is None, must be a non-empty string"),
            ([{"role": 1, "content": "x"}], "messages[0].role is 1, must be"),
            ([{"role": "user"}], "messages[0].content is None, must be a string or a list"),
            ([{"role": "user", "content": []}], "messages[0].content is [], must be"),
            (
                [{"role": "user", "content": [{"type": "image_url"}]}],
                "messages[0].content[0] is 'image_url', must be a part of type 'text'",
            ),
            (
                [{"role": "user", "content": [{"type": "text", "text": 3}]}],
                "messages[0].content[0].text is 3, must be a string",
            ),
        ],
    )
    def test_messages_of_a_wrong_shape(self, messages: Any, reason: str) -> None:
        with pytest.raises(RowError) as caught:
            checked_messages(messages, "messages")
        assert reason in str(caught.value)

    def test_messages_that_are_right(self) -> None:
        messages = [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": [{"type": "text", "text": "42"}], "tool_call_id": "1"},
        ]
        assert checked_messages(messages, "messages") == messages


class TestRowMaker:
    def test_place_and_echo_of_a_bad_row(self) -> None:
        row = make({"prompt": "x", "top_p": 2})
        assert row == BadRow(
            row_index=4,
            row_id="row-00000004",
            error="in.jsonl:9: top_p is 2, must be a number > 0 and <= 1",
            echo='{"prompt":"x","top_p":2}',
        )

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({}, "has neither prompt nor messages"),
            ({"prompt": None, "messages": None}, "has neither prompt nor messages"),
            ({"prompt": "x", "messages": [USER]}, "has both prompt and messages, keep one"),
            ({"prompt": [USER]}, "prompt is a list, must be text"),
        ],
    )
    def test_content_that_is_unclear(self, fields: dict[str, Any], reason: str) -> None:
        row = make(fields)
        assert isinstance(row, BadRow)
        assert row.error == f"in.jsonl:9: {reason}"

    def test_long_rows_are_echoed_in_part(self) -> None:
        row = make({"other": "x" * 10_000})
        assert isinstance(row, BadRow)
        assert len(row.echo) == 2_000

    def test_prompt_text_of_a_chat(self) -> None:
        row = make({"messages": [USER]})
        assert isinstance(row, JobRow)
        assert row.prompt_text == '[{"role":"user","content":"Hi"}]'
        failed = row.failed("no room")
        assert (failed.row_index, failed.row_id) == (row.row_index, row.row_id)
        assert (failed.error, failed.echo, failed.error_kind) == (
            "no room",
            row.prompt_text,
            "generation",
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from(
    ["id", "prompt", "messages", "custom_id", "url", "body", "method", *sorted(SAMPLING_NAMES)]
)


@any_speed
@given(st.dictionaries(names, json_values, max_size=6), st.booleans(), st.booleans())
def test_no_row_whatever_it_holds_stops_the_job(
    fields: dict[str, Any], is_batch: bool, numbered: bool
) -> None:
    row = make(fields, is_batch=is_batch, id_column=None if numbered else "id")
    assert isinstance(row, JobRow | BadRow)
    if isinstance(row, BadRow):
        assert row.error.startswith("in.jsonl:9: ")
        assert "\n" not in row.error


@any_speed
@given(st.dictionaries(names, st.text(max_size=8), max_size=6))
def test_no_cell_whatever_it_holds_stops_the_job(fields: dict[str, Any]) -> None:
    assert isinstance(make(fields, from_text=True), JobRow | BadRow)


def test_the_predictor_reads_the_ends_of_a_prompt_and_the_texts_of_a_chat() -> None:
    long = "head " * 2000 + "tail " * 2000
    assert JobRow(row_index=0, row_id="a", prompt=long).excerpt == excerpt(long)
    assert len(excerpt(long)) < 2100
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert JobRow(row_index=0, row_id="a", messages=messages).excerpt == "Be brief.\nWhy?"
