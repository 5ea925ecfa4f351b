"""How many replicas the work needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from cluster.config_sections import AutoscaleConfig
from policies.ledger import ReplicaLedger

FULL = 0.7
"""Share of a replica that running work may fill for fewer replicas to count as enough."""

CALM = 0.5
"""Share of `target_wait_s` that queued work may take for fewer replicas to count as enough."""

REGRET = 10
"""Delays after a decrease in which an increase takes it back."""

MOST_CAUTION = 16
"""Most times the delay that a decrease waits."""


class Autoscaler:
    """Follows the predicted tokens that wait, over the tokens that replicas were measured to make.

    More replicas are wanted when what waits would take all of them longer than `target_wait_s`.
    Fewer are enough when what runs fits them with room to spare (`FULL`), and what waits would take
    them less than a part of that time (`CALM`). What lies between the two changes nothing.

    A change happens when it was wanted without a break for the delay of its direction, and then to
    the count that was least far away in that time, so that neither a short burst nor a short lull
    is followed. A decrease that had to be taken back makes the next one wait twice as long: engines
    with fewer requests are each faster, so how full they are does not tell what fewer would carry.

    The exceptions: a first replica is wanted as soon as anything waits, and bounds hold at once.

    Args:
        config: Bounds, target and delays.
    """

    def __init__(self, config: AutoscaleConfig) -> None:
        self._config = config
        self._up = _Wish()
        self._down = _Wish()
        self._tokens_s: float | None = None
        self._caution = 1
        self._decreased_s = -math.inf

    @property
    def enabled(self) -> bool:
        """Whether the number of replicas follows the work at all."""
        return self._config.max is not None

    def wanted(
        self,
        now: float,
        *,
        current: int,
        queued_tokens: int,
        busy: float,
        tokens_per_s_per_replica: float | None,
    ) -> int:
        """How many replicas there should be, those that are being started included.

        Ask about once a second.

        Args:
            now: Seconds.
            current: Replicas that there are or will be when all have started.
            queued_tokens: Output tokens predicted for the requests that wait.
            busy: How many replicas the running requests fill (see `busy_replicas`).
            tokens_per_s_per_replica: What a replica with work makes; None: not known yet, then the
                latest that was known counts.
        """
        if self._config.max is None:
            return current
        if tokens_per_s_per_replica is not None and tokens_per_s_per_replica > 0:
            self._tokens_s = tokens_per_s_per_replica
        if not current and queued_tokens:
            return self._bounded(1)
        within = self._bounded(current)
        if within != current:
            return within
        queued = self._replicas_for(queued_tokens, current)
        more = self._bounded(math.ceil(queued))
        fewer = self._bounded(math.ceil(max(queued / CALM, busy / FULL)))
        delay_s = (self._caution if fewer else 1) * self._config.down_delay_s
        grows = self._up.lasts(now, more if more > current else None, min, self._config.up_delay_s)
        shrinks = self._down.lasts(now, fewer if fewer < current else None, max, delay_s)
        if grows:
            taken_back = now - self._decreased_s < REGRET * delay_s
            self._caution = min(2 * self._caution, MOST_CAUTION) if taken_back else 1
            return self._up.take()
        if shrinks:
            self._decreased_s = now
            return self._down.take()
        return current

    def _replicas_for(self, queued_tokens: int, current: int) -> float:
        """How many replicas make the tokens in the target's time."""
        if not queued_tokens:
            return 0.0
        if self._tokens_s is None:
            return float(max(1, current))
        return queued_tokens / (self._tokens_s * self._config.target_wait_s)

    def _bounded(self, count: int) -> int:
        assert self._config.max is not None
        return min(max(count, self._config.min), self._config.max)


class _Wish:
    """A change in one direction, for as long as it is wanted without a break."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._count = 0

    def lasts(
        self, now: float, count: int | None, nearer: Callable[[int, int], int], delay_s: float
    ) -> bool:
        """Note what is wanted now, None for no change; whether some has been for the delay.

        Args:
            now: Seconds.
            count: Replicas that are wanted.
            nearer: Which of two counts is the smaller change.
            delay_s: How long it must be wanted.
        """
        if count is None:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s, self._count = now, count
        self._count = nearer(self._count, count)
        return now - self._since_s >= delay_s

    def take(self) -> int:
        """The count, which is no wish any more."""
        self._since_s = None
        return self._count


def busy_replicas(ledgers: Iterable[ReplicaLedger]) -> float:
    """How many replicas the requests would fill that run on these: by slots, or by memory."""
    return sum(
        min(
            1.0,
            max(
                len(ledger) / max(1, ledger.replica.slots - ledger.replica.look_ahead),
                ledger.profile.peak / ledger.replica.kv_blocks,
            ),
        )
        for ledger in ledgers
        if len(ledger)
    )
