"""Prompts in columns, as a network reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.batch import Floats, Ints
from predictor.messages import ForecastQuery


@dataclass(frozen=True, slots=True)
class Prompts:
    """n prompts put to language models, columns of n.

    Attributes:
        text: What of each prompt may be read (`predictor.excerpt`).
        model: Who answers it.
        prompt_tokens: Its length, at least 1, (n,).
        max_tokens: Cap on the answer; 0: not known, (n,).
        temperature: Sampling temperature, (n,).
    """

    text: Sequence[str]
    model: Sequence[str]
    prompt_tokens: Ints
    max_tokens: Ints
    temperature: Floats

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def of(cls, queries: Sequence[ForecastQuery]) -> Prompts:
        """The columns of `queries`."""
        return cls(
            [query.text for query in queries],
            [query.model for query in queries],
            np.array([query.prompt_tokens for query in queries], np.int64),
            np.array([query.max_tokens for query in queries], np.int64),
            np.array([query.temperature for query in queries], np.float64),
        )

    def take(self, rows: Sequence[int] | Ints) -> Prompts:
        """The prompts at these positions."""
        return Prompts(
            [self.text[row] for row in rows],
            [self.model[row] for row in rows],
            self.prompt_tokens[rows],
            self.max_tokens[rows],
            self.temperature[rows],
        )
