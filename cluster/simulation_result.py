"""What a simulation came to."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.timeline import Timeline
from replicas.protocol import EnergyTotals


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulation came to beside its rows. Token counts are sums over all requests.

    Attributes:
        policy: Name of the bundle.
        step_time: Name of the step-time model.
        replicas: Replicas.
        capacity_blocks: KV blocks of all replicas together.
        finished: Requests that finished.
        refused: Requests larger than any replica.
        makespan_s: When the last one finished.
        prompt_tokens: Of the finished requests.
        output_tokens: Of the finished requests.
        evictions: Times a request lost its memory.
        recomputed_tokens: Tokens computed again, or generated again after a restart.
        wasted_tokens: Output tokens that restarts threw away.
        busy_s: Seconds the replicas computed, summed.
        uncovered_share: Share of those outside the range the step-time model was measured on.
        mean_waiting: Queue length averaged over time.
        peak_waiting: Longest queue.
        mean_memory_share: Share of the KV blocks in use, averaged over time.
        peak_memory_blocks: Most KV blocks one replica had in use.
        decisions: Rounds of decisions.
        dispatches: Dispatches decided.
        timeline: The cluster over time.
        energy: What the replicas drew until the last request finished; None without a power model.
    """

    policy: str
    step_time: str
    replicas: int
    capacity_blocks: int
    finished: int
    refused: int
    makespan_s: float
    prompt_tokens: int
    output_tokens: int
    evictions: int
    recomputed_tokens: int
    wasted_tokens: int
    busy_s: float
    uncovered_share: float
    mean_waiting: float
    peak_waiting: int
    mean_memory_share: float
    peak_memory_blocks: int
    decisions: int
    dispatches: int
    timeline: Timeline
    energy: EnergyTotals | None = None
