"""How long one engine step takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol


class StepTimeModel(Protocol):
    """Predicts the duration of an engine step from what the step computes."""

    def seconds(self, prefill_tokens: int, decode_tokens: int, kv_tokens: int) -> float:
        """Duration of one step in seconds.

        Args:
            prefill_tokens: Prompt tokens computed in the step, recomputed ones included.
            decode_tokens: Requests that decode one token in the step.
            kv_tokens: Tokens in the KV cache that the step's requests attend to, those computed in
                this step included.

        Returns:
            Seconds, finite and at least 0.
        """


@dataclass(frozen=True, slots=True)
class LinearStepTime:
    """A step time that is linear in the work of the step.

    A decode step is bound by memory bandwidth: reading the weights is `base_s` and reading the KV
    cache grows with `kv_tokens`; a prefill step is bound by arithmetic, which grows with
    `prefill_tokens`. Attention's quadratic part within one prompt is not modelled.

    Attributes:
        base_s: Seconds of a step that computes nothing.
        per_prefill_token_s: Seconds added by each prefill token.
        per_decode_token_s: Seconds added by each decoding request.
        per_kv_token_s: Seconds added by each token attended to.

    Raises:
        ValueError: A coefficient is negative or not finite.
    """

    base_s: float
    per_prefill_token_s: float
    per_decode_token_s: float
    per_kv_token_s: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"step time: {name} is {value}, must be finite and >= 0 seconds")

    def seconds(self, prefill_tokens: int, decode_tokens: int, kv_tokens: int) -> float:
        """See `StepTimeModel.seconds`."""
        return (
            self.base_s
            + self.per_prefill_token_s * prefill_tokens
            + self.per_decode_token_s * decode_tokens
            + self.per_kv_token_s * kv_tokens
        )
