"""How long a request waited in the queue, and what the queue lacked meanwhile, in words."""

from __future__ import annotations

from cluster.core.lacks import Lack, Lacked

AT_ONCE_S = 0.01
"""A shorter wait is none that anybody would ask about."""

_LEAST_SHARE = 0.02
"""Parts of a wait below this share are left out of the sentence."""

_WORDS = {
    Lack.MEMORY: "no replica was projected to have the memory for the first of the queue",
    Lack.GUARDED: "no replica had it beside the memory that is kept for online requests",
    Lack.PLACES: "all places in the replicas' batches were taken",
    Lack.KEPT: "the last free places were kept for online requests",
    Lack.POWER: "the power cap held offline work back",
    Lack.REPLICAS: "no replica served",
}


def told(waited_s: float, lacked: Lacked, *, ended: bool) -> str:
    """A sentence about a wait.

    Args:
        waited_s: Seconds in the queue.
        lacked: What the first request of the queue lacked meanwhile.
        ended: Whether it was sent to a replica then; else it waits still.
    """
    if ended and waited_s < AT_ONCE_S:
        return "did not wait in the queue"
    start = f"{'waited' if ended else 'has waited'} {_seconds(waited_s)} in the queue"
    least_s = _LEAST_SHARE * waited_s
    rest_s = waited_s - sum(lacked.seconds.values()) - lacked.unknown_s
    found = [(s, _WORDS[lack]) for lack, s in lacked.seconds.items()]
    found += [(rest_s, "others were being started before it"), (lacked.unknown_s, "not known why")]
    parts = [f"{_seconds(s)} {words}" for s, words in found if s >= least_s]
    return f"{start}: {'; '.join(parts)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
