"""Requests that are suspected of having killed the engines that ran them."""

from __future__ import annotations

ENGINE_DIED = 1.0
"""Blame for each request that ran in an engine that said that it died."""

FROZEN = 1.0
"""Blame for each that ran in an engine that made no progress any more."""

VANISHED = 0.5
"""Blame for each that ran in a process that is gone without a word, and had not got further there.

Machines are preempted and processes killed for many reasons: that is no sign against a request that
was being answered.
"""

NODE_LOST = 0.0
"""Blame for each that ran on a node that is gone: no request does that."""

ALONE_AT = 2.0
"""Strikes from which on a request runs alone."""

FAIL_AT = 3.0
"""Strikes from which on it runs no more."""


def blamed(blame: float, *, got_further: bool) -> float:
    """Strikes for a request whose replica is gone.

    Args:
        blame: What the way in which the replica ended says of all that ran there.
        got_further: Whether the request had made tokens there.
    """
    return 0.0 if got_further and blame <= VANISHED else blame


class PoisonedRequestError(RuntimeError):
    """Engines die of the request."""


class Suspects:
    """The strikes of each request that has any."""

    def __init__(self) -> None:
        self._strikes: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._strikes)

    def __getitem__(self, request_id: str) -> float:
        return self._strikes.get(request_id, 0.0)

    def suspect(self, request_id: str, strikes: float) -> None:
        """A request is known to have at least so many strikes."""
        if strikes > self[request_id]:
            self._strikes[request_id] = strikes

    def runs_alone(self, request_id: str) -> bool:
        """Whether a request must have its engine for itself."""
        return self._strikes.get(request_id, 0.0) >= ALONE_AT

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._strikes.pop(request_id, None)

    def refuse_poison(self, request_id: str, strikes: float) -> None:
        """Refuse what has killed too many engines.

        Raises:
            PoisonedRequestError: With this many strikes it runs no more.
        """
        if strikes >= FAIL_AT:
            raise PoisonedRequestError(
                f"request {request_id!r} has {strikes:g} strikes, and {FAIL_AT:g} are the end: "
                "the engines that ran it died, the last one while it ran there alone; look for "
                "what is unusual in it before you send it again"
            )
