"""What the scheduler inside vLLM costs: its part of an engine step beside vLLM's own."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from policies.bundle import DEFAULT_POLICY
from policies.logt import quantile

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

console = Console()

_BLOCK_SIZE = 16
_MAX_NUM_BATCHED_TOKENS = 8192
_MAX_MODEL_LEN = 1 << 14
_MAX_TOKENS = 1 << 13
_PROMPT_TOKENS = (50, 500)
_PLENTY = 8.0

_VLLM = "vLLM's own"
_REST = "room for the step"


@dataclass(frozen=True, slots=True)
class Regime:
    """What an engine is busy with.

    Attributes:
        name: For the tables.
        output_tokens: Median length of the answers.
        slots: Slots for each request that should run.
        memory: KV cache as a multiple of what that many typical requests hold in the end.
    """

    name: str
    output_tokens: int
    slots: float = 1
    memory: float = _PLENTY


REGIMES = (
    Regime("slots full", 2000),
    Regime("memory tight", 2000, slots=4, memory=0.4),
    Regime("one in, one out", 150),
)


class Stopwatch:
    """Time by label, each without what runs under another label inside it."""

    def __init__(self) -> None:
        self._ns: dict[str, int] = {}
        self._labels: list[str] = []
        self._since_ns = 0

    def timed(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """`function`, whose time is counted."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._labels.append(label)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._labels.pop()

        return wrapper

    def take(self) -> dict[str, int]:
        """Nanoseconds so far; they start again from nothing."""
        taken, self._ns = self._ns, {}
        return taken

    def _switch(self) -> None:
        now_ns = time.thread_time_ns()
        if self._labels:
            label = self._labels[-1]
            self._ns[label] = self._ns.get(label, 0) + now_ns - self._since_ns
        self._since_ns = now_ns


@dataclass(slots=True)
class Measured:
    """One entry per step.

    Attributes:
        plain_ns: Of `schedule` in the engine with vLLM's own scheduler.
        parts_ns: In the engine with ours, by label.
        running: Requests that ran there.
        started: Requests that had begun to run there since the step before.
    """

    plain_ns: list[int] = field(default_factory=list)
    parts_ns: list[dict[str, int]] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)

    def part_us(self, label: str) -> float:
        """Median of one label."""
        return median(ns.get(label, 0) for ns in self.parts_ns) / 1e3

    @property
    def vllm_us(self) -> float:
        """Median of vLLM's own code in the engine with our scheduler."""
        return self.part_us(_VLLM)

    @property
    def ours_us(self) -> float:
        """Median of all the rest there."""
        return median(sum(ns.values()) - ns.get(_VLLM, 0) for ns in self.parts_ns) / 1e3


class Arm:
    """An engine without a model, whose steps are planned one ahead as vLLM's are on a GPU."""

    def __init__(self, scheduler: Scheduler, work: Iterator[tuple[Request, int]], waiting: int):
        """Start empty.

        Args:
            scheduler: What is measured.
            work: Requests, each with the tokens that it produces.
            waiting: Requests that are kept waiting.
        """
        self.scheduler = scheduler
        self._work = work
        self._waiting = waiting
        self._lengths: dict[str, int] = {}
        self._in_flight: deque[tuple[SchedulerOutput, list[str]]] = deque()

    def step(self) -> tuple[int, int]:
        """Plan a step and take back the one before.

        Returns:
            Nanoseconds of `schedule`, and requests that it started.
        """
        from jobs.bare_scheduler import STOP_TOKEN, computed, producing

        scheduler = self.scheduler
        while len(scheduler.waiting) < self._waiting:
            request, self._lengths[request.request_id] = next(self._work)
            scheduler.add_request(request)
        before = time.thread_time_ns()
        planned = scheduler.schedule()
        spent_ns = time.thread_time_ns() - before
        self._in_flight.append((planned, producing(scheduler, planned)))
        if len(self._in_flight) > 1:
            ended, ids = self._in_flight.popleft()
            alive = [scheduler.requests[i] for i in ids if i in scheduler.requests]
            tokens = {
                r.request_id: STOP_TOKEN
                if r.num_output_tokens + 1 >= self._lengths[r.request_id]
                else STOP_TOKEN + 1
                for r in alive
            }
            scheduler.update_from_output(ended, computed(ended, tokens))
        started = len(planned.scheduled_new_reqs) + len(
            planned.scheduled_cached_reqs.resumed_req_ids
        )
        return spent_ns, started

    def fill(self) -> None:
        """Step until no more requests start and every prompt is prefilled."""
        quiet = 0
        while quiet < 3:
            _, started = self.step()
            prefilling = any(r.is_prefill_chunk for r in self.scheduler.running)
            quiet = 0 if prefilling or started > 4 else quiet + 1


