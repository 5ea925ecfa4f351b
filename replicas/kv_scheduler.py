r"""A vLLM scheduler that admits by projected memory and evicts by what it has learnt of lengths.

It is chosen by name. Forecasts come with the requests (`replicas.request_terms`), else from the
lengths of the answers so far; the policy is any of `policies.bundle`, with its options:

    vllm serve MODEL --scheduler-cls replicas.kv_scheduler.ProjectedMemoryScheduler \
        --additional-config '{"tiebreak": {"name": "tie+a_min", "max_evictions": 3}}'

What a step computes stays vLLM's business: chunked prefill, prefix caching, asynchronous
scheduling, speculation, structured output. Before each step this scheduler preempts running
requests until the step fits, and vLLM's waiting queue shows a request only while it may start.

`TOUCHED` lists all of vLLM that it relies on; a test compares the list with the installed version.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request

from policies.gate_options import gate_of, rehearse
from policies.ledger import Replica
from replicas.engine_forecasts import EngineForecasts
from replicas.gated_queue import GatedQueue
from replicas.protocol import Stalled
from replicas.request_terms import EXTRA_ARG
from replicas.shared_blocks import SharedBlocks
from replicas.stall_reports import StallReporter

TOUCHED: dict[str, tuple[str, ...]] = {
    "vllm.v1.core.sched.scheduler.Scheduler": (
        "_preempt_request",
        "block_size",
        "connector",
        "finished_req_ids",
        "kv_cache_config",
        "kv_cache_manager",
        "max_model_len",
        "max_num_active_reqs",
        "max_num_scheduled_tokens",
        "num_lookahead_tokens",
        "policy",
        "running",
        "schedule",
        "vllm_config",
        "waiting",
    ),
    "vllm.v1.core.sched.output.SchedulerOutput": (
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
    ),
    "vllm.v1.core.kv_cache_manager.KVCacheManager": (
        "block_pool",
        "enable_caching",
        "get_blocks",
        "get_computed_blocks",
    ),
    "vllm.v1.core.kv_cache_manager.KVCacheBlocks": ("blocks",),
    "vllm.v1.core.block_pool.BlockPool": ("get_num_free_blocks",),
    "vllm.v1.core.kv_cache_utils.KVCacheBlock": ("block_id", "ref_cnt"),
    "vllm.v1.request.Request": (
        "arrival_time",
        "is_finished",
        "is_prefill_chunk",
        "max_tokens",
        "num_computed_tokens",
        "num_output_placeholders",
        "num_output_tokens",
        "num_prompt_tokens",
        "num_tokens_with_spec",
        "priority",
        "request_id",
        "sampling_params",
        "status",
    ),
}
"""By class of vLLM, the attributes and methods that the plug-in uses or replaces."""


class UnsupportedEngineError(ValueError):
    """The engine's memory cannot be projected; the message says why and what to do."""


