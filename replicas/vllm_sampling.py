"""Plain keyword arguments of `vllm.SamplingParams`, and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from replicas.protocol import Generation
from replicas.request_terms import EXTRA_ARG

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

_SET_ELSEWHERE = frozenset(
    {"max_tokens", "n", "output_kind", "output_text_buffer_length", "skip_clone", "stream_interval"}
)


def plain_sampling(params: SamplingParams) -> dict[str, Any]:
    """Those parameters that differ from vLLM's defaults, as plain data.

    Left out is what whoever runs the request decides: `max_tokens`, `n`, how outputs are reported,
    and everything that vLLM derives from the others.
    """
    plain = {
        name: _as_plain(value)
        for name, default in _defaults().items()
        if (value := getattr(params, name)) != default
    }
    if (extra := plain.get("extra_args")) is not None:
        plain["extra_args"] = {k: v for k, v in extra.items() if k != EXTRA_ARG}
    return plain


def sampling_arguments(generation: Generation) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams` for what is left of a generation.

    Its terms go along under `EXTRA_ARG` in the request's own `extra_args`, to the scheduler in
    vLLM's engine-core process.
    """
    sampling = dict(generation.sampling)
    earlier = generation.generated_tokens
    if earlier:
        sampling["max_tokens"] -= earlier
        if sampling.get("min_tokens"):
            sampling["min_tokens"] = max(0, sampling["min_tokens"] - earlier)
        # They came with the first of the earlier tokens.
        sampling.pop("prompt_logprobs", None)
    if generation.terms is not None:
        terms = {
            "id": generation.request_id,
            "generated_tokens": earlier,
            **msgspec.structs.asdict(generation.terms),
        }
        sampling["extra_args"] = {**(sampling.get("extra_args") or {}), EXTRA_ARG: terms}
    return sampling


def delta_params(generation: Generation) -> SamplingParams:
    """Parameters for what is left of a generation, reported as deltas.

    Raises:
        VLLMValidationError: vLLM refuses a value.
        TypeError: There is no parameter of some name.
    """
    from vllm.sampling_params import (
        RepetitionDetectionParams,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    arguments = sampling_arguments(generation)
    for name, kind in (
        ("repetition_detection", RepetitionDetectionParams),
        ("structured_outputs", StructuredOutputsParams),
    ):
        if isinstance(given := arguments.get(name), Mapping):
            arguments[name] = kind(**given)
    return SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)


@functools.cache
def _defaults() -> dict[str, Any]:
    from vllm.sampling_params import SamplingParams

    default = SamplingParams()
    return {
        name: getattr(default, name)
        for name in SamplingParams.__struct_fields__
        if not name.startswith("_") and name not in _SET_ELSEWHERE
    }


def _as_plain(value: Any) -> Any:
    """A dataclass as the keyword arguments that differ from its defaults."""
    if not dataclasses.is_dataclass(value):
        return value
    return {
        field.name: given
        for field in dataclasses.fields(value)
        if field.init and (given := getattr(value, field.name)) != field.default
    }
