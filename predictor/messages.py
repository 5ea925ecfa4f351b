"""What the predictor is asked and told."""

from __future__ import annotations

import msgspec


class ForecastQuery(msgspec.Struct, frozen=True):
    """How long will this answer be?

    Attributes:
        request_id: The caller's name for the request.
        model: Who answers.
        prompt_tokens: Length of the prompt.
        max_tokens: The request's own cap on output tokens.
    """

    request_id: str
    model: str
    prompt_tokens: int
    max_tokens: int


class Outcome(msgspec.Struct, frozen=True):
    """How long an answer was.

    Attributes:
        model: Who answered.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer, counted from the original prompt.
        censored: Whether a cap ended the answer, so that only a lower bound is known.
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    censored: bool


class PredictorStats(msgspec.Struct, frozen=True):
    """What a predictor did since it started.

    Attributes:
        forecasts: Forecasts given.
        outcomes: Outcomes learnt from.
        rejected: Outcomes that were out of range and dropped.
        last_rejection: Why the latest of them was.
        saves: Times the state was written.
        save_error: Why the latest attempt to write it failed; None: it did not.
        load_warning: What was wrong with the state found at the start; None: nothing.
    """

    forecasts: int = 0
    outcomes: int = 0
    rejected: int = 0
    last_rejection: str | None = None
    saves: int = 0
    save_error: str | None = None
    load_warning: str | None = None
