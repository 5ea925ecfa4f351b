"""What is true of simulated requests; forecasters may read of it what they say they read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.workload import WorkloadError
from jobs.simulating.lengths import DrawnLengths
from jobs.simulating.prompt_table import DrawnPrompts
from policies.batch import Floats, Ints
from policies.fit import Bools


@dataclass(frozen=True, slots=True)
class Truth:
    """n requests in columns of shape (n,).

    Attributes:
        prompt_tokens: Prompt lengths.
        max_tokens: Caps on output tokens.
        output_tokens: Output lengths, 1 to `max_tokens`.
        mu: Location of ln X in the distribution that the uncut answer was drawn from; None where
            only its length is known.
        sigma: Scale of ln X there, None likewise.
        prompts: The prompts, where their text is known.
    """

    prompt_tokens: Ints
    max_tokens: Ints
    output_tokens: Ints
    mu: Floats | None
    sigma: Floats | None
    prompts: DrawnPrompts | None = None

    @classmethod
    def of(cls, drawn: DrawnLengths, max_tokens: int) -> Truth:
        """`drawn`, cut at `max_tokens`."""
        return cls(
            prompt_tokens=drawn.prompt_tokens,
            max_tokens=np.full_like(drawn.output_tokens, max_tokens),
            output_tokens=np.minimum(drawn.output_tokens, max_tokens),
            mu=drawn.mu,
            sigma=drawn.sigma,
            prompts=drawn.prompts,
        )

    @property
    def cut(self) -> Bools:
        """Whether the cap ended the answer, (n,); one that ends by itself there counts too."""
        return self.output_tokens >= self.max_tokens

    def distribution(self) -> tuple[Floats, Floats]:
        """Location and scale of each request, each (n,).

        Raises:
            WorkloadError: Only lengths are known.
        """
        if self.mu is None or self.sigma is None:
            raise WorkloadError(
                "these lengths come without the distributions they were drawn from, which the "
                "oracle forecast needs; choose the exact, noisy or prior forecast, or CASTILLO or "
                "log-t lengths"
            )
        return self.mu, self.sigma

    def target(self) -> tuple[Floats, Floats]:
        """What a predictor of mu and sigma is right about, each (n,).

        The request's distribution; where only lengths are known, the logarithm of the length and a
        scale of 0.
        """
        if self.mu is None or self.sigma is None:
            return np.log(self.output_tokens), np.zeros(len(self.output_tokens))
        return self.mu, self.sigma
