"""The line formats of OpenAI batch files: requests in, responses and errors out."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from jobs.reading.row_errors import RowError
from jobs.reading.sampling import SAMPLING_NAMES

CHAT_ENDPOINT = "/v1/chat/completions"
COMPLETIONS_ENDPOINT = "/v1/completions"

_INPUT_OF_ENDPOINT = {CHAT_ENDPOINT: "messages", COMPLETIONS_ENDPOINT: "prompt"}
_WITHOUT_EFFECT = frozenset({"model", "user", "metadata", "store", "service_tier", "max_tokens"})
_NEUTRAL: dict[str, list[Any]] = {
    "n": [1],
    "best_of": [1],
    "stream": [False],
    "echo": [False],
    "logprobs": [False],
    "top_logprobs": [0],
    "logit_bias": [{}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "suffix": [""],
}
"""Parameters of the API that are not offered, with the values that change nothing."""


class BatchLine(msgspec.Struct, frozen=True):
    """What a response line repeats of its request line.

    Attributes:
        custom_id: The user's id.
        endpoint: `/v1/chat/completions` or `/v1/completions`.
        model: The model that the line names, if it does.
    """

    custom_id: str
    endpoint: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request line taken apart; `prompt` or `messages` and `sampling` are not checked yet."""

    line: BatchLine
    prompt: Any
    messages: Any
    sampling: dict[str, Any]


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a line of an OpenAI batch file."""
    return "custom_id" in fields and "body" in fields


def batch_request(fields: Mapping[str, Any]) -> BatchRequest:
    """The request in one line of a batch file.

    `max_tokens` stays unset when the line does not set it, on both endpoints: the job's own
    default applies, where OpenAI's completions endpoint would stop after 16 tokens.

    Raises:
        RowError: The line asks for something that is not offered, or its shape is wrong.
    """
    endpoint, body = fields.get("url"), fields.get("body")
    if not isinstance(endpoint, str) or endpoint not in _INPUT_OF_ENDPOINT:
        raise RowError(
            f"url is {reprlib.repr(endpoint)}, must be {CHAT_ENDPOINT} or {COMPLETIONS_ENDPOINT}"
        )
    if fields.get("method", "POST") != "POST":
        raise RowError(f"method is {reprlib.repr(fields['method'])}, must be 'POST'")
    if not isinstance(body, dict):
        raise RowError(f"body is {reprlib.repr(body)}, must be an object")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RowError(f"body.model is {reprlib.repr(model)}, must be a string")
    input_name = _INPUT_OF_ENDPOINT[endpoint]
    _refuse_unsupported(body, input_name)
    if body.get(input_name) is None:
        raise RowError(f"body.{input_name} is missing, {endpoint} needs it")
    sampling = {name: body[name] for name in SAMPLING_NAMES & body.keys()}
    if body.get("max_completion_tokens") is not None:
        sampling["max_tokens"] = body["max_completion_tokens"]
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return BatchRequest(
        line=BatchLine(str(fields.get("custom_id")), endpoint, model),
        prompt=prompt,
        messages=body.get("messages"),
        sampling=sampling,
    )


def _refuse_unsupported(body: Mapping[str, Any], input_name: str) -> None:
    known = _WITHOUT_EFFECT | SAMPLING_NAMES | {input_name, "max_completion_tokens"}
    for name, value in body.items():
        if name in known or value is None or value in _NEUTRAL.get(name, ()):
            continue
        if name in _NEUTRAL:
            allowed = " or ".join(repr(v) for v in _NEUTRAL[name])
            raise RowError(f"body.{name} is {reprlib.repr(value)}, must be {allowed} in a job")
        raise RowError(f"body.{name} is {reprlib.repr(value)}, which a job does not offer")


def response_line(row: Mapping[str, Any]) -> bytes:
    """The response line of a finished row.

    Args:
        row: Values of the result columns `row_index`, `row_id`, `endpoint`, `model`, `text`,
            `finish_reason`, `prompt_tokens`, `output_tokens` and `finished_unix_s`.

    Returns:
        One line of JSON with its newline.
    """
    number = _number(row)
    is_chat = row["endpoint"] != COMPLETIONS_ENDPOINT
    choice: dict[str, Any] = {"index": 0}
    if is_chat:
        choice["message"] = {"role": "assistant", "content": row["text"]}
    else:
        choice["text"] = row["text"]
    choice |= {"logprobs": None, "finish_reason": row["finish_reason"]}
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{number}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(row["finished_unix_s"]),
        "model": row["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": row["prompt_tokens"],
            "completion_tokens": row["output_tokens"],
            "total_tokens": row["prompt_tokens"] + row["output_tokens"],
        },
    }
    return _line(row, {"status_code": 200, "request_id": f"req_{number}", "body": body}, None)


def error_line(row: Mapping[str, Any]) -> bytes:
    """The error line of a row without result.

    Args:
        row: Values of the error columns `row_index`, `row_id`, `error` and `error_kind`.

    Returns:
        One line of JSON with its newline.
    """
    of_request = row["error_kind"] == "input"
    code = "invalid_request" if of_request else "generation_failed"
    body = {
        "error": {
            "message": row["error"],
            "type": "invalid_request_error" if of_request else "server_error",
            "param": None,
            "code": code,
        }
    }
    response = {
        "status_code": 400 if of_request else 500,
        "request_id": f"req_{_number(row)}",
        "body": body,
    }
    return _line(row, response, {"code": code, "message": row["error"]})


def _line(row: Mapping[str, Any], response: Any, error: Any) -> bytes:
    line = {
        "id": f"batch_req_{_number(row)}",
        "custom_id": row["row_id"],
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"


def _number(row: Mapping[str, Any]) -> str:
    return f"{row['row_index']:012d}"
