"""A replica in virtual time: a simulated engine and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.ledger import Replica
from cluster.scheduler import Dispatch
from policies.eviction import Eviction
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.step_time import StepTimeModel
from replicas.stretch import Stretch

_CLASS_STEP = 1e9  # beyond every key, so that a class stands before the next whatever the keys


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Replicas, all alike.

    Attributes:
        replicas: How many.
        limits: What each holds and computes at once.
        step_time: How long its steps take.
        max_model_len: Prompt plus output tokens one request may have; None: what the cache holds.
        look_ahead: Requests a replica is sent beyond `max_num_seqs`.
        on_eviction: `recompute` keeps an evicted request's tokens (vLLM), `restart` loses them (the
            papers).
        report_interval_s: How often replicas report their progress while requests wait, as real
            ones do; 0: after every step, and all estimates are then made anew for each decision.
        dispatch_latency_s: From what makes a dispatch possible, an arrival or the end of a request,
            until the request is in the engine, which goes on meanwhile with what it holds.
    """

    replicas: int
    limits: BatchLimits
    step_time: StepTimeModel
    max_model_len: int | None = None
    look_ahead: int = 0
    on_eviction: Literal["recompute", "restart"] = "recompute"
    report_interval_s: float = 0.25
    dispatch_latency_s: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (
            ("replicas", 1),
            ("look_ahead", 0),
            ("report_interval_s", 0),
            ("dispatch_latency_s", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name} is {value}, must be at least {least}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len is {self.max_model_len}, must be at least 2")


class VirtualReplica:
    """One replica of a simulated cluster.

    Attributes:
        replica: What the scheduler knows of it.
        index: Its number.
        batch: Its engine.
        planned: Whether its engine is in the middle of planned steps.
        version: Counts the plans; an event of an earlier one is void.
        busy_s: Seconds its engine computed.
        uncovered_s: Those of them outside the range of the step-time model.
        block_seconds: KV blocks in use, integrated over time.
        peak_blocks: Most KV blocks in use.
    """

    def __init__(self, index: int, spec: FleetSpec, eviction: Eviction) -> None:
        limits = spec.limits
        self.index = index
        self.replica = Replica(
            replica_id=f"r{index:04d}",
            kv_blocks=limits.kv_blocks,
            block_size=limits.block_size,
            slots=limits.max_num_seqs + spec.look_ahead,
            max_model_len=spec.max_model_len or limits.kv_tokens,
        )
        self._step_time = spec.step_time
        self.batch = ContinuousBatch(
            limits,
            spec.step_time,
            eviction=eviction,
            gives_back=True,
            slack=1 if spec.step_time.name == "unit" else 0,
        )
        self.planned = False
        self.version = 0
        self.busy_s = 0.0
        self.uncovered_s = 0.0
        self.block_seconds = 0.0
        self.peak_blocks = 0

    def add(self, dispatch: Dispatch) -> None:
        """Carry out a dispatch."""
        request = dispatch.request
        assert request.output_tokens is not None, "a simulated request has a true length"
        self.batch.add(
            request.request_id,
            request.prompt_tokens + request.generated_tokens,
            request.output_tokens - request.generated_tokens,
            dispatch.key + _CLASS_STEP * request.request_class,
            request=request,
            forecast=dispatch.forecast,
        )

    def begin(self, now: float) -> float:
        """Begin the next steps; returns when they end."""
        self.planned = True
        self.version += 1
        return self.batch.begin(now)

    def cut(self, now: float) -> float:
        """End the planned steps with the one in progress; returns when it ends."""
        self.version += 1
        return self.batch.cut(now)

    def complete(self) -> Stretch:
        """The planned steps have ended."""
        used = self.batch.used_blocks
        stretch = self.batch.complete()
        self.planned = False
        self.busy_s += stretch.duration_s
        if not self._step_time.covers(stretch.work):
            self.uncovered_s += stretch.duration_s
        self.block_seconds += stretch.duration_s * (used + stretch.peak_blocks) / 2
        self.peak_blocks = max(self.peak_blocks, stretch.peak_blocks)
        return stretch
