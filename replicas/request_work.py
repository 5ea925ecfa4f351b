"""What an engine has computed for each request, and what part of the engine's time that took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from replicas.step_time import LinearStepTime

DEFAULT_WEIGHTS = LinearStepTime(
    base_s=6e-3,
    per_prefill_token_s=3e-5,
    per_decode_token_s=2e-5,
    per_kv_token_s=4e-8,
    per_prefill_pair_s=2e-9,
)
"""Weighs work until an engine's own steps have been measured. Of the order of a model of 8 billion
parameters on one accelerator; only the proportions matter."""


class RequestWork(NamedTuple):
    """Work that was done for one request during some steps.

    Attributes:
        prefill_shares: Its part of what a step costs whatever it computes, in steps, summed over
            the steps that prefilled it: one over the requests in the step.
        prefill_tokens: Prompt tokens computed, recomputed ones included.
        prefill_pairs: Query-key pairs of their attention (see `StepWork`).
        recomputed_tokens: Those of `prefill_tokens` and `begun_tokens` whose KV had been computed
            before and was lost.
        decode_shares: As `prefill_shares`, of the steps that decoded it.
        decode_tokens: Output tokens computed by decoding.
        context_tokens: KV-cache tokens that those attended to, their own included.
        begun_tokens: Prompt tokens of it that were told earlier, as nobody's (see `Worked`).
    """

    prefill_shares: float = 0.0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    recomputed_tokens: int = 0
    decode_shares: float = 0.0
    decode_tokens: int = 0
    context_tokens: int = 0
    begun_tokens: int = 0

    def plus(self, other: RequestWork) -> RequestWork:
        """Both together."""
        return RequestWork(
            prefill_shares=self.prefill_shares + other.prefill_shares,
            prefill_tokens=self.prefill_tokens + other.prefill_tokens,
            prefill_pairs=self.prefill_pairs + other.prefill_pairs,
            recomputed_tokens=self.recomputed_tokens + other.recomputed_tokens,
            decode_shares=self.decode_shares + other.decode_shares,
            decode_tokens=self.decode_tokens + other.decode_tokens,
            context_tokens=self.context_tokens + other.context_tokens,
            begun_tokens=self.begun_tokens + other.begun_tokens,
        )

    @property
    def recomputed_share(self) -> float:
        """The part of the prefill that was done again, 0 to 1."""
        prefilled = self.prefill_tokens + self.begun_tokens
        return self.recomputed_tokens / prefilled if prefilled else 0.0

    def prefill_seconds(self, step_time: LinearStepTime) -> float:
        """Seconds of the engine's time that the prefill took, its shares of the steps included."""
        return (
            step_time.base_s * self.prefill_shares
            + step_time.per_prefill_token_s * self.prefill_tokens
            + step_time.per_prefill_pair_s * self.prefill_pairs
        )

    def decode_seconds(self, step_time: LinearStepTime) -> float:
        """Seconds of the engine's time that decoding took, its shares of the steps included."""
        return (
            step_time.base_s * self.decode_shares
            + step_time.per_decode_token_s * self.decode_tokens
            + step_time.per_kv_token_s * self.context_tokens
        )


NO_REQUEST_WORK = RequestWork()


class EngineStep(NamedTuple):
    """One step, or several alike, as a power model sees it.

    Attributes:
        seconds: How long it took.
        tokens: Tokens that it prefilled and decoded.
    """

    seconds: float
    tokens: int


class Worked(NamedTuple):
    """What an engine has done since it was asked before.

    Attributes:
        at_s: When it was asked, in seconds of the clock that its steps are measured on. Simulated
            time, where that runs faster.
        requests: Work by request, those included that have ended or were aborted meanwhile.
        unowned: Prefill of prompts that go on and whose owners the engine has not told yet.
        abandoned: Whether nobody will own what was told as unowned, this time's included.
        steps: The steps.
    """

    at_s: float
    requests: Mapping[str, RequestWork]
    unowned: RequestWork = NO_REQUEST_WORK
    abandoned: bool = False
    steps: tuple[EngineStep, ...] = ()
