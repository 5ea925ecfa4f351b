"""A single instance of the unit-step model: its file, read and checked."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError

LARGEST = (1 << 31) - 1
"""Largest number of tokens or steps an instance may name."""

_REQUIRED = ("prompt_tokens", "output_tokens", "lower", "upper")
_LEAST = {
    "prompt_tokens": 0,
    "output_tokens": 1,
    "lower": 1,
    "upper": 1,
    "arrival": 0,
    "predicted": 1,
}


@dataclass(frozen=True, slots=True)
class InstanceRequest:
    """One request of an instance; lengths in tokens, times in steps.

    Attributes:
        prompt_tokens: At least 0, as in the papers' instances.
        output_tokens: True output length, at least 1.
        lower: Lower bound on it, at least 1.
        upper: Upper bound on it, at least `lower`.
        arrival: Step at which it arrives.
        predicted: Point prediction of the output length, which only `mc_sf` reads.
    """

    prompt_tokens: int
    output_tokens: int
    lower: int
    upper: int
    arrival: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Instance:
    """Requests for one worker.

    Attributes:
        memory_tokens: The worker's KV budget M.
        requests: In the order of the file.
    """

    memory_tokens: int
    requests: tuple[InstanceRequest, ...]


def load_instance(path: Path) -> Instance:
    """Read an instance from a JSON file.

    Raises:
        InputError: The file cannot be read, is not an instance, or holds a request that can never
            run; one line that names the request.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the instance {str(path)!r}: {error}") from None
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"instance {str(path)!r} is not JSON: {error}") from None
    return parse_instance(value)


def parse_instance(value: Any) -> Instance:
    """The instance that `value`, decoded JSON, describes; raises `InputError` as above."""
    fields = _fields(
        "the instance", value, required=("memory_tokens", "requests"), known=("memory_tokens",)
    )
    memory = _integer("the instance", "memory_tokens", fields["memory_tokens"], least=1)
    requests = fields["requests"]
    if not isinstance(requests, list):
        raise InputError(
            f"the instance: requests is {_shown(requests)}, must be a list of requests"
        )
    return Instance(memory, tuple(_request(i, r, memory) for i, r in enumerate(requests)))


def _request(index: int, value: Any, memory: int) -> InstanceRequest:
    who = f"request {index}"
    fields = _fields(who, value, required=_REQUIRED, known=tuple(_LEAST))
    numbers = {
        name: _integer(who, name, number, least=_LEAST[name]) for name, number in fields.items()
    }
    request = InstanceRequest(
        **{name: numbers[name] for name in _REQUIRED},
        arrival=numbers.get("arrival", 0),
        predicted=numbers.get("predicted", numbers["upper"]),
    )
    if request.lower > request.upper:
        raise InputError(
            f"{who}: lower is {request.lower}, above upper ({request.upper}); exchange them"
        )
    needed = request.prompt_tokens + request.output_tokens
    if needed > memory:
        raise InputError(
            f"{who}: prompt_tokens + output_tokens is {needed}, above memory_tokens ({memory}), "
            "so it can never run; raise memory_tokens or remove the request"
        )
    return request


def _fields(
    who: str, value: Any, required: tuple[str, ...], known: tuple[str, ...]
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{who} is {_shown(value)}, must be an object with {', '.join(required)}")
    names = tuple(dict.fromkeys((*required, *known)))
    for name in value:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{who}: unknown field {name!r}; known are {', '.join(names)}{hint}")
    for name in required:
        if name not in value:
            raise InputError(f"{who}: the field {name!r} is missing; add it")
    return value


def _integer(who: str, name: str, value: Any, least: int) -> int:
    # JSON's true is a Python int.
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{who}: {name} is {_shown(value)}, must be an integer")
    if not least <= value <= LARGEST:
        raise InputError(f"{who}: {name} is {value}, must be in {least}..{LARGEST}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
