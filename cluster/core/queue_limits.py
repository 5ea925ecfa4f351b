"""How much may wait, how much does, and how fast it gets less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.request import RequestClass

SMOOTHING_S = 10.0
"""Time constant of the drain rate."""

RETRY_AFTER_S = (1.0, 60.0)
"""Shortest and longest that a refused request is told to stay away."""


class QueueFullError(RuntimeError):
    """As many requests of its class wait as may.

    Attributes:
        retry_after_s: When all that waits now should have left the queue.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait of each class; from there on new requests are refused.

    Attributes:
        online_requests: Online requests.
        online_tokens: Output tokens predicted for them.
        offline_requests: Offline requests.
        offline_tokens: Output tokens predicted for them.

    Raises:
        ValueError: A limit is below 1.
    """

    online_requests: int
    online_tokens: int
    offline_requests: int
    offline_tokens: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"queue limit {name} is {getattr(self, name)}, must be at least 1")

    def of(self, request_class: RequestClass) -> tuple[int, int]:
        """Most requests of a class, and most predicted tokens of them."""
        if request_class is RequestClass.ONLINE:
            return self.online_requests, self.online_tokens
        return self.offline_requests, self.offline_tokens


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What waits of one class.

    Attributes:
        requests: Requests.
        tokens: Output tokens predicted for them.
        drained_tokens_s: Predicted tokens that leave the queue per second, lately.
        retry_after_s: Seconds until all that waits now should have left it, within `RETRY_AFTER_S`.
    """

    requests: int
    tokens: int
    drained_tokens_s: float
    retry_after_s: float


class QueueMeter:
    """Counts what waits of one class, and the rate at which it leaves.

    The rate is an exponentially weighted mean over `SMOOTHING_S`, of the time since the queue was
    last out of use for longer than that.
    """

    __slots__ = ("_left_tokens", "_now", "_since", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self._left_tokens = 0.0
        self._since = -math.inf
        self._now = -math.inf

    def enter(self, tokens: int, now: float) -> None:
        """A request waits."""
        if not self.requests and now - self._now > SMOOTHING_S:
            self._left_tokens, self._since, self._now = 0.0, now, now
        self.requests += 1
        self.tokens += tokens

    def leave(self, tokens: int, now: float) -> None:
        """A request waits no more."""
        self.requests -= 1
        self.tokens -= tokens
        if now > self._now:
            self._left_tokens *= math.exp((self._now - now) / SMOOTHING_S)
            self._now = now
        self._left_tokens += tokens

    def load(self, now: float) -> QueueLoad:
        """What waits at `now`, in seconds."""
        if self._now == -math.inf:
            return QueueLoad(0, 0, 0.0, RETRY_AFTER_S[0])
        now = max(now, self._now)
        left = self._left_tokens * math.exp((self._now - now) / SMOOTHING_S)
        # Of the weights of a mean over all time, those since the beginning.
        weights = -math.expm1(-max(now - self._since, 1.0) / SMOOTHING_S)
        rate = left / (SMOOTHING_S * weights)
        shortest, longest = RETRY_AFTER_S
        drained_s = self.tokens / rate if rate > 0 else (longest if self.tokens else 0.0)
        return QueueLoad(self.requests, self.tokens, rate, min(max(drained_s, shortest), longest))
