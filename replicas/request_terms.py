"""What a request tells an engine's scheduler about itself, in `SamplingParams.extra_args`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from policies import logt
from policies.forecast import Forecast
from policies.length_histogram import MAX_TOKENS

EXTRA_ARG = "tiebreak"
"""Key of `SamplingParams.extra_args`; `vllm_xargs` in the body of an OpenAI request."""

COVERAGE = 0.9
"""Share of answers in the interval of a forecast that came without one."""


MAX_LOG_TOKENS = 50.0
"""No answer has exp(50) tokens, and none is that uncertain."""

MAX_KEY = 1e15
"""Beyond any key and any time in seconds; seconds are told apart to less than one."""


class RequestTermsError(ValueError):
    """A request's terms cannot be used; the message names the field and the value."""


class RequestTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A forecast of the answer's length, and what the cluster knows of the request beside it.

    Attributes:
        mu: Location of ln X (`policies.forecast.Forecast`).
        sigma: Scale of ln X.
        lower: Lower end of the interval in tokens; None: the forecast's own quantile.
        upper: Upper end.
        key: Its place in the order, smaller first; None: the scheduler's policy computes it.
        arrival_s: When it arrived, on the clock of `key`; None: when vLLM accepted it.
        precedence: What goes before the key, smaller first.
        evictions: Times it was evicted before, by other engines.
        generated_tokens: How many of the prompt's last tokens are earlier output.
        id: The name by which evictions are reported.
    """

    mu: float
    sigma: float
    lower: int | None = None
    upper: int | None = None
    key: float | None = None
    arrival_s: float | None = None
    precedence: int | None = None
    evictions: int = 0
    generated_tokens: int = 0
    id: str = ""

    def forecast(self, max_tokens: int) -> Forecast:
        """The forecast of a request whose cap is `max_tokens`, from its original prompt on.

        Raises:
            RequestTermsError: A value is out of range.
        """
        try:
            tail = (1 - COVERAGE) / 2
            lower, upper = self.lower, self.upper
            if lower is None or upper is None:
                ends = logt.quantile(self.mu, self.sigma, np.array([tail, 1 - tail]))
                low, high = np.clip(ends, 1, max_tokens).tolist()
                lower = math.floor(low) if lower is None else lower
                upper = math.ceil(high) if upper is None else upper
            return Forecast(self.mu, self.sigma, lower, max(lower, upper), "request")
        except ValueError as error:
            raise RequestTermsError(str(error)) from None


def read_terms(extra_args: Mapping[str, Any] | None) -> RequestTerms | None:
    """The terms among a request's extra arguments; None when it has none.

    They may be a JSON text, too, as `vllm_xargs` carries nothing deeper than lists.

    Raises:
        RequestTermsError: They are not what `RequestTerms` asks for.
    """
    given = (extra_args or {}).get(EXTRA_ARG)
    if given is None:
        return None
    try:
        if isinstance(given, str):
            terms = msgspec.json.decode(given, type=RequestTerms)
        else:
            terms = msgspec.convert(given, RequestTerms)
    except msgspec.MsgspecError as error:
        raise RequestTermsError(str(error)) from None
    _check_range(terms)
    return terms


def _check_range(terms: RequestTerms) -> None:
    for name, least, most in (
        ("mu", -MAX_LOG_TOKENS, MAX_LOG_TOKENS),
        ("sigma", 0.0, MAX_LOG_TOKENS),
        ("lower", 1, MAX_TOKENS),
        ("upper", 1, MAX_TOKENS),
        ("key", -MAX_KEY, MAX_KEY),
        ("arrival_s", -MAX_KEY, MAX_KEY),
        ("precedence", -MAX_TOKENS, MAX_TOKENS),
        ("evictions", 0, MAX_TOKENS),
        ("generated_tokens", 0, MAX_TOKENS),
    ):
        value = getattr(terms, name)
        if value is not None and not least <= value <= most:
            raise RequestTermsError(f"{name} is {value}, must be in {least:g}..{most:g}")
