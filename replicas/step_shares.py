"""How the energy of engine steps is shared by the requests that were computed in them."""

from __future__ import annotations

from typing import NamedTuple

from replicas.step_time import LinearStepTime, StepWork


class StepShares(NamedTuple):
    """What each part of some steps' work is worth, in joules (or whatever was shared).

    Work is weighed by the time it takes: what a step costs whatever it computes, such as reading
    the weights, falls to the requests in it in equal parts, the rest to whoever caused it. Summed
    over the requests the shares are what was shared, to rounding.

    Attributes:
        per_request: Of each request in a step.
        per_prefill_token: Of each prompt token that is computed.
        per_prefill_pair: Of each query-key pair of prefill attention.
        per_decode_token: Of each token that is decoded.
        per_kv_token: Of each KV-cache token that decoding attends to.
    """

    per_request: float
    per_prefill_token: float
    per_prefill_pair: float
    per_decode_token: float
    per_kv_token: float

    @classmethod
    def of(
        cls,
        weights: LinearStepTime,
        work: StepWork,
        joules: float,
        *,
        requests: int,
        steps: int = 1,
    ) -> StepShares:
        """Share what some successive steps took.

        Args:
            weights: How long each part of the work takes.
            work: What all these steps computed together.
            joules: What is to be shared; 1 gives shares of the whole.
            requests: Requests in each step, the same number in all of them, at least 1.
            steps: How many steps.

        Raises:
            ValueError: There is nobody to share it.
        """
        if requests < 1 or steps < 1:
            raise ValueError(
                f"{joules} J of {steps} steps with {requests} requests: both must be at least 1"
            )
        seconds = weights.seconds(work) + (steps - 1) * weights.base_s
        if seconds <= 0:  # weights of zero weigh nothing, so that all requests count alike
            return cls(joules / (requests * steps), 0.0, 0.0, 0.0, 0.0)
        per_second = joules / seconds
        return cls(
            per_second * weights.base_s / requests,
            per_second * weights.per_prefill_token_s,
            per_second * weights.per_prefill_pair_s,
            per_second * weights.per_decode_token_s,
            per_second * weights.per_kv_token_s,
        )

    def prefill(self, start: int, tokens: int) -> float:
        """Joules of a chunk of a prompt, without its part of the step.

        Args:
            start: Prompt tokens before it.
            tokens: Its tokens.
        """
        pairs = tokens * start + tokens * (tokens + 1) // 2
        return self.per_prefill_token * tokens + self.per_prefill_pair * pairs

    def decode(self, context_tokens: int, tokens: int = 1) -> float:
        """Joules of decoding, without its part of the steps.

        Args:
            context_tokens: KV-cache tokens attended to, summed over the decoded tokens.
            tokens: Tokens decoded.
        """
        return self.per_decode_token * tokens + self.per_kv_token * context_tokens
