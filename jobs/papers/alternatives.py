"""Orderings that were tried against `kv_volume`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies import logt
from policies.batch import Floats, RequestBatch
from policies.ordering import QueueState, ScoreOrdering

_QUANTILES = (np.arange(16) + 0.5) / 16


@dataclass(frozen=True, slots=True)
class MedianVolume(ScoreOrdering):
    """KV volume of the median of what is to come: no mean, no tail."""

    name: ClassVar[str] = "median_volume"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Token steps, (n,)."""
        return _volumes(batch, np.array([0.5]))[:, 0]


@dataclass(frozen=True, slots=True)
class GittinsVolume(ScoreOrdering):
    """Gittins index with KV volume as the cost: the least expected volume per expected completion.

    A request may be given up at any quantile of what is to come; the index is that of the best
    one, so it prefers requests that may well be short (Gittins 1979).
    """

    name: ClassVar[str] = "gittins_volume"

    def scores(self, batch: RequestBatch, queue: QueueState) -> Floats:
        """Token steps per completion, (n,)."""
        volumes = _volumes(batch, _QUANTILES)
        count = len(_QUANTILES)
        ended = np.arange(1, count + 1)
        cost = (np.cumsum(volumes, axis=1) + (count - ended) * volumes) / count
        scores: Floats = (cost * count / ended).min(axis=1)
        return scores


def _volumes(batch: RequestBatch, quantiles: Floats) -> Floats:
    """KV volume to come if each request ends at each quantile, (n, quantiles)."""
    done = batch.generated_tokens
    ends = [
        logt.conditional_quantile(batch.mu, batch.sigma, batch.max_tokens, done, q)
        for q in quantiles.tolist()
    ]
    left = np.maximum(np.stack(ends, axis=1) - done[:, None], 1.0)
    held = (batch.prompt_tokens + done)[:, None]
    volumes: Floats = left * (held + left / 2)
    return volumes
