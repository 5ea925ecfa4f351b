"""What a snapshot says in three sentences: the bottleneck, the queue, the forecasts."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec

from cluster.snapshot import ClusterSnapshot, ForecastPoint, ReplicaView

GOOD, BUSY, BAD, UNKNOWN = "good", "busy", "bad", "unknown"
"""How a sentence is to be taken."""

ORDERS_WELL = 0.5
"""Kendall's tau from which on forecasts are called good: three of four pairs in the right order."""

ORDERS_SOMEWHAT = 0.2
"""Kendall's tau below which forecasts are called poor: hardly better than a coin."""

FEWEST_FORECASTS = 20
"""Finished requests below which nothing is said of the forecasts."""

WORDS = {
    "memory": "KV memory",
    "slots": "slots",
    "slow": "slowness",
    "draining": "leaving",
    "too large": "a first request too large for it",
    "reserved": "a suspected request that runs alone",
    "online only": "room kept for online requests",
}
"""What `ReplicaView.bottleneck` means to a reader."""

LONGEST_S = 60.0
"""Longest that `QueueView.retry_after_s` tells; the queue may take longer."""

_NOT_SERVING = ("placing", "loading", "leaving")


class Sentence(msgspec.Struct, frozen=True):
    """One finding.

    Attributes:
        level: `good`, `busy`, `bad` or `unknown`.
        short: In a few words.
        text: In full.
    """

    level: str
    short: str
    text: str


class Summary(msgspec.Struct, frozen=True):
    """A snapshot in words.

    Attributes:
        bottleneck: Which replicas take no more, and what they lack.
        queue: What waits, and why the first of it does.
        forecasts: How good they are.
    """

    bottleneck: Sentence
    queue: Sentence
    forecasts: Sentence


def summarise(snapshot: ClusterSnapshot) -> Summary:
    """Put a snapshot into words, in time linear in its size."""
    return Summary(_bottleneck(snapshot), queue_in_words(snapshot), _forecasts(snapshot))


def pressure(view: ReplicaView) -> float:
    """How full a replica is: its memory, now or at its projected peak, or its slots; 1 is full."""
    status = view.status
    memory = max(status.used_blocks, status.projected_peak_blocks) / max(status.kv_blocks, 1)
    return max(memory, status.running / max(status.slots, 1))


def by_pressure(views: Sequence[ReplicaView]) -> list[ReplicaView]:
    """The replicas, first those that take no more, then the fuller ones, at last those that come.

    Ties are broken by name, so that the order does not jump.
    """
    return sorted(views, key=_rank)


def _rank(view: ReplicaView) -> tuple[int, int, float, str]:
    state = view.status.state
    broken = 0 if state in ("failed", "lost") else 2 if state in _NOT_SERVING else 1
    takes_more = 1 if not view.bottleneck else 0
    # Whole percents: replicas that are about equally full keep their places.
    return broken, takes_more, -round(pressure(view), 2), view.status.replica_id


def _bottleneck(snapshot: ClusterSnapshot) -> Sentence:
    ready = [view for view in snapshot.replicas if view.status.state == "ready"]
    if not ready:
        states = Counter(view.status.state for view in snapshot.replicas)
        coming = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
        return Sentence(BAD, "No replica serves", f"No replica serves. Replicas: {coming}.")
    waits = any(queue.requests for queue in snapshot.queues)
    held = [view for view in by_pressure(ready) if view.bottleneck]
    if not held:
        fullest = max(ready, key=pressure)
        return Sentence(
            GOOD,
            "None",
            f"{_all(len(ready))} would take another request. The fullest, {_filled(fullest)}"
            + (" What waits is held back all the same: see the next box." if waits else ""),
        )
    worst = held[0]
    reasons = Counter(WORDS.get(view.bottleneck, view.bottleneck) for view in held)
    lacking = ", ".join(f"{count} for {word}" for word, count in reasons.most_common())
    return Sentence(
        BUSY if waits else GOOD,
        f"{worst.status.replica_id}: {WORDS.get(worst.bottleneck, worst.bottleneck)}",
        f"{len(held)} of {_count(len(ready), 'replica')} "
        f"{'takes' if len(held) == 1 else 'take'} no more now: {lacking}. The fullest, "
        f"{_filled(worst)}",
    )


