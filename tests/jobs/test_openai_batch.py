from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.openai_batch import CHAT_ENDPOINT, COMPLETIONS_ENDPOINT, BatchLine
from jobs.reading.inputs import InputError, InputFormat, InputOptions, JobRow, open_input
from tests.jobs.factories import bad, batch_line, good, lines_file, read


def test_both_endpoints(tmp_path: Path) -> None:
    uri = lines_file(
        tmp_path / "in.jsonl",
        [
            batch_line("chat", max_tokens=3, max_completion_tokens=5, temperature=0.5, user="u"),
            batch_line("text", COMPLETIONS_ENDPOINT, prompt="Once", top_k=4, stop=["."]),
            batch_line("list", COMPLETIONS_ENDPOINT, prompt=["Once"]),
        ],
    )
    source = open_input(uri)
    assert source.is_openai_batch
    assert source.check().input_format is InputFormat.OPENAI_BATCH
    assert list(source.rows()) == [
        JobRow(
            row_index=0,
            row_id="chat",
            messages=[{"role": "user", "content": "Hi"}],
            sampling={"max_tokens": 5, "temperature": 0.5},
            batch_line=BatchLine("chat", CHAT_ENDPOINT, "m"),
        ),
        JobRow(
            row_index=1,
            row_id="text",
            prompt="Once",
            sampling={"top_k": 4, "stop": ["."]},
            batch_line=BatchLine("text", COMPLETIONS_ENDPOINT, "m"),
        ),
        JobRow(
            row_index=2,
            row_id="list",
            prompt="Once",
            batch_line=BatchLine("list", COMPLETIONS_ENDPOINT, "m"),
        ),
    ]


def test_parameters_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    neutral = {
        "n": 1,
        "stream": False,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": None,
        "metadata": {"a": "b"},
        "store": True,
    }
    uri = lines_file(tmp_path / "in.jsonl", [batch_line("a", **neutral)])
    assert good(read(uri))[0].sampling == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            batch_line("a", "/v1/embeddings"),
            "url is '/v1/embeddings', must be /v1/chat/completions or",
        ),
        (batch_line("a") | {"url": None}, "url is None, must be /v1/chat/completions or"),
        (batch_line("a") | {"url": ["x"]}, "url is ['x'], must be /v1/chat/completions or"),
        (batch_line("a") | {"method": "GET"}, "method is 'GET', must be 'POST'"),
        (batch_line("a") | {"body": []}, "body is [], must be an object"),
        (batch_line("a", n=2), "body.n is 2, must be 1 in a job"),
        (batch_line("a", stream=True), "body.stream is True, must be False in a job"),
        (
            batch_line("a", tools=[{"type": "function"}]),
            "body.tools is [{'type': 'function'}], must",
        ),
        (batch_line("a", guided_json={}), "body.guided_json is {}, which a job does not offer"),
        (batch_line("a", model=3), "body.model is 3, must be a string"),
        (batch_line("a", messages=[]), "messages is [], must be a non-empty list"),
        (batch_line("a", messages=None), "body.messages is missing, /v1/chat/completions needs it"),
        (batch_line("a", COMPLETIONS_ENDPOINT), "body.prompt is missing, /v1/completions needs it"),
        (
            batch_line("a", COMPLETIONS_ENDPOINT, prompt=["a", "b"]),
            "prompt is a list, must be text",
        ),
        (batch_line("a", COMPLETIONS_ENDPOINT, prompt=""), "prompt is empty"),
        (batch_line("a", temperature=-1), "temperature is -1, must be a number >= 0"),
        (batch_line(None), "custom_id is None, must be a non-empty string"),
        ({"custom_id": "a", "prompt": "x"}, "url is None, must be"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, line: dict[str, Any], reason: str) -> None:
    first = batch_line("first")
    uri = lines_file(tmp_path / "in.jsonl", [first, line])
    rows = read(uri)
    assert len(good(rows)) == 1
    (row,) = bad(rows)
    assert row.error.startswith(f"in.jsonl:2: {reason}")
    assert row.row_id == (line["custom_id"] or "row-00000001")
    assert row.echo == json.dumps(line)


def test_format_can_be_given(tmp_path: Path) -> None:
    uri = lines_file(tmp_path / "in.txt", [batch_line("a")])
    assert good(read(uri, input_format=InputFormat.OPENAI_BATCH))[0].row_id == "a"


def test_ids_are_custom_ids(tmp_path: Path) -> None:
    uri = lines_file(tmp_path / "in.jsonl", [batch_line("a")])
    with pytest.raises(InputError, match="--id-column is 'id', must be custom_id for OpenAI batch"):
        open_input(uri, InputOptions(id_column="id"))