def scheduler_command(
    running: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 256,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that wait in the engine.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each regime.")] = 400,
    policy_name: Annotated[str, typer.Option("--policy", help="Policy bundle.")] = DEFAULT_POLICY,
    seed: Annotated[int, typer.Option(help="Of prompts, lengths and forecasts.")] = 0,
) -> None:
    """Time the scheduler inside vLLM, step by step beside vLLM's own, without a model."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    results = {
        regime.name: measure(regime, running, waiting, steps, policy_name, seed)
        for regime in REGIMES
    }
    console.print(cost_table(results, waiting, policy_name))
    console.print(parts_table(results))


def measure(
    regime: Regime, running: int, waiting: int, steps: int, policy_name: str, seed: int
) -> Measured:
    """Step both engines in turn, once their batches stand."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from jobs.bare_scheduler import Sizes, bare_scheduler
    from replicas.kv_scheduler import ProjectedMemoryScheduler

    tokens_each = sum(_PROMPT_TOKENS) // 2 + regime.output_tokens
    blocks = running * -(-tokens_each // _BLOCK_SIZE)
    tight = Sizes(
        int(blocks * regime.memory),
        _BLOCK_SIZE,
        int(running * regime.slots),
        _MAX_NUM_BATCHED_TOKENS,
        _MAX_MODEL_LEN,
    )
    plenty = replace(tight, kv_blocks=int(_PLENTY * blocks), max_num_seqs=running)
    options = {"tiebreak": {"name": policy_name}}
    alone = bare_scheduler(AsyncScheduler, plenty, asynchronous=True)
    gated = bare_scheduler(ProjectedMemoryScheduler, tight, options, asynchronous=True)
    plain = Arm(alone, work(regime, plenty, seed), waiting)
    ours = Arm(gated, work(regime, tight, seed), waiting)
    plain.fill()
    ours.fill()
    gc.freeze()  # as vLLM's engine does once it has started
    measured, watch = Measured(), Stopwatch()
    for _ in range(steps):
        measured.plain_ns.append(plain.step()[0])
        with watched(watch):
            measured.started.append(ours.step()[1])
        measured.parts_ns.append(watch.take())
        measured.running.append(len(ours.scheduler.running))
    gc.unfreeze()
    return measured


def work(regime: Regime, sizes: Any, seed: int) -> Iterator[tuple[Request, int]]:
    """Requests of log-t lengths with the terms that a cluster sends, and the lengths."""
    from jobs.bare_scheduler import engine_request

    rng = np.random.default_rng(seed)
    for number in itertools.count():
        mu = rng.normal(math.log(regime.output_tokens), 0.5)
        sigma = rng.uniform(0.2, 0.6)
        tokens = int(np.exp(mu + sigma * rng.standard_t(3.5)).clip(1, _MAX_TOKENS))
        ends = quantile(mu, sigma, np.array([0.05, 0.95])).clip(1, _MAX_TOKENS)
        lower, upper = ends.astype(int).tolist()
        terms = {
            "id": f"q{number}",
            "mu": float(mu),
            "sigma": float(sigma),
            "lower": lower,
            "upper": upper,
            "key": float(number),
            "arrival_s": float(number),
        }
        request = engine_request(
            f"q{number}",
            range(rng.integers(*_PROMPT_TOKENS)),
            _MAX_TOKENS,
            sizes,
            extra_args={"tiebreak": terms},
            arrival_s=float(number),
        )
        yield request, tokens


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Count the time of vLLM's `schedule`, of ours around it, and of the queue inside both."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from replicas.gated_queue import GatedQueue
    from replicas.kv_scheduler import ProjectedMemoryScheduler

    labels: list[tuple[type, str, str]] = [
        (Scheduler, "schedule", _VLLM),
        (ProjectedMemoryScheduler, "schedule", _REST),
        *((GatedQueue, n, "progress of running requests") for n in ("catch_up", "scheduled")),
        (GatedQueue, "ended", "requests that ended"),
        (GatedQueue, "settle", "requests that started"),
        (GatedQueue, "add_request", "requests that came"),
        *(
            (GatedQueue, name, "whether the first may start")
            for name in ("__bool__", "peek_request", "pop_request", "__len__")
        ),
        *(
            (GatedQueue, name, "requests that were evicted or left")
            for name in ("prepend_request", "prepend_requests", "remove_request", "remove_requests")
        ),
    ]
    with ExitStack() as patches:
        for owner, name, label in labels:
            function = watch.timed(getattr(owner, name), label)
            patches.enter_context(patch.object(owner, name, function))
        yield


def cost_table(results: dict[str, Measured], waiting: int, policy_name: str) -> Table:
    """A step's time by regime: vLLM's own, and what is added to it."""
    table = Table(
        title=f"schedule() with {waiting:,} waiting, policy {policy_name}: CPU time, medians in us",
        title_justify="left",
        caption="alone: AsyncScheduler in another engine; vLLM: its code under our scheduler",
        caption_justify="left",
    )
    table.add_column("")
    for column in ("running", "starts/step", "alone", "vLLM", "ours", "ours/vLLM"):
        table.add_column(column, justify="right")
    for name, measured in results.items():
        table.add_row(
            name,
            f"{fmean(measured.running):.0f}",
            f"{fmean(measured.started):.2f}",
            f"{median(measured.plain_ns) / 1e3:,.0f}",
            f"{measured.vllm_us:,.0f}",
            f"{measured.ours_us:,.0f}",
            f"{measured.ours_us / measured.vllm_us:.1%}",
        )
    return table


def parts_table(results: dict[str, Measured]) -> Table:
    """Where our time goes."""
    table = Table(title="ours, in parts: medians, us", title_justify="left")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    labels = {label for m in results.values() for ns in m.parts_ns for label in ns} - {_VLLM}
    costs = {label: [m.part_us(label) for m in results.values()] for label in labels}
    for label, row in sorted(costs.items(), key=lambda item: -sum(item[1])):
        table.add_row(label, *(f"{cost:,.1f}" for cost in row))
    return table
