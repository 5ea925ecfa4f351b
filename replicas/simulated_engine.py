"""An engine that behaves like continuous batching in real time, without a model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.batch import UnknownLengthError
from policies.gate import Gate
from policies.gate_options import gate_of, rehearse
from policies.ledger import Replica
from policies.model_lengths import ModelLengths
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.protocol import (
    Delta,
    EngineDeadError,
    EngineInfo,
    EngineLoad,
    EngineStartError,
    Generation,
    Stalled,
)
from replicas.request_work import EngineStep, Worked
from replicas.simulated_attempt import SimulatedAttempt
from replicas.simulated_output import OutputLengths, SimulatedOutput, plan_output
from replicas.stalled_requests import StalledRequests
from replicas.step_log import StepLog
from replicas.step_time import LinearStepTime, StepTimeModel
from replicas.stretch import StepResult

_MAX_LAG_S = 0.25
"""Seconds behind its own schedule that a late engine catches up with; more is forgiven."""

DEFAULT_STEP_TIME = LinearStepTime(
    base_s=6e-3, per_prefill_token_s=3e-5, per_decode_token_s=2e-5, per_kv_token_s=4e-8
)
"""Of the order of a model of 8 billion parameters on one accelerator; measured on none."""


@dataclass(frozen=True, slots=True)
class SimulatedEngineOptions:
    """What a simulated engine can hold, how fast it is and how long its answers are.

    Output lengths are log-normal where a request does not
    name its own: `ln X ~ Normal(ln output_median_tokens, output_log_sigma)`.

    Attributes:
        model: Name that `EngineInfo` reports.
        kv_blocks: KV-cache blocks.
        block_size: Tokens per block.
        max_num_seqs: Requests that run at once.
        max_num_batched_tokens: Tokens that one step may compute.
        max_model_len: Prompt plus output tokens that one request may have.
        step_time: Duration of a step: a model, or the coefficients of a `LinearStepTime` by name.
        time_scale: Simulated seconds that pass in one real second.
        output_median_tokens: Median output length.
        output_log_sigma: Standard deviation of the natural logarithm of the output length.
        seed: Draws the lengths, with the request's id; engines that continue each other's requests
            must share it.
        vocabulary_tokens: Token ids are below this.
        policy: Options of `policies.gate_options.gate_of`: a gate then starts and evicts requests
            by their terms, or by a prior that learns nothing where they have none; None: vLLM's own
            rules.

    Raises:
        ValueError: A value is out of range.
    """

    model: str = "simulated"
    kv_blocks: int = 4096
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    step_time: StepTimeModel | Mapping[str, float] = DEFAULT_STEP_TIME
    time_scale: float = 1.0
    output_median_tokens: float = 128.0
    output_log_sigma: float = 1.0
    seed: int = 0
    vocabulary_tokens: int = 32_000
    policy: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # Each validates its own values.
        _ = self.limits, self.lengths, self.step_time_model, self.new_gate()
        if self.max_model_len < 2:
            raise ValueError(
                f"max_model_len is {self.max_model_len}, must be >= 2: a prompt and an output token"
            )
        if not (math.isfinite(self.time_scale) and self.time_scale > 0):
            raise ValueError(f"time_scale is {self.time_scale}, must be finite and > 0")
        if not 1 <= self.vocabulary_tokens <= 1 << 31:
            raise ValueError(
                f"vocabulary_tokens is {self.vocabulary_tokens}, must be in 1..2**31 (int32 ids)"
            )

    @property
    def lengths(self) -> OutputLengths:
        """The distribution of output lengths."""
        return OutputLengths(self.output_median_tokens, self.output_log_sigma, self.seed)

    @property
    def step_time_model(self) -> StepTimeModel:
        """The model behind `step_time`."""
        if isinstance(self.step_time, Mapping):
            return LinearStepTime(**self.step_time, measured=None)
        return self.step_time

    @property
    def limits(self) -> BatchLimits:
        """The limits of the engine's batch."""
        return BatchLimits(
            kv_blocks=self.kv_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )

    @property
    def replica(self) -> Replica:
        """The engine as policies see it."""
        return Replica(
            "engine", self.kv_blocks, self.block_size, self.max_num_seqs, self.max_model_len
        )

    def new_gate(self) -> Gate | None:
        """A gate without requests; None without a policy."""
        return None if self.policy is None else gate_of(self.policy, self.replica)


