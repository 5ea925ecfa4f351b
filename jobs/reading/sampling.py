"""Sampling parameters that a row of the input may set, and their limits."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1

Check = Callable[[Any], Any]


class SamplingError(ValueError):
    """A parameter is out of range; the message names it, its value and the limit."""


class _UnfitError(Exception):
    """The value does not meet the limit in the message."""


def checked_sampling(values: Mapping[str, Any], *, from_text: bool = False) -> dict[str, Any]:
    """The sampling parameters among `values`, converted and checked; nulls and NaN are left out.

    Args:
        values: Parameter values by name; unknown names are ignored.
        from_text: Values are cells of a text table and are parsed first.

    Returns:
        Keyword arguments of `vllm.SamplingParams`.

    Raises:
        SamplingError: The first value that does not fit.
    """
    sampling: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        value = values.get(name)
        if value is None:
            continue
        if from_text and isinstance(value, str):
            value = _parse_cell(name, value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        try:
            sampling[name] = check(value)
        except _UnfitError as limit:
            raise SamplingError(f"{name} is {reprlib.repr(value)}, must be {limit}") from None
    low, high = sampling.get("min_tokens", 0), sampling.get("max_tokens", _MAX_INT32)
    if low > high:
        raise SamplingError(f"min_tokens is {low}, must be <= max_tokens ({high})")
    return sampling


def _parse_cell(name: str, cell: str) -> Any:
    cell_or_number = cell.strip()
    if not cell_or_number:
        return None
    if name == "stop" and not cell_or_number.startswith("["):
        return cell
    lowered = cell_or_number.lower()
    try:
        return msgspec.json.decode(lowered if lowered in ("true", "false") else cell_or_number)
    except ValueError:
        pass
    try:
        return float(cell_or_number)
    except ValueError:
        return cell


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _UnfitError(f"an integer from {low} to {high}")
        return value

    return check


def _number(low: float, high: float, *, above: bool = False) -> Check:
    limit = f"a number {'>' if above else '>='} {low:g}"
    if math.isfinite(high):
        limit += f" and <= {high:g}"

    def check(value: Any) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            raise _UnfitError(limit)
        if not math.isfinite(as_float := _to_float(value)):
            raise _UnfitError("finite")
        return as_float

    return check


def _to_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _UnfitError("true or false")
    return value


def _strings(value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise _UnfitError("a non-empty string or a list of them")
    return strings


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise _UnfitError("a list of token ids")
    check = _integer(0, _MAX_INT32)
    return [check(token) for token in value]


_CHECKS: dict[str, Check] = {
    "max_tokens": _integer(1, _MAX_INT32),
    "min_tokens": _integer(0, _MAX_INT32),
    "temperature": _number(0, math.inf),
    "top_p": _number(0, 1, above=True),
    "top_k": _integer(-1, _MAX_INT32),
    "min_p": _number(0, 1),
    "seed": _integer(-_MAX_INT64 - 1, _MAX_INT64),
    "stop": _strings,
    "stop_token_ids": _token_ids,
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, math.inf, above=True),
    "ignore_eos": _boolean,
}

SAMPLING_NAMES = frozenset(_CHECKS)
"""The parameters that a row may set."""
