"""Inputs whose prompts are repeated, one row of work for each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.reading.inputs import BadRow, JobRow, open_input
from jobs.reading.sampled import SampledInput, SamplingSettings, prompt_text, sample_seed
from predictor.excerpt import chat_excerpt, excerpt
from tests.jobs.factories import any_speed, bad, batch_line, good, lines_file

ROWS: list[dict[str, Any] | str] = [
    {"id": "a", "prompt": "First"},
    {"id": "b", "prompt": "Second", "temperature": 0, "seed": 5},
    "{malformed",
    {"id": "d", "prompt": "Fourth", "max_tokens": 7, "top_k": -1, "seed": 5},
    {"id": "e", "prompt": " \n "},
]


def sampled(path: Path, rows: list[Any] = ROWS, samples: int = 3, **fields: Any) -> SampledInput:
    defaults = {"max_tokens": 64, "sampling": {}}
    source = open_input(lines_file(path / "in.jsonl", rows))
    return SampledInput(source, samples, **{**defaults, **fields})


def test_samples_of_a_prompt_follow_each_other(tmp_path: Path) -> None:
    rows = list(sampled(tmp_path).rows())
    assert [row.row_index for row in rows] == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert [row.row_id for row in rows if row.row_id[0] in "abd"] == [
        *("a#0", "a#1", "a#2"),
        "b#0",
        *("d#0", "d#1", "d#2"),
    ]
    assert [row.prompt for row in good(rows)] == ["First"] * 3 + ["Second"] + ["Fourth"] * 3


def test_a_prompt_that_cannot_be_used_is_an_error_for_each_sample(tmp_path: Path) -> None:
    errors = bad(sampled(tmp_path).rows())
    assert [error.row_id for error in errors] == [
        *(f"row-00000002#{k}" for k in range(3)),
        *(f"e#{k}" for k in range(3)),
    ]
    assert "in.jsonl:3: is not valid JSON" in errors[0].error
    assert "the prompt is blank" in errors[3].error
    assert {error.error_kind for error in errors} == {"input"}


def test_seeds_differ_between_samples_and_never_change(tmp_path: Path) -> None:
    def seeds(**fields: Any) -> dict[str, int | None]:
        rows = good(sampled(tmp_path, **fields).rows())
        return {row.row_id: row.sampling.get("seed") for row in rows}

    seeded = seeds(seed=7)
    drawn = [seed for row_id, seed in seeded.items() if row_id != "b#0"]
    assert len(set(drawn)) == 6
    assert all(seed is not None and 0 <= seed < 2**63 for seed in drawn)
    assert seeded == seeds(seed=7)
    assert seeded["a#0"] == sample_seed(7, "a", 0) == 2631248399798687058
    assert seeds(seed=8)["a#0"] != seeded["a#0"]
    assert seeds(seed=8)["d#0"] == seeded["d#0"] == sample_seed(5, "d", 0), "a row's own seed"
    assert seeds()["a#0"] is None


@pytest.mark.parametrize("seed", [None, 7])
def test_a_greedy_prompt_has_one_sample_without_a_seed_of_ours(
    tmp_path: Path, seed: int | None
) -> None:
    source = sampled(tmp_path, ROWS[:1], sampling={"temperature": 0.0}, seed=seed)
    [row] = source.rows()
    assert isinstance(row, JobRow)
    assert (row.row_id, row.row_index) == ("a#0", 0)
    assert "seed" not in row.sampling
    assert source.total(1) == 1
    assert sampled(tmp_path).total(5) == 15
    assert sampled(tmp_path).total(None) is None


def test_settings_are_those_the_engine_takes(tmp_path: Path) -> None:
    source = sampled(tmp_path, sampling={"top_p": 0.9, "max_tokens": 50})
    a, b, d = (row for row in source.prompts() if isinstance(row, JobRow))
    assert source.settings(a) == SamplingSettings(1.0, 0.9, 0, 50)
    assert source.settings(b) == SamplingSettings(0, 0.9, 0, 50)
    assert source.settings(d) == SamplingSettings(1.0, 0.9, 0, 7)


@settings(any_speed, max_examples=40)
@given(skip=st.frozensets(st.integers(0, 16)))
def test_what_has_ended_is_skipped_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, skip: frozenset[int]
) -> None:
    source = sampled(tmp_path_factory.mktemp("in"), seed=1)
    assert list(source.rows(skip)) == [row for row in source.rows() if row.row_index not in skip]


text = st.text(max_size=8)
content = text | st.none() | st.lists(st.fixed_dictionaries({"text": text}), min_size=1, max_size=3)


@any_speed
@given(contents=st.lists(content, min_size=1, max_size=4), repeats=st.sampled_from([1, 400]))
def test_the_text_of_a_chat_is_what_a_served_chat_is_forecast_from(
    contents: list[Any], repeats: int
) -> None:
    messages = [{"role": "user", "content": c} for c in contents] * repeats
    row = JobRow(row_index=0, row_id="a", messages=messages)
    assert excerpt(prompt_text(row)) == chat_excerpt(messages)


def test_openai_batch_lines_are_sampled_too(tmp_path: Path) -> None:
    rows = list(sampled(tmp_path, [batch_line("c", max_tokens=9), batch_line("n", n=2)]).rows())
    assert [row.row_id for row in rows] == ["c#0", "c#1", "c#2", "n#0", "n#1", "n#2"]
    assert all(isinstance(row, BadRow) for row in rows[3:])
    assert good(rows)[0].sampling == {"max_tokens": 9}
