"""Successive engine steps between two changes of the batch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from replicas.step_time import StepTimeModel, StepWork

NO_WORK = StepWork(0, 0, 0, 0)
_NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Evicted:
    """A request that lost its memory.

    Attributes:
        request_id: Which.
        tokens: Prompt and output tokens that existed.
        computed: Those of them whose KV was in the cache.
    """

    request_id: str
    tokens: int
    computed: int


class Chunk(NamedTuple):
    """Tokens of a request that a step prefilled.

    Attributes:
        request_id: Which request.
        start: Its tokens before them.
        tokens: How many.
        recomputed: The first so many of them had been computed before.
    """

    request_id: str
    start: int
    tokens: int
    recomputed: int


class Stretch(NamedTuple):
    """Successive steps between two changes of the batch. Their outputs exist at `ends_s`.

    Attributes:
        started_s: When the first step began, in the caller's seconds.
        duration_s: Seconds they took; 0 when there was nothing to do.
        steps: How many; more than one only when every request just decoded.
        work: What the first step computed.
        prefilled: Requests whose prefill ended here: they have their first token of this start.
        finished: Requests whose output is complete; their blocks are free.
        recomputed: Tokens per request whose KV was computed again.
        peak_blocks: Blocks held at the end of the last step, by those that finish too.
        chunks: What was prefilled, in the only step that prefills.
    """

    started_s: float
    duration_s: float = 0.0
    steps: int = 0
    work: StepWork = NO_WORK
    prefilled: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    recomputed: Mapping[str, int] = _NOTHING
    peak_blocks: int = 0
    chunks: tuple[Chunk, ...] = ()

    @property
    def ends_s(self) -> float:
        """When the last step ends."""
        return self.started_s + self.duration_s


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, for callers that need every token as it comes.

    Attributes:
        stretch: Its work and time.
        produced: Requests that have one more output token.
        evicted: Requests that lost their blocks before it.
    """

    stretch: Stretch
    produced: tuple[str, ...] = ()
    evicted: tuple[Evicted, ...] = ()


class Plan(NamedTuple):
    """Steps that have begun and whose end is known as long as nobody interferes.

    Attributes:
        started_s: When the first step begins.
        steps: How many; more than one only when every request just decodes.
        work: What the first step computes.
        duration_s: Seconds they take together.
        step_time: How long steps take.
    """

    started_s: float
    steps: int
    work: StepWork
    duration_s: float
    step_time: StepTimeModel

    @classmethod
    def of(cls, started_s: float, steps: int, work: StepWork, step_time: StepTimeModel) -> Plan:
        """The plan of these steps.

        Raises:
            ValueError: The step-time model answered with something that is not a duration.
        """
        if not steps:
            duration_s = 0.0
        elif work.prefill_tokens or not work.decode_tokens:
            duration_s = step_time.seconds(work)
        else:
            duration_s = step_time.decode_seconds(work.decode_tokens, work.context_tokens, steps)
        if not (math.isfinite(duration_s) and duration_s >= 0):
            raise ValueError(
                f"the step-time model {type(step_time).__name__} answered {duration_s} s for "
                f"{work}; a duration is finite and >= 0"
            )
        return cls(started_s, steps, work, duration_s, step_time)

    @property
    def ends_s(self) -> float:
        """When the last step ends."""
        return self.started_s + self.duration_s

    def ended(self, now: float) -> int:
        """Steps that have ended at `now`."""
        elapsed_s = now - self.started_s
        if elapsed_s >= self.duration_s:
            return self.steps
        return bisect_right(range(1, self.steps + 1), elapsed_s, key=self._seconds)

    def next_end_s(self, now: float) -> float:
        """When the step in progress at `now` ends."""
        return self.started_s + self._seconds(min(self.ended(now) + 1, self.steps))

    def cut(self, now: float) -> Plan:
        """The plan as far as the step that is in progress at `now`."""
        steps = self.ended(now)
        if steps == 0 or self.started_s + self._seconds(steps) < now:
            steps += 1
        if steps >= self.steps:
            return self
        return self._replace(steps=steps, duration_s=self._seconds(steps))

    def _seconds(self, steps: int) -> float:
        if steps == self.steps:
            return self.duration_s
        work = self.work
        return self.step_time.decode_seconds(work.decode_tokens, work.context_tokens, steps)
