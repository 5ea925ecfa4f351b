"""Networks that share one encoder, which reads each text once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from predictor.artifact import load_artifact
from predictor.encoder import EncoderSpec, Features, TextEncoder
from predictor.learned import LearnedForecaster


class RememberingEncoder(TextEncoder):
    """An encoder that keeps the features of every text it has read."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self._read: dict[str, Features] = {}

    def pooled(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        advance: Callable[[int], None] | None = None,
    ) -> Features:
        """See `TextEncoder.pooled`; told of a text's progress even where there is nothing to do."""
        fresh = list(dict.fromkeys(text for text in texts if text not in self._read))
        if fresh:
            features = super().pooled(fresh, batch_size=batch_size)
            self._read.update(zip(fresh, features, strict=True))
        if advance is not None:
            advance(len(texts))
        return np.array([self._read[text] for text in texts], np.float32)


@lru_cache(maxsize=2)
def shared_encoder(spec: EncoderSpec) -> RememberingEncoder:
    """The one encoder of its kind in this process."""
    return RememberingEncoder(spec)


def load(folder: Path) -> LearnedForecaster:
    """The network in a folder, whose encoder must not have been tuned."""
    artifact = load_artifact(folder)
    assert not artifact.tuned, "a tuned encoder reads texts in its own way"
    return LearnedForecaster(artifact, shared_encoder(artifact.encoder))
