"""What an engine's scheduler knows of a request: its own terms, or how long answers have been."""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

import numpy as np
from vllm.v1.request import Request, RequestStatus

from policies.forecast import Forecast
from policies.model_lengths import ModelLengths
from policies.request import Request as Sizes
from replicas.request_terms import EXTRA_ARG, RequestTerms, RequestTermsError, read_terms

logger = logging.getLogger(__name__)

HALF_LIFE_SAMPLES = 2000.0
"""Answers after which one counts half for the prior."""

MOST_UNLEARNT = 4096
"""Answers that are kept until somebody needs the prior; the oldest give way."""

_NO_TERMS = RequestTerms(mu=0.0, sigma=0.0)


class Described(NamedTuple):
    """A request as policies see it.

    Attributes:
        sizes: Its sizes, from the original prompt on.
        forecast: Its own, or the prior's.
        terms: What it came with; default terms if nothing.
    """

    sizes: Sizes
    forecast: Forecast
    terms: RequestTerms


class EngineForecasts:
    """Describes vLLM's requests; without terms their forecast is a prior that learns as it goes.

    Terms that cannot be used are logged and count as none: a request must not fail because its
    forecast does.
    """

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self._lengths = ModelLengths()
        self._unlearnt: deque[tuple[int, int, bool]] = deque(maxlen=MOST_UNLEARNT)

    def describe(self, request: Request) -> Described:
        """A request that vLLM has accepted."""
        terms, forecast = self._own(request)
        earlier = terms.generated_tokens
        arrival_s = request.arrival_time if terms.arrival_s is None else terms.arrival_s
        sizes = Sizes(
            request_id=request.request_id,
            prompt_tokens=request.num_prompt_tokens - earlier,
            max_tokens=self._most_tokens(request) + earlier,
            arrival_s=arrival_s,
            generated_tokens=earlier,
        )
        if forecast is None:
            forecast = self._prior(sizes)
        return Described(sizes, forecast.at_least(max(earlier, 1)), terms)

    def learn(self, request: Request, described: Described) -> None:
        """An answer has ended; one that was aborted teaches nothing."""
        censored = request.status == RequestStatus.FINISHED_LENGTH_CAPPED
        if not censored and request.status != RequestStatus.FINISHED_STOPPED:
            return
        output = described.terms.generated_tokens + request.num_output_tokens
        self._unlearnt.append((max(described.sizes.prompt_tokens, 1), max(output, 1), censored))

    def _own(self, request: Request) -> tuple[RequestTerms, Forecast | None]:
        params = request.sampling_params
        try:
            terms = read_terms(params.extra_args if params is not None else None)
            if terms is None:
                return _NO_TERMS, None
            if terms.generated_tokens >= request.num_prompt_tokens:
                raise RequestTermsError(
                    f"generated_tokens is {terms.generated_tokens}, must be below the "
                    f"{request.num_prompt_tokens} tokens of the prompt that they are part of"
                )
            return terms, terms.forecast(self._most_tokens(request) + terms.generated_tokens)
        except RequestTermsError as error:
            logger.warning(
                "request %s: extra argument %r is not used: %s",
                request.request_id,
                EXTRA_ARG,
                error,
            )
            return _NO_TERMS, None

    def _most_tokens(self, request: Request) -> int:
        """Output tokens that the model's context leaves room for, too."""
        return max(min(request.max_tokens, self._max_model_len - request.num_prompt_tokens), 1)

    def _prior(self, sizes: Sizes) -> Forecast:
        if self._unlearnt:
            prompts, outputs, censored = map(np.array, zip(*self._unlearnt, strict=True))
            self._lengths.observe(prompts, outputs, censored, HALF_LIFE_SAMPLES)
            self._unlearnt.clear()
            self._lengths.refresh()
        prompt, cap = np.array([max(sizes.prompt_tokens, 1)]), np.array([sizes.max_tokens])
        (forecast,) = self._lengths.forecasts(prompt, cap)
        return forecast
