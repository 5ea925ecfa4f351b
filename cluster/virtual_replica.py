"""A replica in virtual time: a simulated engine and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cluster.scheduler import Dispatch
from cluster.virtual_energy import VirtualEnergy
from policies.bundle import Policy
from policies.gate import Gate
from policies.ledger import REFINE_AFTER, Replica
from replicas.batch_energy import Cost
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.power_model import ModelledDevice
from replicas.step_time import StepTimeModel
from replicas.step_weights import weights_of
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
        look_ahead: Requests a replica is sent beyond its batch and its memory. Its engine then
            keeps whom it evicts, too, and decides itself who starts when (`policies.gate`).
        on_eviction: `recompute` keeps an evicted request's tokens (vLLM), `restart` loses them (the
            papers): an engine that restarts gives back whom it evicts, and is sent nothing beyond
            its memory.
        report_interval_s: How often replicas report their progress while requests wait, as real
            ones do; 0: after every step, and all estimates are then made anew for each decision.
        dispatch_latency_s: From what makes a dispatch possible, an arrival or the end of a request,
            until the request is in the engine, which goes on meanwhile with what it holds.
        power: What each of them draws; None: energy is not accounted for.
    """

    replicas: int
    limits: BatchLimits
    step_time: StepTimeModel
    max_model_len: int | None = None
    look_ahead: int = 0
    on_eviction: Literal["recompute", "restart"] = "recompute"
    report_interval_s: float = 0.25
    dispatch_latency_s: float = 0.0
    power: ModelledDevice | None = None

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

    @property
    def refine_after(self) -> float:
        """Share of its steps after which a running request's length is estimated again."""
        return REFINE_AFTER if self.report_interval_s else 0.0


@dataclass(frozen=True, slots=True)
class HandedBack:
    """A recalled request that has left its engine.

    Attributes:
        request_id: Which.
        attempt: Number of the dispatch that it ends.
        tokens: Prompt and output tokens that exist.
        computed: Those of them whose KV was in the cache.
    """

    request_id: str
    attempt: int
    tokens: int
    computed: int


class VirtualReplica:
    """One replica of a simulated cluster.

    Attributes:
        replica: What the scheduler knows of it.
        index: Its number.
        batch: Its engine.
        gate: Its engine's own decisions; None where it is sent nothing ahead.
        energy: What it draws; None where that is not accounted for.
        recalls: Requests to hand back once the steps in progress have ended, with their attempts.
        planned: Whether its engine is in the middle of planned steps.
        version: Counts the plans; an event of an earlier one is void.
        busy_s: Seconds its engine computed.
        uncovered_s: Those of them outside the range of the step-time model.
        block_seconds: KV blocks in use, integrated over time.
        peak_blocks: Most KV blocks in use.
    """

    def __init__(self, index: int, spec: FleetSpec, policy: Policy) -> None:
        limits = spec.limits
        keeps_waiting = spec.look_ahead > 0 and spec.on_eviction == "recompute"
        self.index = index
        self.replica = Replica(
            replica_id=f"r{index:04d}",
            kv_blocks=limits.kv_blocks,
            block_size=limits.block_size,
            slots=limits.max_num_seqs + spec.look_ahead,
            max_model_len=spec.max_model_len or limits.kv_tokens,
            look_ahead=spec.look_ahead if keeps_waiting else 0,
            gives_way=keeps_waiting,
        )
        self.gate: Gate | None = None
        if keeps_waiting:
            engine = replace(self.replica, slots=limits.max_num_seqs, look_ahead=0)
            self.gate = Gate(policy, engine, refine_after=spec.refine_after)
        self._step_time = spec.step_time
        self.batch = ContinuousBatch(
            limits,
            spec.step_time,
            eviction=policy.eviction,
            gate=self.gate,
            gives_back=not keeps_waiting,
            slack=1 if spec.step_time.name == "unit" else 0,
        )
        self.energy: VirtualEnergy | None = None
        if spec.power is not None:
            self.energy = VirtualEnergy(spec.power, weights_of(spec.step_time, limits))
        self.recalls: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        self.planned = False
        self.version = 0
        self.busy_s = 0.0
        self.uncovered_s = 0.0
        self.block_seconds = 0.0
        self.peak_blocks = 0

    def add(self, dispatch: Dispatch, evictions: int, lost_tokens: int) -> None:
        """Carry out a dispatch.

        Args:
            dispatch: What to run.
            evictions: Times that it was evicted before.
            lost_tokens: Tokens of it whose KV was computed before, and lost.
        """
        request = dispatch.request
        assert request.output_tokens is not None, "a simulated request has a true length"
        if self.gate is not None:
            self._attempts[request.request_id] = dispatch.attempt
        self.batch.add(
            request.request_id,
            request.prompt_tokens + request.generated_tokens,
            request.output_tokens - request.generated_tokens,
            dispatch.key + _CLASS_STEP * request.request_class,
            request=request,
            forecast=dispatch.forecast,
            terms=dispatch.terms(evictions),
            once_computed=lost_tokens,
        )

    def recall(self, request_id: str) -> None:
        """A recall has arrived, of the attempt that is here now."""
        if request_id in self._attempts:
            self.recalls[request_id] = self._attempts[request_id]

    def hand_back(self) -> list[HandedBack]:
        """Give up the recalled requests that have not finished, between two steps."""
        returned = []
        for request_id, attempt in self.recalls.items():
            if request_id not in self.batch:
                continue
            tokens = self.batch.tokens(request_id)
            held = self.batch.held_blocks().get(request_id, 0) * self.replica.block_size
            self.batch.abort(request_id)
            returned.append(HandedBack(request_id, attempt, tokens, min(tokens, held)))
            del self._attempts[request_id]
        self.recalls.clear()
        return returned

    def evicted(self, request_id: str) -> Cost:
        """A request has lost its memory; what it cost here if it has left the engine, too."""
        if self.energy is None:
            return Cost()
        if self.gate is None:
            return self.energy.requests.take(request_id)
        self.energy.requests.evicted(request_id)
        return Cost()

    def ended(self, request_id: str) -> Cost:
        """What a request that has left the engine cost here."""
        return Cost() if self.energy is None else self.energy.requests.take(request_id)

    def stalls(self) -> dict[str, int] | None:
        """Output tokens of those that wait in the engine; None where they are the same as before.

        Between two steps, or at the begin of one.
        """
        if self.gate is None:
            return None
        told, self._told = self._told, self.gate.waiting_tokens()
        return None if told == self._told else self._told

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
        if self.energy is not None:
            self.energy.book(stretch)
        for request_id in stretch.finished:
            self._attempts.pop(request_id, None)
        self.planned = False
        self.busy_s += stretch.duration_s
        if not self._step_time.covers(stretch.work):
            self.uncovered_s += stretch.duration_s
        self.block_seconds += stretch.duration_s * (used + stretch.peak_blocks) / 2
        self.peak_blocks = max(self.peak_blocks, stretch.peak_blocks)
        return stretch
