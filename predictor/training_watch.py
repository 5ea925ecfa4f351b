"""Who is told how a training goes on."""

from __future__ import annotations

import msgspec


class Epoch(msgspec.Struct, frozen=True):
    """What one epoch came to.

    Attributes:
        number: From 1.
        loss: Mean of what was minimised over the training prompts, dropout and all.
        nll: Mean negative log-likelihood of the validation prompts' lengths in nats, after a shift
            and scale fitted to them, as calibration will do.
        best: Whether it is the lowest so far.
    """

    number: int
    loss: float
    nll: float
    best: bool


class TrainingWatch:
    """Told how a training goes on, and does nothing with it: a base for those who do."""

    def stage(self, name: str, total: int) -> None:
        """Something of `total` steps begins."""

    def advance(self, steps: int) -> None:
        """`steps` of it are done."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch ended, or was found in the checkpoint."""
