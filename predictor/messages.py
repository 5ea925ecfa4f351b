"""What the predictor is asked and told."""

from __future__ import annotations

import msgspec

from policies.forecast import Forecast


class ForecastQuery(msgspec.Struct, frozen=True):
    """How long will this answer be?

    Attributes:
        request_id: The caller's name for the request.
        model: Who answers.
        prompt_tokens: Length of the prompt.
        max_tokens: The request's own cap on output tokens.
        text: What of the prompt may be read (`predictor.excerpt`); empty: nothing, so that the
            prior answers.
        temperature: Sampling temperature, at least 0; 0 decodes greedily.
    """

    request_id: str
    model: str
    prompt_tokens: int
    max_tokens: int
    text: str = ""
    temperature: float = 1.0


class LogT(msgspec.Struct, frozen=True):
    """A distribution of answer lengths: `ln X = mu + sigma T`, before any cap.

    Attributes:
        mu: Location of ln X.
        sigma: Scale of ln X, above 0.
    """

    mu: float
    sigma: float


class Answer(msgspec.Struct, frozen=True):
    """What the predictor says of one request.

    Attributes:
        forecast: What to schedule by; its source is `learned` or `prior`.
        learned: What the trained network said, before any correction made online; None: it was not
            asked or had no answer. Whoever reports the outcome gives it back, whether or not the
            forecast rests on it, so that a network out of favour is still being watched.
    """

    forecast: Forecast
    learned: LogT | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How long an answer was.

    Attributes:
        model: Who answered.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer, counted from the original prompt.
        censored: Whether a cap ended the answer, so that only a lower bound is known.
        max_tokens: The request's own cap; 0: not known.
        learned: What the network had said of it (`Answer.learned`).
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    censored: bool
    max_tokens: int = 0
    learned: LogT | None = None


class WatchStats(msgspec.Struct, frozen=True):
    """How good forecasts have been over the latest outcomes that had both.

    Attributes:
        outcomes: Outcomes in the window.
        trusted: Whether the network's forecasts are served; else the prior's.
        reason: Why they are not; empty when they are.
        fallbacks: Times that trust was lost since the start.
        coverage: Share of the window inside the intervals served for it (NaN: no outcome).
        target: The coverage that was asked for.
        rank: Kendall's tau-b between E[min(X, cap)] of the network and the lengths (NaN: none).
        rank_prior: The same of the prior.
        gain: Mean log-likelihood of the corrected network over that of the prior, in nats per
            outcome; above 0 where the network is the better forecaster (NaN: none).
        shift: What the correction adds to the network's z-scores, in its own sigmas.
        scale: What it multiplies the network's sigma with.
    """

    outcomes: int
    trusted: bool
    reason: str
    fallbacks: int
    coverage: float
    target: float
    rank: float
    rank_prior: float
    gain: float
    shift: float
    scale: float


class PredictorStats(msgspec.Struct, frozen=True):
    """What a predictor did since it started.

    Attributes:
        forecasts: Forecasts given.
        learned: Those of them that rest on the network.
        cached: Queries whose text was found in the cache.
        failed: Queries the network could not answer (no text, no finite number, an error inside).
        overflowed: Queries that found the queue full and were answered by the prior at once.
        last_failure: Why the latest of the failed ones was; None: none was.
        outcomes: Outcomes learnt from.
        rejected: Outcomes that were out of range and dropped.
        last_rejection: Why the latest of them was.
        saves: Times the state was written.
        save_error: Why the latest attempt to write it failed; None: it did not.
        load_warning: What was wrong with the state found at the start; None: nothing.
        network: Name of the network's folder; empty: there is none.
        network_error: Why the network that was asked for is not used; None: it is, or none was.
        watch: How good the network has been lately; None: there is none.
        born_ns: When it started, in nanoseconds of the Unix epoch: another one after a restart.
    """

    forecasts: int = 0
    learned: int = 0
    cached: int = 0
    failed: int = 0
    overflowed: int = 0
    last_failure: str | None = None
    outcomes: int = 0
    rejected: int = 0
    last_rejection: str | None = None
    saves: int = 0
    save_error: str | None = None
    load_warning: str | None = None
    network: str = ""
    network_error: str | None = None
    watch: WatchStats | None = None
    born_ns: int = 0