class SimulatedEngine:
    """Implements `Engine` without a model: for load and placement tests and for trying things out.

    Steps follow `ContinuousBatch` and take as long as the step-time model says; answers follow
    `SimulatedOutput`. An engine without work sleeps.

    A request that is submitted again while it runs is ignored, unless its `attempt` is newer: then
    it replaces the old attempt.

    `die`, `freeze` and `thaw` are faults to test against: an engine that is gone, and one that
    answers every call and makes no progress.
    """

    def __init__(self, options: SimulatedEngineOptions) -> None:
        self.output_made = asyncio.Event()
        self.output_ready = asyncio.Event()
        self.stall_changed = asyncio.Event()
        self._options = options
        self._gate = options.new_gate()
        self._prior = ModelLengths()
        self._stalled = StalledRequests(self._gate, self.stall_changed)
        self._batch = ContinuousBatch(options.limits, options.step_time_model, gate=self._gate)
        self._log = StepLog()
        self._worked: list[EngineStep] | None = None
        self._due_s = 0.0
        self._attempts: dict[str, SimulatedAttempt] = {}
        self._unread: dict[str, SimulatedAttempt] = {}
        self._refused: dict[str, Delta] = {}
        self._work = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._task: asyncio.Task[None] | None = None
        self._death: str | None = None

    async def start(self) -> EngineInfo:
        """See `Engine.start`."""
        if self._death is not None:
            raise EngineStartError(f"{self._death}; make a new engine")
        if self._task is None:
            self._rehearse()
            self._task = asyncio.create_task(self._run(), name="simulated-engine")
            self._task.add_done_callback(self._ended)
        return EngineInfo(
            model=self._options.model,
            kv_blocks=self._options.kv_blocks,
            block_size=self._options.block_size,
            max_num_seqs=self._options.max_num_seqs,
            max_model_len=self._options.max_model_len,
            kind="simulated",
        )

    def _rehearse(self) -> None:
        """Have the policy's functions compiled before somebody waits for them."""
        if self._options.policy is None:
            return
        try:
            rehearse(self._options.policy, self._options.replica)
        except UnknownLengthError as error:
            raise EngineStartError(f"simulated engine: {error}") from error

    async def submit(self, generations: Sequence[Generation]) -> None:
        """See `Engine.submit`.

        Raises:
            EngineDeadError: The engine is dead or was not started.
        """
        self.check()
        if self._task is None:
            raise EngineDeadError("the engine has not been started")
        for generation in generations:
            try:
                self._add(generation)
            except ValueError as error:
                self._refused[generation.request_id] = Delta(
                    generation.request_id,
                    finish_reason="error",
                    error=str(error),
                    attempt=generation.attempt,
                )
                self._made_output()

    def _add(self, generation: Generation) -> None:
        request_id = generation.request_id
        current = self._attempts.get(request_id) or self._unread.get(request_id)
        if current is not None and generation.attempt <= current.generation.attempt:
            return
        self._forget(request_id)
        options = self._options
        longest = min(options.max_model_len, self._batch.limits.kv_tokens)
        output = plan_output(generation, options.lengths, longest, options.vocabulary_tokens)
        self._check_fits(output)
        attempt = SimulatedAttempt(generation, output, asyncio.get_running_loop().time())
        remaining = output.output_tokens - output.generated_tokens
        if remaining <= 0:  # the last answer got lost, its tokens did not
            attempt.finished = True
            self._unread[request_id] = attempt
            self._made_output()
            return
        self._batch.add(
            request_id,
            output.prompt_tokens + output.generated_tokens,
            remaining,
            generation.priority,
            request=attempt.sizes() if self._gate else None,
            forecast=attempt.forecast(self._prior) if self._gate else None,
            terms=generation.terms,
        )
        self._attempts[request_id] = attempt
        self._stalled.added(request_id)
        self._work.set()

    def _check_fits(self, output: SimulatedOutput) -> None:
        total = output.prompt_tokens + output.max_tokens
        for name, limit in (
            ("max_model_len", self._options.max_model_len),
            ("the KV cache (kv_blocks x block_size)", self._batch.limits.kv_tokens),
        ):
            if total > limit:
                raise ValueError(
                    f"prompt of {output.prompt_tokens} tokens plus max_tokens {output.max_tokens} "
                    f"is {total}, over {name} of {limit} tokens: shorten the prompt or lower "
                    "max_tokens"
                )

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `Engine.abort`."""
        for request_id in request_ids:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._batch.abort(request_id)
        self._attempts.pop(request_id, None)
        self._unread.pop(request_id, None)
        self._refused.pop(request_id, None)
        self._stalled.forget(request_id)

    def drain(self, *, finished_only: bool = False) -> list[Delta]:
        """See `Engine.drain`."""
        self.output_made.clear()
        self.output_ready.clear()
        read = [a for a in self._unread.values() if a.finished or not finished_only]
        deltas = [*self._refused.values(), *(attempt.take() for attempt in read)]
        self._refused.clear()
        for attempt in read:
            del self._unread[attempt.generation.request_id]
        return deltas

    def load(self) -> EngineLoad:
        """See `Engine.load`."""
        return EngineLoad(
            running=self._batch.running,
            waiting=self._batch.waiting,
            kv_usage=self._batch.used_blocks / self._batch.limits.kv_blocks,
        )

    def stalled(self) -> dict[str, Stalled]:
        """See `Engine.stalled`."""
        return dict(self._stalled.latest)

    def steps(self) -> NDArray[np.float64]:
        """See `Engine.steps`; the seconds are simulated ones."""
        return self._log.read()

    def worked(self) -> Worked:
        """See `Engine.worked`; in simulated time, up to the end of the step that is under way."""
        steps, self._worked = self._worked or [], []
        at_s = max(asyncio.get_running_loop().time(), self._due_s)
        return Worked(at_s * self._options.time_scale, self._batch.take_work(), steps=tuple(steps))

    def check(self) -> None:
        """See `Engine.check`."""
        if self._death is not None:
            raise EngineDeadError(self._death)

    def die(self, reason: str = "the simulated engine was told to die") -> None:
        """Fault: end like an engine whose process is gone. What was not drained stays readable."""
        self._death = reason
        if self._task is not None:
            self._task.cancel()
        self._made_output()

    def freeze(self) -> None:
        """Fault: make no more progress, while every call is still answered and `check` passes."""
        self._thawed.clear()

    def thaw(self) -> None:
        """End `freeze`; the work goes on where it stood."""
        self._thawed.set()

    async def stop(self) -> None:
        """See `Engine.stop`. Requests that are not finished are forgotten."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for request_id in list(self._attempts):
            self._forget(request_id)

    async def _run(self) -> None:
        """Step for ever. `_due_s` is when the latest step ends on the loop's clock."""
        loop = asyncio.get_running_loop()
        start_s = self._due_s = loop.time()
        simulated_s = 0.0
        while True:
            if not (self._batch.has_work and self._thawed.is_set()):
                await self._wait_for_work()
                self._due_s = loop.time()
            simulated_s = max(simulated_s, (self._due_s - start_s) * self._options.time_scale)
            result = self._batch.step(simulated_s)
            simulated_s = result.stretch.ends_s
            if result.stretch.steps:
                self._log.append(result.stretch.duration_s, result.stretch.work)
                if self._worked is not None:
                    work = result.stretch.work
                    tokens = work.prefill_tokens + work.decode_tokens
                    self._worked.append(EngineStep(result.stretch.duration_s, tokens))
            fresh = self._account(result)
            due_s = max(self._due_s, loop.time() - _MAX_LAG_S)
            self._due_s = due_s + result.stretch.duration_s / self._options.time_scale
            await asyncio.sleep(self._due_s - loop.time())
            await self._thawed.wait()
            self._publish(fresh, set(result.stretch.finished))

    async def _wait_for_work(self) -> None:
        while not (self._batch.has_work and self._thawed.is_set()):
            if not self._batch.has_work:
                self._work.clear()
                await self._work.wait()
            await self._thawed.wait()

    def _account(self, result: StepResult) -> list[SimulatedAttempt]:
        """Note what the step cost; the attempts that have a new token when it ends."""
        for evicted in result.evicted:
            self._attempts[evicted.request_id].preemptions += 1
        for request_id, tokens in result.stretch.recomputed.items():
            self._attempts[request_id].recomputed_tokens += tokens
        self._stalled.stepped(
            (evicted.request_id for evicted in result.evicted),
            (chunk.request_id for chunk in result.stretch.chunks),
        )
        return [self._attempts[request_id] for request_id in result.produced]

    def _publish(self, fresh: list[SimulatedAttempt], finished: set[str]) -> None:
        for attempt in fresh:
            request_id = attempt.generation.request_id
            if self._attempts.get(request_id) is not attempt:
                continue  # aborted or replaced during the step
            urgent = attempt.first_token_s is None
            if attempt.first_token_s is None:
                attempt.first_token_s = asyncio.get_running_loop().time() - attempt.accepted_s
            attempt.produced += 1
            self._unread[request_id] = attempt
            if request_id in finished:
                urgent = attempt.finished = True
                del self._attempts[request_id]
            self._made_output(urgent=urgent)

    def _made_output(self, *, urgent: bool = True) -> None:
        self.output_made.set()
        if urgent:
            self.output_ready.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.die(f"the simulated engine failed: {error}")
