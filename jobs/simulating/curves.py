"""What the figures draw of one simulation: small, however many requests there were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.simulation import SimulationResult
from cluster.timeline import Timeline
from jobs.simulating.rows import RowFile
from jobs.simulating.summary import sorted_quantiles
from policies.batch import Floats

_POINTS = 3000
"""Requests drawn as points."""
_INSTANTS = 400
"""Instants drawn of a timeline."""
SHARES = np.concatenate((np.linspace(0, 0.99, 397), 1 - np.geomspace(0.01, 1e-5, 100)[1:], [1.0]))
"""Shares of the requests, (k,), at which a distribution is drawn; denser in the upper tail."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Arrays to draw.

    Attributes:
        per_token_s: Latency per output token at `SHARES`, (k,); empty without finished requests.
        output_tokens: Lengths of requests drawn evenly, (m,).
        latency_s: How long each of those took from its arrival, (m,).
        timeline: The cluster over time, thinned.
        capacity_blocks: KV blocks of all replicas.
    """

    per_token_s: Floats
    output_tokens: Floats
    latency_s: Floats
    timeline: Timeline
    capacity_blocks: int


def curves_of(result: SimulationResult, rows: RowFile, per_token_s: Floats, seed: int) -> Curves:
    """Arrays to draw of one simulation; `per_token_s` is ascending, (n,)."""
    output_tokens, start_s, end_s = rows.sample(
        ("output_tokens", "arrival_s", "finished_s"), _POINTS, seed
    )
    return Curves(
        per_token_s=sorted_quantiles(per_token_s, SHARES) if len(per_token_s) else per_token_s,
        output_tokens=output_tokens,
        latency_s=end_s - start_s,
        timeline=_thinned(result.timeline),
        capacity_blocks=result.capacity_blocks,
    )


def _thinned(timeline: Timeline) -> Timeline:
    """Means over equal numbers of neighbouring samples, peaks kept of the projection and queue."""
    count = len(timeline.t_s)
    if count <= _INSTANTS:
        return timeline
    starts = np.linspace(0, count, _INSTANTS, endpoint=False).astype(np.int64)
    sizes = np.diff(starts, append=count)
    return Timeline(
        t_s=timeline.t_s[starts],
        waiting=np.maximum.reduceat(timeline.waiting, starts),
        running=np.add.reduceat(timeline.running, starts) / sizes,
        used_blocks=np.add.reduceat(timeline.used_blocks, starts) / sizes,
        projected_peak_blocks=np.maximum.reduceat(timeline.projected_peak_blocks, starts),
    )
