"""The unit-step model of arXiv:2508.14544, section 2, driven through the policies alone.

Integer time, one worker, memory in tokens, every running request makes one token per step, an
evicted one restarts from nothing. Order, estimates, feasibility and victims come from the objects
under test; only the clock and the account are kept here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies import (
    Ints,
    MemoryProfile,
    Policy,
    QueueState,
    RequestBatch,
    choose_victims,
    learned_lower,
)


@dataclass(frozen=True, slots=True)
class Job:
    """One request of an instance; lengths in tokens, arrival in steps."""

    prompt: int
    output: int
    lower: int
    upper: int
    arrival: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to; lists are by job."""

    completions: list[int]
    starts: list[int]
    latency: int
    evictions: int
    wasted_tokens: int
    peak_tokens: int

    @property
    def makespan(self) -> int:
        return max(self.completions, default=0)

    @property
    def summary(self) -> tuple[int, int, int, int]:
        """Total latency, evictions, tokens wasted, makespan."""
        return self.latency, self.evictions, self.wasted_tokens, self.makespan


class Worker:
    """The state of one run, by job index."""

    def __init__(self, jobs: Sequence[Job], memory: int, policy: Policy, own_horizon: bool) -> None:
        self.memory, self.policy, self.own_horizon = memory, policy, own_horizon
        self.prompt = np.array([j.prompt for j in jobs], np.int64)
        self.output = np.array([j.output for j in jobs], np.int64)
        self.lower = np.array([j.lower for j in jobs], np.int64)
        self.upper = np.array([j.upper for j in jobs], np.int64)
        self.arrival = np.array([j.arrival for j in jobs], np.int64)
        self.cap = memory - self.prompt  # longer than this can never run
        if (self.output > self.cap).any():
            raise ValueError("a job's prompt and output exceed the memory; refuse it")
        self.generated = np.zeros(len(jobs), np.int64)
        self.started = np.full(len(jobs), -1, np.int64)
        self.completed = np.full(len(jobs), -1, np.int64)
        self.evictions = self.wasted_tokens = self.peak_tokens = 0

    def batch(self, jobs: Ints) -> RequestBatch:
        return RequestBatch(
            prompt_tokens=self.prompt[jobs],
            max_tokens=self.cap[jobs],
            generated_tokens=self.generated[jobs],
            arrival_s=self.arrival[jobs].astype(np.float64),
            mu=np.log((self.lower[jobs] + self.upper[jobs]) / 2),
            sigma=np.full(len(jobs), 0.3),
            lower=self.lower[jobs],
            upper=self.upper[jobs],
            output_tokens=self.output[jobs],
        )

    def running(self) -> Ints:
        return np.flatnonzero((self.started >= 0) & (self.completed < 0))

    def retire(self, now: int) -> None:
        self.completed[(self.completed < 0) & (self.generated == self.output)] = now

    def resolve_overflow(self) -> None:
        running = self.running()
        next_tokens = self.prompt[running] + self.generated[running] + 1
        keys = self.policy.eviction.keys(
            self.batch(running), self.started[running].astype(np.float64)
        )
        victims = running[choose_victims(keys, next_tokens, int(next_tokens.sum()) - self.memory)]
        self.lower[victims] = learned_lower(
            self.lower[victims], self.generated[victims], self.cap[victims]
        )
        self.evictions += len(victims)
        self.wasted_tokens += int(self.generated[victims].sum())
        self.generated[victims], self.started[victims] = 0, -1

    def admit(self, now: int) -> None:
        waiting = np.flatnonzero((self.started < 0) & (self.completed < 0) & (self.arrival <= now))
        if not len(waiting):
            return
        queue = QueueState(waiting=len(waiting), slots=1)
        keys = self.policy.ordering.keys(self.batch(waiting), queue)
        waiting = waiting[np.argsort(keys, kind="stable")]
        estimates = self.policy.admission.estimates(self.batch(waiting))
        profile = self.profile(now)
        for job, estimate in zip(waiting.tolist(), estimates.tolist(), strict=True):
            peak = profile.peak_during if self.own_horizon else profile.peak_with
            if peak(now, int(self.prompt[job]), estimate) > self.memory:
                break
            self.started[job] = now
            profile = self.profile(now)

    def profile(self, now: int) -> MemoryProfile:
        running = self.running()
        estimates = self.policy.admission.estimates(self.batch(running))
        generated = self.generated[running]
        return MemoryProfile(
            self.prompt[running] + generated - now, now + estimates - generated, block_size=1
        )

    def step(self) -> None:
        running = self.running()
        self.generated[running] += 1
        used = int((self.prompt[running] + self.generated[running]).sum())
        self.peak_tokens = max(self.peak_tokens, used)


def run(jobs: Sequence[Job], memory: int, policy: Policy, own_horizon: bool = False) -> Outcome:
    """Run until every job has completed.

    Args:
        jobs: The instance; ties go by index.
        memory: KV budget M in tokens.
        policy: What decides.
        own_horizon: Test a candidate's feasibility until its own completion, not until the last.

    Raises:
        RuntimeError: The policy makes no progress.
    """
    worker = Worker(jobs, memory, policy, own_horizon)
    limit = 100 + max((j.arrival for j in jobs), default=0) + 20 * sum(j.output for j in jobs)
    for now in range(limit):
        worker.retire(now)
        if (worker.completed >= 0).all():
            return Outcome(
                completions=worker.completed.tolist(),
                starts=worker.started.tolist(),
                latency=int((worker.completed - worker.arrival).sum()),
                evictions=worker.evictions,
                wasted_tokens=worker.wasted_tokens,
                peak_tokens=worker.peak_tokens,
            )
        worker.resolve_overflow()
        worker.admit(now)
        worker.step()
    raise RuntimeError(f"{int((worker.completed < 0).sum())} jobs incomplete after {limit} steps")