class ProjectedMemoryScheduler(AsyncScheduler):
    """vLLM's scheduler, with admission and eviction by a policy of `policies.bundle`.

    Raises:
        UnsupportedEngineError: Not every layer's KV cache is that of full attention, or a KV
            connector moves blocks about.
        ValueError: `additional_config["tiebreak"]` names an unknown policy or option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block_size = self._checked_block_size()
        additional = self.vllm_config.additional_config
        options = additional.get(EXTRA_ARG, {}) if isinstance(additional, dict) else {}
        replica = Replica(
            replica_id="engine",
            kv_blocks=self.kv_cache_config.num_blocks - 1,  # one is vLLM's null block
            block_size=self._block_size,
            slots=self.max_num_active_reqs,
            max_model_len=self.max_model_len,
        )
        rehearse(options, replica)
        # One step behind is in the projection: it counts a request's last token, which is never
        # computed.
        lag_steps = max(self.vllm_config.max_concurrent_batches - 2, 0)
        self._gate = gate_of(options, replica, lag_steps)
        self._queue = GatedQueue(
            self._gate,
            EngineForecasts(self.max_model_len),
            SharedBlocks(self.kv_cache_manager, self._block_size),
            by_priority=self.policy == SchedulingPolicy.PRIORITY,
        )
        self.waiting = self._queue
        self._reporter = StallReporter.from_environment()
        self._reported_changes = 0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One step: make room, let vLLM schedule, and say who waits."""
        self._queue.ended(self.finished_req_ids)
        self._queue.catch_up(self.running)
        # As in vLLM, nobody starts in a step that preempts.
        self._queue.closed = self._make_room()
        if not self._queue.closed:
            self._make_way()
            self._queue.closed = len(self.running) >= self.max_num_active_reqs
        output = super().schedule(throttle_prefills)
        self._queue.scheduled(output, self.running)
        self._report()
        return output

    def _report(self) -> None:
        changes = self._queue.changes
        if self._reporter is None or changes == self._reported_changes:
            return
        if self._reporter.send(self._stalled()):  # else again after the next step
            self._reported_changes = changes

    def _make_room(self) -> bool:
        """Preempt until the running requests' next step fits; whether anybody was."""
        preempted = False
        for request_id in self._gate.overdue():
            preempted |= self._preempt(request_id)
        pool = self.kv_cache_manager.block_pool
        if pool.get_num_free_blocks() >= self._most_blocks_needed():
            return preempted
        while len(self.running) > 1:
            needed, after = self._blocks()
            excess = needed - pool.get_num_free_blocks()
            if excess <= 0:
                break
            for request_id in self._gate.victims(after, excess)[: len(self.running) - 1]:
                preempted |= self._preempt(request_id)
        return preempted

    def _make_way(self) -> None:
        """Preempt for the first waiting request, which goes before them and starts in this step."""
        if not self._queue:
            for request_id in self._gate.make_way():
                self._preempt(request_id)

    def _most_blocks_needed(self) -> int:
        """Blocks that no step of the running requests can exceed."""
        tokens = self.max_num_scheduled_tokens + len(self.running) * self.num_lookahead_tokens
        return len(self.running) + tokens // self._block_size

    def _blocks(self) -> tuple[int, dict[str, int]]:
        """Blocks that the coming step adds, and those of each running request after it."""
        size, budget = self._block_size, self.max_num_scheduled_tokens
        needed = 0
        after: dict[str, int] = {}
        for request in self.running:
            computed = request.num_computed_tokens
            tokens = 0 if _completes_in_flight(request) else _tokens_due(request)
            tokens = min(tokens, budget, self.max_model_len - computed)
            budget -= tokens
            held = -(-computed // size)
            end = computed + tokens + (self.num_lookahead_tokens if tokens else 0)
            blocks = max(-(-min(end, self.max_model_len) // size), held)
            needed += blocks - held
            after[request.request_id] = blocks
        return needed, after

    def _preempt(self, request_id: str) -> bool:
        for index, request in enumerate(self.running):
            if request.request_id == request_id:
                del self.running[index]
                self._preempt_request(request, time.monotonic())
                return True
        return False

    def _stalled(self) -> dict[str, Stalled]:
        """Requests with a name that wait here."""
        return {
            name: Stalled(self._gate.tokens(r.request_id), self._gate.evictions(r.request_id))
            for r in self._queue
            if (name := self._queue.described(r).terms.id)
        }

    def _checked_block_size(self) -> int:
        groups = self.kv_cache_config.kv_cache_groups
        specs = [group.kv_cache_spec for group in groups]
        if len(specs) != 1 or type(specs[0]) is not FullAttentionSpec:
            kinds = ", ".join(sorted({type(spec).__name__ for spec in specs}))
            raise UnsupportedEngineError(
                f"the model's KV cache has {len(specs)} groups of layers ({kinds}), and memory is "
                "projected for one group of full attention only: serve it with vLLM's own "
                "scheduler (leave out --scheduler-cls, or set replicas.scheduler to vllm)"
            )
        if self.connector is not None:
            raise UnsupportedEngineError(
                "a KV connector (kv_transfer_config) moves blocks in and out of memory, which "
                "cannot be projected: leave it out, or serve with vLLM's own scheduler"
            )
        return int(self.block_size)


def _tokens_due(request: Request) -> int:
    tokens: int = (
        request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    )
    return tokens


def _completes_in_flight(request: Request) -> bool:
    """Whether the step under way gives its last token, so that vLLM schedules no other."""
    placeholders = request.num_output_placeholders
    end = request.num_prompt_tokens + request.max_tokens
    return bool(placeholders and request.num_computed_tokens + 2 - placeholders >= end)
