"""How long a request waited in the queue, and what the queue lacked meanwhile, in words."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.core.lacks import Lack

AT_ONCE_S = 0.01
"""A shorter wait is none that anybody would ask about."""

_LEAST_SHARE = 0.02
"""Parts of a wait below this share are left out of the sentence."""

_WORDS = {
    Lack.MEMORY: "no replica was projected to have the memory for the first of the queue",
    Lack.PLACES: "all places in the replicas' batches were taken",
    Lack.KEPT: "the last free places were kept for online requests",
    Lack.POWER: "the power cap held offline work back",
    Lack.REPLICAS: "no replica served",
}


def told(waited_s: float, lacked: Mapping[Lack, float], *, ended: bool) -> str:
    """A sentence about a wait.

    Args:
        waited_s: Seconds in the queue.
        lacked: Seconds of them in which the first request of the queue could not start, by what it
            lacked, the longest first.
        ended: Whether it was sent to a replica then; else it waits still.
    """
    if ended and waited_s < AT_ONCE_S:
        return "did not wait in the queue"
    start = f"{'waited' if ended else 'has waited'} {_seconds(waited_s)} in the queue"
    least_s = _LEAST_SHARE * waited_s
    parts = [f"{_seconds(s)} {_WORDS[lack]}" for lack, s in lacked.items() if s >= least_s]
    rest_s = waited_s - sum(lacked.values())
    if rest_s >= least_s:
        # What was noted may begin later than the wait: at a restarted controller, or long ago.
        parts.append(f"{_seconds(rest_s)} others were being started before it, or nothing is known")
    return f"{start}: {'; '.join(parts)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