def _filled(view: ReplicaView) -> str:
    status = view.status
    return f"{status.replica_id}: {_memory(view)}; {status.running} of {status.slots} slots taken."


def _memory(view: ReplicaView) -> str:
    status = view.status
    used = f"{status.used_blocks:,} of {status.kv_blocks:,} KV blocks needed"
    blocks = view.projection.blocks
    if not blocks or max(blocks) <= status.used_blocks:
        return f"{used}, and it will not need more"
    steps = view.projection.steps[blocks.index(max(blocks))]
    return f"{used}, {max(blocks):,} projected in {_count(steps, 'step')}"


def queue_in_words(snapshot: ClusterSnapshot) -> Sentence:
    """What waits, and why the first of it does; the only sentence that names requests."""
    waiting = [queue for queue in snapshot.queues if queue.requests]
    if not waiting:
        running = _count(snapshot.status.running, "request")
        return Sentence(GOOD, "Empty", f"Nothing waits; {running} in the replicas.")
    count = sum(queue.requests for queue in waiting)
    parts = ", ".join(
        f"{queue.requests:,} {queue.request_class} ({queue.predicted_tokens:,} predicted tokens)"
        for queue in waiting
    )
    seconds = max(queue.retry_after_s for queue in waiting)
    later = (
        "a minute or longer"
        if seconds >= LONGEST_S
        else f"about {_count(round(seconds), 'second')}"
    )
    text = f"{parts} waiting: {later} of work at the present rate."
    if snapshot.head:
        first = snapshot.head[0]
        # A tenant is shown its own requests only, of which the first may stand anywhere.
        place = "The first" if first.position == 1 else f"At place {first.position:,}"
        text += f" {place}, {first.request_id}: {first.reason.rstrip('.')}."
    return Sentence(BUSY, f"{count:,} waiting", text)


def _forecasts(snapshot: ClusterSnapshot) -> Sentence:
    ended = [point for point in snapshot.forecasts if not point.censored]
    if len(ended) < FEWEST_FORECASTS:
        return Sentence(
            UNKNOWN,
            "Not known yet",
            f"Too few answers have ended by themselves: {len(ended)}, of {FEWEST_FORECASTS} that "
            "are needed to judge the forecasts.",
        )
    factor = typical_factor(ended)
    said = [f"Half of the answers came within a factor of {factor:.1f} of their forecasts"]
    if snapshot.coverage is not None:
        said.append(f"{snapshot.coverage:.0%} lay inside their interval")
    tau = snapshot.rank_correlation
    if tau is None:
        return Sentence(UNKNOWN, "Order not known", "; ".join(said) + ".")
    right = f"{(1 + tau) / 2:.0%}"
    said.append(
        f"of two requests the shorter one was told right {right} of the time (tau {tau:.2f})"
    )
    level, short = (
        (GOOD, "Good")
        if tau >= ORDERS_WELL
        else (BUSY, "Fair")
        if tau >= ORDERS_SOMEWHAT
        else (BAD, "Poor: hardly better than chance" if tau > 0 else "Poor: no better than chance")
    )
    return Sentence(level, short, "; ".join(said) + ".")


def typical_factor(points: Sequence[ForecastPoint]) -> float:
    """Median over the points of `max(actual / median, median / actual)`; at least 1.

    Raises:
        statistics.StatisticsError: There is no point.
    """
    errors = [abs(math.log(max(p.actual, 1) / max(p.median, 1.0))) for p in points]
    return math.exp(statistics.median(errors))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _all(replicas: int) -> str:
    return "The only replica that serves" if replicas == 1 else f"All {replicas:,} that serve"
