"""A vLLM engine whose model knows how long every answer is: one of vLLM's schedulers, driven."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from jobs.bare_scheduler import (
    STOP_TOKEN,
    Sizes,
    bare_scheduler,
    computed,
    engine_request,
    producing,
)
from policies.forecast import Forecast

FROM_FORECAST: dict[str, Any] = {}
"""Stands for `extra_args` made of a job's own fields."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request, and what its model and its forecaster know.

    Attributes:
        request_id: What vLLM calls it.
        prompt_tokens: Its prompt, earlier output included.
        output_tokens: Tokens it produces from there.
        max_tokens: Its cap on them; None: exactly what it produces.
        forecast: Counted from the original prompt; None: exact.
        key: Smaller goes first; None: by arrival.
        arrival_s: When it came.
        precedence: Its request class.
        evictions: Of earlier attempts.
        generated_tokens: Prompt tokens that are earlier output.
        shared_tokens: First prompt tokens, which are the same in all jobs.
        priority: vLLM's own.
        extra_args: What travels with it, if not what the fields say.
        parent_id: The id inside the terms, if not its own.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    forecast: Forecast | None = None
    key: float | None = None
    arrival_s: float = 0.0
    precedence: int = 0
    evictions: int = 0
    generated_tokens: int = 0
    shared_tokens: int = 0
    priority: int = 0
    extra_args: Mapping[str, Any] | None = field(default_factory=lambda: FROM_FORECAST)
    parent_id: str | None = None

    @property
    def cap(self) -> int:
        """Most tokens that it may produce."""
        return self.output_tokens if self.max_tokens is None else self.max_tokens

    @property
    def known(self) -> Forecast:
        """Its forecast."""
        return self.forecast or Forecast.exact(self.generated_tokens + self.output_tokens)

    @property
    def rank(self) -> tuple[int, float]:
        """Smaller goes first."""
        return self.precedence, self.arrival_s if self.key is None else self.key

    def terms(self) -> dict[str, Any]:
        """What travels to the scheduler."""
        known = self.known
        return {
            "id": self.parent_id or self.request_id,
            "mu": known.mu,
            "sigma": known.sigma,
            "lower": known.lower,
            "upper": known.upper,
            "key": self.rank[1],
            "arrival_s": self.arrival_s,
            "precedence": self.precedence,
            "evictions": self.evictions,
            "generated_tokens": self.generated_tokens,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """What one step changed.

    Attributes:
        started: Requests that began to run, in the order of their start.
        evicted: Requests that lost their memory.
        finished: Requests whose last token came back.
        running: Requests that ran in it.
        waiting: Requests that waited through it.
        computed_tokens: Tokens that it computed.
        free_blocks: After it.
    """

    started: tuple[str, ...]
    evicted: tuple[str, ...]
    finished: tuple[str, ...]
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    computed_tokens: int
    free_blocks: int


class Engine:
    """Drives a scheduler step by step, and checks after each that its accounts agree.

    Attributes:
        scheduler: The scheduler.
        steps: What each step so far changed.
        outputs: Tokens of each request, as vLLM gave them out.
        reasons: Why each request ended.
    """

    def __init__(
        self,
        scheduler_class: type[Scheduler],
        sizes: Sizes | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        behind: int = 0,
    ) -> None:
        """Start empty.

        Args:
            scheduler_class: Which.
            sizes: What it plans for.
            options: vLLM's `additional_config`.
            behind: Steps that are planned before the oldest one's tokens come back; 1 is vLLM's
                asynchronous scheduling.
        """
        self.sizes = sizes or Sizes()
        self.scheduler = bare_scheduler(
            scheduler_class, self.sizes, options, asynchronous=behind > 0
        )
        self.steps: list[Step] = []
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}
        self._behind = behind
        self._in_flight: deque[tuple[SchedulerOutput, list[str]]] = deque()
        self._jobs: dict[str, Job] = {}

    def add(self, job: Job) -> Request:
        """Hand over a request; one of its name may have ended."""
        self.reasons.pop(job.request_id, None)
        first = 1000 * (1 + len(self._jobs))
        own = range(first, first + job.prompt_tokens - job.shared_tokens)
        request = engine_request(
            job.request_id,
            [*range(10, 10 + job.shared_tokens), *own],
            job.cap,
            self.sizes,
            extra_args={"tiebreak": job.terms()}
            if job.extra_args is FROM_FORECAST
            else job.extra_args,
            priority=job.priority,
            arrival_s=job.arrival_s,
        )
        self._jobs[job.request_id] = job
        self.outputs[job.request_id] = []
        self.scheduler.add_request(request)
        return request

    def abort(self, *request_ids: str) -> None:
        """Stop requests, as a client that goes away does."""
        for request in self.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ABORTED):
            self._end(request.request_id, "abort")
        self.check()

    @property
    def running(self) -> list[str]:
        """Requests that hold memory, in the order of their start."""
        return [request.request_id for request in self.scheduler.running]

    @property
    def waiting(self) -> list[str]:
        """Requests that wait, in the queue's own order."""
        queues = self.scheduler.waiting, self.scheduler.kv_holding_waiting
        return [request.request_id for queue in queues for request in queue]

    @property
    def free_blocks(self) -> int:
        """Blocks that can be taken."""
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def evictions(self, request_id: str) -> int:
        """Times a live request was evicted here."""
        return self.scheduler.requests[request_id].num_preemptions

    def step(self) -> Step:
        """Plan a step; take back the tokens of the oldest step that is due."""
        requests = dict(self.scheduler.requests)
        before = {request_id: r.num_preemptions for request_id, r in requests.items()}
        ran = {r.request_id for r in self.scheduler.running}
        idle = bool(self.waiting) and not ran and not self._in_flight
        planned = self.scheduler.schedule()
        evicted = tuple(i for i, count in before.items() if requests[i].num_preemptions > count)
        started = tuple(i for i in self.running if i not in ran or i in evicted)
        running, waiting = tuple(self.running), tuple(self.waiting)
        self.check()
        assert started or not idle, f"{waiting} wait, nothing runs, and nothing was started"
        self._in_flight.append((planned, producing(self.scheduler, planned)))
        finished: list[str] = []
        while len(self._in_flight) > (self._behind if planned.num_scheduled_tokens else 0):
            finished += self._take_back()
        step = Step(
            started,
            evicted,
            tuple(finished),
            running,
            waiting,
            planned.total_num_scheduled_tokens,
            self.free_blocks,
        )
        self.steps.append(step)
        self.check()
        return step

    def run(self, jobs: Iterable[Job] = (), *, most_steps: int = 20_000) -> list[Step]:
        """Hand over `jobs` and step until everything has ended; returns all steps so far."""
        for job in jobs:
            self.add(job)
        for _ in range(most_steps):
            if not self.scheduler.has_unfinished_requests():
                break
            self.step()
        left = sorted(self.scheduler.requests)
        assert not left, f"after {most_steps} steps {left} have not ended"
        while self._in_flight:
            self._take_back()
        self.check()
        assert self.free_blocks == self.sizes.kv_blocks, "memory is left behind"
        return self.steps

    def check(self) -> None:
        """Nobody both runs and waits, nobody is lost, and every block is held or free."""
        running, waiting = self.running, self.waiting
        assert sorted(running + waiting) == sorted(self.scheduler.requests), (
            f"{running} run and {waiting} wait; alive are {sorted(self.scheduler.requests)}"
        )
        assert self.scheduler.get_request_counts() == (len(running), len(waiting))
        assert len(running) <= self.sizes.max_num_seqs
        manager = self.scheduler.kv_cache_manager
        held = {i: manager.get_block_ids(i)[0] for i in self.scheduler.requests}
        assert not any(held[i] for i in waiting), "a waiting request holds memory"
        blocks = [block for ids in held.values() for block in ids]
        if not self.sizes.prefix_caching:
            assert len(set(blocks)) == len(blocks), "two requests hold one block"
        assert len(set(blocks)) + self.free_blocks == self.sizes.kv_blocks

    def _take_back(self) -> list[str]:
        """The tokens of the oldest step in flight; the requests that they ended."""
        planned, ids = self._in_flight.popleft()
        alive = self.scheduler.requests
        tokens = {i: self._token(self._jobs[i], len(self.outputs[i])) for i in ids if i in alive}
        finished = []
        answers = self.scheduler.update_from_output(planned, computed(planned, tokens))
        for answer in answers.values():
            for output in answer.outputs:
                self.outputs[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    self._end(output.request_id, str(output.finish_reason))
                    finished.append(output.request_id)
        return finished

    def _end(self, request_id: str, reason: str) -> None:
        assert request_id not in self.reasons, f"{request_id} ended twice"
        self.reasons[request_id] = reason

    @staticmethod
    def _token(job: Job, position: int) -> int:
        last = position == job.output_tokens - 1
        return STOP_TOKEN if last and job.output_tokens < job.cap else 3
