"""A simulated request between its submission and its last token."""

from __future__ import annotations

import numpy as np

from policies.forecast import Forecast
from policies.model_lengths import ModelLengths
from policies.request import Request
from replicas.protocol import Delta, Generation
from replicas.simulated_output import SimulatedOutput


class SimulatedAttempt:
    """One attempt of a request: what was produced and what nobody has read yet.

    Attributes:
        generation: The request.
        output: Its whole answer.
        produced: Output tokens that exist, counted from the original prompt.
        read: Those of them that `take` has returned, or that the attempt began with.
        finished: Whether the answer is complete.
        preemptions: Times the attempt lost its KV blocks.
        recomputed_tokens: Tokens whose KV was computed again because of that.
        accepted_s: When it was accepted, in seconds of the event loop's clock.
        first_token_s: Seconds from then to its first token.
    """

    __slots__ = (
        "accepted_s",
        "finished",
        "first_token_s",
        "generation",
        "output",
        "preemptions",
        "produced",
        "read",
        "recomputed_tokens",
    )

    def __init__(self, generation: Generation, output: SimulatedOutput, accepted_s: float) -> None:
        self.accepted_s = accepted_s
        self.first_token_s: float | None = None
        self.generation = generation
        self.output = output
        self.produced = output.generated_tokens
        self.read = output.generated_tokens
        self.finished = False
        self.preemptions = 0
        self.recomputed_tokens = 0

    def sizes(self) -> Request:
        """The request as policies see it."""
        terms, output = self.generation.terms, self.output
        return Request(
            request_id=self.generation.request_id,
            prompt_tokens=output.prompt_tokens,
            max_tokens=output.max_tokens,
            arrival_s=self.accepted_s if terms is None else terms.arrival_s,
            generated_tokens=output.generated_tokens,
            output_tokens=output.output_tokens,
        )

    def forecast(self, prior: ModelLengths) -> Forecast:
        """The forecast that the request came with, else the prior's."""
        terms, output = self.generation.terms, self.output
        if terms is not None:
            forecast = terms.forecast
        else:
            (forecast,) = prior.forecasts(
                np.array([output.prompt_tokens]), np.array([output.max_tokens])
            )
        return forecast.at_least(output.generated_tokens)

    def take(self) -> Delta:
        """What is new since the last call."""
        tokens = [self.output.token(position) for position in range(self.read, self.produced)]
        self.read = self.produced
        return Delta(
            request_id=self.generation.request_id,
            token_ids=tokens,
            text="".join(f" w{token}" for token in tokens),
            finish_reason=self.output.finish_reason if self.finished else None,
            first_token_s=self.first_token_s,
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed_tokens,
            attempt=self.generation.attempt,
        )
