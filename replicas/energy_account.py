"""Who used the energy that a replica's meter has counted."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from replicas.idle_power import IdlePower
from replicas.protocol import EnergyTotals
from replicas.request_work import DEFAULT_WEIGHTS, RequestWork, Worked
from replicas.step_time import LinearStepTime

POWER_WINDOW_S = 1.0
"""Time over which power is averaged, at least."""

RATE_HALF_LIFE_S = 1.0
"""Age at which what a second of work took counts half in the estimate for what ends."""


class RequestEnergy(NamedTuple):
    """Energy of one attempt of a request, in joules.

    Attributes:
        joules: All of it.
        wasted_joules: The part of it that computed tokens again.
    """

    joules: float = 0.0
    wasted_joules: float = 0.0


@dataclass(slots=True)
class _Part:
    """Seconds of work, or the joules that they took, and the part that was done again."""

    all: float = 0.0
    wasted: float = 0.0

    def add(self, amount: float, wasted: float) -> None:
        self.all += amount
        self.wasted += wasted


@dataclass(slots=True)
class _Begun:
    """Prefill of prompts whose owners are not known yet."""

    tokens: int = 0
    joules: float = 0.0
    seconds: float = 0.0

    def take(self, tokens: int) -> tuple[float, float]:
        """Joules and seconds of so many of its tokens, which have found their owner."""
        share = min(1.0, tokens / self.tokens) if self.tokens else 0.0
        joules, seconds = share * self.joules, share * self.seconds
        self.tokens = max(0, self.tokens - tokens)
        self.joules -= joules
        self.seconds -= seconds
        return joules, seconds


class EnergyAccount:
    """Books what a meter counts: to requests, as idle, or to nobody.

    Idle power times time is taken out first. The rest is shared by the work done since the reading
    before, weighed by the time that each part of it takes (`weights`): the fixed part of a step
    falls to the requests in it in equal parts. What prefills tokens again is waste; so is the
    prefill of an attempt that continues another one's output.

    After every reading the books balance (I9): metered = requests + idle + unattributed, to
    rounding, whatever happens to requests and whenever the meter does not answer.

    Work that the meter has not counted yet waits for the next reading that is higher, and energy
    for which no work has been told waits for that, counted as unattributed. Only a request that
    ends cannot wait: its last moments are told at what a second of work took of late, and booked
    by the next reading.

    It reads no clock and no meter: times and readings come in.

    Args:
        source: The meter's name.
        idle_w: Watts of the hardware without work; None: the lowest power seen without any.
    """

    def __init__(self, source: str, idle_w: float | None = None) -> None:
        self.weights: LinearStepTime = DEFAULT_WEIGHTS
        self._source = source
        self._idle_power = IdlePower(idle_w)
        self._open: dict[str, _Part] = {}
        self._continued: set[str] = set()
        self._undone: dict[str, _Part] = {}  # seconds that no reading has counted yet
        self._late = _Part()  # the same, of requests that have ended
        self._stray_s = 0.0  # the same, of requests that nobody began
        self._begun = _Begun()
        self._at_s: float | None = None
        self._metered = self._idle = self._unattributed = self._held = 0.0
        self._requests = _Part()
        self._rate_joules = self._rate_s = 0.0
        self._readings: deque[tuple[float, float]] = deque()
        self._answered_s: float | None = None
        self._is_silent = False

    def begin(self, request_id: str, *, continued: bool = False) -> None:
        """A request was given to the engine.

        Args:
            request_id: Which.
            continued: Whether its prompt ends with output of an earlier attempt, so that its KV is
                computed again.
        """
        self._open[request_id] = _Part()
        if continued:
            self._continued.add(request_id)

    def end(self, request_id: str) -> RequestEnergy | None:
        """What a request has cost, which has ended; None: unknown, or no work was ever metered."""
        booked = self._open.pop(request_id, None)
        undone = self._undone.pop(request_id, None) or _Part()
        self._continued.discard(request_id)
        if booked is None:
            return None
        self._late.add(undone.all, undone.wasted)
        if self._at_s is None or (undone.all and not self._rate_s):
            return None
        rate_w = self._rate_joules / self._rate_s if self._rate_s else 0.0
        return RequestEnergy(
            booked.all + rate_w * undone.all, booked.wasted + rate_w * undone.wasted
        )

    def read(self, joules: float | None, worked: Worked) -> None:
        """Book what was metered and done since the last reading.

        Args:
            joules: The meter's total, never less than before; None: it does not answer.
            worked: What the engine has done since.
        """
        self._take_in(worked)
        if joules is not None or self._answered_s is None:
            self._answered_s = worked.at_s
        self._is_silent = worked.at_s - self._answered_s >= POWER_WINDOW_S
        if joules is None:
            return
        if self._at_s is None:
            self._at_s = worked.at_s
            self._readings.append((worked.at_s, 0.0))
        increase = joules - self._metered
        if increase <= 0:  # a slow counter: the work waits
            if worked.at_s - self._at_s >= POWER_WINDOW_S:  # or nothing is drawn any more
                self._note_power(worked.at_s)
            return
        elapsed_s = worked.at_s - self._at_s
        weight_s = self._weight_s
        is_idle = not (self._open or weight_s)
        self._idle_power.seen(worked.at_s, joules, is_idle=is_idle)
        if is_idle:
            self._idle += increase
            self._unattributed += self._held
            self._held = 0.0
        else:
            idle = min(increase, self._idle_power.watts * elapsed_s)
            self._idle += idle
            self._held += increase - idle
        self._metered, self._at_s = joules, worked.at_s
        self._note_power(worked.at_s)
        if weight_s:
            self._share(weight_s, elapsed_s)

    @property
    def totals(self) -> EnergyTotals:
        """The books after the latest reading."""
        return EnergyTotals(
            source=self._source,
            metered_joules=self._metered,
            request_joules=self._requests.all,
            wasted_joules=self._requests.wasted,
            idle_joules=self._idle,
            unattributed_joules=self._unattributed + self._held + self._begun.joules,
            power_w=self._power_w,
            idle_w=self._idle_power.watts,
        )

    @property
    def _weight_s(self) -> float:
        """Seconds of work that no reading has counted yet."""
        of_requests = sum(part.all for part in self._undone.values())
        return of_requests + self._late.all + self._stray_s + self._begun.seconds

    @property
    def _power_w(self) -> float | None:
        if self._is_silent:
            return None
        (begin_s, begin_joules), (end_s, end_joules) = (
            (self._readings[0], self._readings[-1]) if self._readings else ((0.0, 0.0), (0.0, 0.0))
        )
        return (end_joules - begin_joules) / (end_s - begin_s) if end_s > begin_s else 0.0

    def _take_in(self, worked: Worked) -> None:
        """Weigh what was done; prompts that have found their owner take along what they cost."""
        begun = self._begun
        begun.tokens += worked.unowned.prefill_tokens
        begun.seconds += worked.unowned.prefill_seconds(self.weights)
        for request_id, work in worked.requests.items():
            self._add(request_id, work)
        if worked.abandoned:
            self._unattributed += begun.joules
            self._stray_s += begun.seconds
            self._begun = _Begun()

    def _add(self, request_id: str, work: RequestWork) -> None:
        all_s = work.decode_seconds(self.weights)
        joules = wasted_joules = wasted_s = 0.0
        if work.prefill_tokens or work.begun_tokens:
            joules, seconds = self._begun.take(work.begun_tokens)
            seconds += work.prefill_seconds(self.weights)
            again = 1.0 if request_id in self._continued else work.recomputed_share
            all_s += seconds
            wasted_joules, wasted_s = again * joules, again * seconds
        booked = self._open.get(request_id)
        if booked is None:
            self._unattributed += joules
            self._stray_s += all_s
            return
        undone = self._undone.get(request_id)
        if undone is None:
            self._undone[request_id] = _Part(all_s, wasted_s)
        else:
            undone.add(all_s, wasted_s)
        if joules:
            booked.add(joules, wasted_joules)
            self._requests.add(joules, wasted_joules)

    def _share(self, weight_s: float, elapsed_s: float) -> None:
        """Book what is held to all work that waits for it, `weight_s` seconds."""
        held, of_all = self._held, self._late
        for request_id, part in self._undone.items():
            self._open[request_id].add(
                held * (part.all / weight_s), held * (part.wasted / weight_s)
            )
            of_all.add(part.all, part.wasted)
        self._requests.add(held * (of_all.all / weight_s), held * (of_all.wasted / weight_s))
        self._unattributed += held * (self._stray_s / weight_s)
        self._begun.joules += held * (self._begun.seconds / weight_s)
        kept = 0.5 ** (elapsed_s / RATE_HALF_LIFE_S)
        self._rate_joules = kept * self._rate_joules + held
        self._rate_s = kept * self._rate_s + weight_s
        self._held = self._stray_s = self._begun.seconds = 0.0
        self._late = _Part()
        self._undone = {}

    def _note_power(self, at_s: float) -> None:
        readings = self._readings
        readings.append((at_s, self._metered))
        while len(readings) > 2 and at_s - readings[1][0] >= POWER_WINDOW_S:
            readings.popleft()
