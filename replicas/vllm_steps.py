"""What each of vLLM's engine steps computed, read from its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from replicas.step_log import StepLog
from replicas.step_time import StepWork
from replicas.vllm_contexts import VllmContexts

if TYPE_CHECKING:
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.metrics.stats import IterationStats, SchedulerIterationDetails, SchedulerStats


class VllmSteps:
    """Logs the steps of a vLLM engine whose iteration details are on.

    vLLM says how many tokens a step prefilled and how many requests decoded; how long their
    contexts are is counted here. A step is logged when it followed the one before without an idle
    gap and the two accounts agree: not one that computes evicted tokens again, decodes speculated
    tokens, or still ran a request that had been stopped.

    The pairs of prefill attention are exact while at most one prompt at a time is prefilled in
    chunks and no such prompt begins with cached tokens.
    """

    def __init__(self, log: StepLog, requests: Callable[[], Iterable[RequestState]]) -> None:
        """Start before the first step.

        Args:
            log: Where steps go.
            requests: The requests that have not finished, as vLLM's output processor keeps them.
        """
        self._log = log
        self._contexts = VllmContexts(requests)
        self._index = -1
        self._busy = False
        self._produced = False
        self._ended_s = 0.0
        self._begun_tokens = 0  # of the prompt whose prefill goes on in the next step

    def begin(self, request_id: str, state: RequestState) -> None:
        """A request was given to the engine."""
        self._contexts.begin(request_id, state)

    def end(self, request_id: str) -> None:
        """A request has finished, or is to be aborted."""
        self._contexts.end(request_id)

    def observe(
        self,
        scheduler: SchedulerStats | None,
        iteration: IterationStats | None,
        now_s: float,
    ) -> None:
        """Take the statistics of a step, given out at `now_s` of a steady clock."""
        details = scheduler.iteration_details if scheduler is not None else None
        if scheduler is None or details is None or details.is_dummy:
            if iteration is not None:
                self._contexts.missed()
            return
        work = self._work(details, iteration)
        if work is not None and self._busy and details.iteration_index == self._index + 1:
            latencies = iteration.inter_token_latencies_iter if iteration is not None else []
            # vLLM stamps tokens in the engine's own process, free of the delay until they are here.
            stamped = bool(latencies) and self._produced
            self._log.append(min(latencies) if stamped else now_s - self._ended_s, work)
        self._index = details.iteration_index
        self._busy = scheduler.num_running_reqs + scheduler.num_waiting_reqs > 0
        self._produced = iteration is not None and iteration.num_generation_tokens > 0
        self._ended_s = now_s

    def _work(
        self, details: SchedulerIterationDetails, iteration: IterationStats | None
    ) -> StepWork | None:
        """What the step computed; None when that cannot be told."""
        requests, tokens = details.num_generation_requests, details.num_generation_tokens
        contexts = self._contexts.observe(iteration, one_each=requests == tokens)
        pairs = self._prefill_pairs(details.num_ctx_tokens, contexts.prefilled)
        agrees = contexts.decoding == requests == tokens
        work = StepWork(details.num_ctx_tokens, pairs, contexts.decoding, contexts.tokens)
        return work if agrees and pairs >= 0 else None

    def _prefill_pairs(self, tokens: int, prefilled: list[tuple[int, int]]) -> int:
        """Query-key pairs of `tokens` prompt tokens; negative when the accounts do not match.

        Whatever a step computes beyond the prompts that it ended, less what was begun before it,
        is the beginning of one that goes on.
        """
        ended = sum(prompt - cached for prompt, cached in prefilled)
        before, begun = self._begun_tokens, self._begun_tokens + tokens - ended
        self._begun_tokens = max(0, begun) if tokens else 0
        if begun < 0:
            return -1
        pairs = sum(_triangle(prompt) - _triangle(cached) for prompt, cached in prefilled)
        return pairs + _triangle(begun) - _triangle(before)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
