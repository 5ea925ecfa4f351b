"""Requests to simulated engines, whose answers are known before they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.call import GenerationRequest
from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.protocol import Generation, pack_tokens
from replicas.simulated_engine import SimulatedEngineOptions
from replicas.simulated_output import plan_output

LENGTH_OPTION = "simulated_output_tokens"
"""Key of `extra_args` with the length at which an answer ends by itself."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        token_ids: Its tokens.
        finish_reason: `stop`, or `length` where the cap cut it.
    """

    token_ids: list[int]
    finish_reason: str


def request_of(
    name: str,
    number: int,
    *,
    output_tokens: int,
    prompt_tokens: int = 20,
    max_tokens: int | None = None,
    request_class: RequestClass = RequestClass.ONLINE,
    tenant: str = "default",
    forecast: Forecast | None = None,
    **sampling: Any,
) -> GenerationRequest:
    """A request with a prompt and an answer of its own.

    Args:
        name: Of the load it belongs to; equal names and numbers make equal requests.
        number: Its number there.
        output_tokens: Length at which the answer ends by itself.
        prompt_tokens: Length of the prompt.
        max_tokens: Cap on the answer; None: twice its length.
        request_class: Online or offline.
        tenant: Whom it is accounted to.
        forecast: Of its length; None: the cluster makes one.
        sampling: Further arguments of `vllm.SamplingParams`.
    """
    return GenerationRequest(
        request_id=f"{name}/{number}",
        prompt_token_ids=[(number * 31 + k * 7 + k * k) % 4000 + 1 for k in range(prompt_tokens)],
        max_tokens=2 * output_tokens if max_tokens is None else max_tokens,
        sampling={**sampling, "extra_args": {LENGTH_OPTION: output_tokens}},
        request_class=request_class,
        tenant=tenant,
        forecast=forecast,
    )


def answer_to(request: GenerationRequest) -> Answer:
    """What every simulated engine with default options answers to a request.

    Raises:
        ValueError: The request does not name the length of its answer.
    """
    if LENGTH_OPTION not in (request.sampling.get("extra_args") or {}):
        raise ValueError(
            f"request {request.request_id!r} has no extra_args[{LENGTH_OPTION!r}]: the length of "
            "its answer is known to the engine alone"
        )
    options = SimulatedEngineOptions()
    generation = Generation(
        request_id=request.request_id,
        client_id="",
        prompt=pack_tokens(request.prompt_token_ids),
        sampling={**request.sampling, "max_tokens": request.max_tokens},
    )
    output = plan_output(
        generation, options.lengths, options.max_model_len, options.vocabulary_tokens
    )
    token_ids = [output.token(position) for position in range(output.output_tokens)]
    return Answer(token_ids, output.finish_reason)


def text_of(token_ids: list[int]) -> str:
    """The text of these tokens."""
    return "".join(f" w{token}" for token in token_ids)


def tokens_of(text: str) -> list[int]:
    """The tokens behind a simulated engine's text.

    Raises:
        ValueError: It is not such a text.
    """
    return [int(word.removeprefix("w")) for word in text.split()]
