"""How long one engine step takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple, Protocol


class StepTimeError(ValueError):
    """A step-time model cannot be had; the message says which, why and what to do."""


class StepWork(NamedTuple):
    """What one engine step computes.

    Attributes:
        prefill_tokens: Prompt tokens computed, recomputed ones included.
        prefill_pairs: Query-key pairs of their attention: a chunk of c tokens that follows p others
            of its prompt makes `c p + c (c + 1) / 2`.
        decode_tokens: Requests that decode one token each.
        context_tokens: KV-cache tokens that those requests attend to, the new ones included.
    """

    prefill_tokens: int
    prefill_pairs: int
    decode_tokens: int
    context_tokens: int


class StepTimeModel(Protocol):
    """Predicts the duration of an engine step from what the step computes."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def seconds(self, work: StepWork) -> float:
        """Duration of one step in seconds, finite and at least 0."""

    def decode_seconds(self, decode_tokens: int, context_tokens: int, steps: int) -> float:
        """Duration of `steps` successive steps in which the same requests only decode.

        It costs the same for any number of steps and grows with it.

        Args:
            decode_tokens: Requests that decode, at least 1.
            context_tokens: KV-cache tokens that the first step attends to; each further step
                attends to `decode_tokens` more.
            steps: At least 0.
        """

    def covers(self, work: StepWork) -> bool:
        """Whether the step lies within what the model was measured or fitted on."""


@dataclass(frozen=True, slots=True)
class UnitStepTime:
    """The papers' model: every step takes one second, whatever it computes (arXiv:2508.14544)."""

    name: ClassVar[str] = "unit"

    def seconds(self, work: StepWork) -> float:
        """See `StepTimeModel.seconds`."""
        return 1.0

    def decode_seconds(self, decode_tokens: int, context_tokens: int, steps: int) -> float:
        """See `StepTimeModel.decode_seconds`."""
        return float(steps)

    def covers(self, work: StepWork) -> bool:
        """See `StepTimeModel.covers`."""
        return True


@dataclass(frozen=True, slots=True)
class LinearStepTime:
    """A step time that is linear in the work of the step.

    A decode step is bound by memory bandwidth: reading the weights is `base_s` and reading the KV
    cache grows with the tokens attended to; a prefill step is bound by arithmetic, which grows with
    the prompt tokens and the pairs of their attention.

    Attributes:
        base_s: Seconds of a step that computes nothing.
        per_prefill_token_s: Seconds added by each prefill token.
        per_decode_token_s: Seconds added by each decoding request.
        per_kv_token_s: Seconds added by each KV-cache token that decoding requests attend to.
        per_prefill_pair_s: Seconds added by each query-key pair of prefill attention.
        measured: The largest step, in each respect, of those the coefficients were fitted on; None
            where they were declared, not fitted.

    Raises:
        ValueError: A coefficient is negative or not finite.
    """

    name: ClassVar[str] = "linear"
    base_s: float
    per_prefill_token_s: float
    per_decode_token_s: float
    per_kv_token_s: float
    per_prefill_pair_s: float = 0.0
    measured: StepWork | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "measured" and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"step time: {name} is {value}, must be finite and >= 0 seconds")

    def seconds(self, work: StepWork) -> float:
        """See `StepTimeModel.seconds`."""
        return (
            self.base_s
            + self.per_prefill_token_s * work.prefill_tokens
            + self.per_prefill_pair_s * work.prefill_pairs
            + self.per_decode_token_s * work.decode_tokens
            + self.per_kv_token_s * work.context_tokens
        )

    def decode_seconds(self, decode_tokens: int, context_tokens: int, steps: int) -> float:
        """See `StepTimeModel.decode_seconds`."""
        attended = steps * context_tokens + decode_tokens * (steps * (steps - 1) // 2)
        return (
            steps * (self.base_s + self.per_decode_token_s * decode_tokens)
            + self.per_kv_token_s * attended
        )

    def covers(self, work: StepWork) -> bool:
        """See `StepTimeModel.covers`."""
        return self.measured is None or all(
            value <= limit for value, limit in zip(work, self.measured, strict=True)
        )
