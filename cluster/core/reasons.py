"""Why a request waits or where it runs, in sentences for whoever looks after the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cluster.core.candidates import Candidate, Need, candidates
from cluster.core.core_state import CoreState
from cluster.core.fleet import Fleet
from cluster.core.running import Running
from cluster.core.stalled import StalledRequest
from policies.request import RequestClass
from policies.waiting import Waiting, predicted_tokens

_GO_FIRST = {
    "fcfs": "that came earlier",
    "oracle": "smaller than it, or older",
    "oracle_volume": "smaller than it, or older",
} | dict.fromkeys(
    ("sjf", "sept", "tie", "kv_volume", "lower_bound", "upper_bound"),
    "expected to be smaller, or older",
)

_LACKS = {
    "memory": "without memory for it",
    "slots": "with all places taken",
    "slow": "slow beside the others",
    "reserved": "kept for a request that must run alone",
    "draining": "taking nothing more before the end",
    "too large": "too small for it",
}


class Reasons:
    """Finds the words; reads the core's state and changes nothing.

    Args:
        state: The core's.
        ordering: Name of the policy's ordering.
    """

    def __init__(self, state: CoreState, ordering: str) -> None:
        self._state = state
        self._go_first = _GO_FIRST.get(ordering, f"that the ordering {ordering} puts first")

    def first_waits(self, waiting: Waiting, need: Need) -> str:
        """Why the first request of the queue has not been dispatched."""
        state = self._state
        if state.pace.holds(waiting.request.request_class):
            return (
                f"is held by the power cap: {state.pace.running:,} of at most "
                f"{state.pace.most_running:,} offline requests run"
            )
        found = candidates(state.fleet, need)
        if not found:
            return "waits for a replica: none is ready"
        if found[0].verdict == "fits":
            return f"can start on {found[0].replica_id} with the next decision"
        if need.guard_band:
            without = candidates(state.fleet, need.unguarded)[0]
            if without.verdict == "fits":
                kept = f"the last {100 * need.guard_band:g} % of each replica's memory is"
                if need.only_empty:
                    kept = "the last free places in the batches are"
                return (
                    f"waits because {kept} kept for online requests, which keep coming; "
                    f"{without.replica_id} has room but for that"
                )
        return no_room(state.fleet, need, found)

    def behind(self, request_class: RequestClass, ahead: int, now: float) -> str:
        """What so many requests ahead of one are."""
        online = 0
        if request_class is RequestClass.OFFLINE:
            online = min(self._state.waiting.load(RequestClass.ONLINE, now).requests, ahead)
        same = ahead - online
        parts = [f"{_count(online, 'online request')}"] if online else []
        if same:
            shared = self._state.waiting.shares is not None
            tenants = " of tenants whose turn is before its own's, or" if shared else ""
            kind = "offline request" if online else "request"
            parts.append(f"{_count(same, kind)}{tenants} {self._go_first}")
        return f"is behind {' and '.join(parts)}"

    def waits_alone(self, request_id: str) -> str:
        """Why a request waits that must run alone."""
        strikes, kept = self._state.suspects[request_id], self._state.isolation.kept
        suspected = f"is suspected of having killed engines ({strikes:g} strikes), so it runs alone"
        if not kept:
            return f"{suspected}: waits for a replica that is empty"
        running = len(self._state.running.on(kept))
        return f"{suspected}: waits for {kept}, which still runs {_count(running, 'request')}"

    def moves(self, source: str, to: str, *, resubmitted: bool) -> str:
        """What becomes of a request between two attempts."""
        there = f"continues on {to}, where its room is kept," if to else "waits in the queue"
        if resubmitted:
            return f"{there} with the next decision"
        return f"was taken back from {source}; {there} once its client has asked for that"

    def runs(self, running: Running, tokens: int) -> str:
        """Where a request runs that was dispatched, and how far it is."""
        request, home = running.request, running.replica_id
        if self._state.fleet.is_ahead(home, request.request_id):
            return f"was sent to {home} ahead of there being room, and starts there when there is"
        reached = replace(request, generated_tokens=max(tokens, request.generated_tokens))
        expected = reached.generated_tokens + predicted_tokens(reached, running.forecast)
        alone = " alone" if self._state.isolation.is_alone(request.request_id) else ""
        return (
            f"runs{alone} on {home}: {tokens:,} output tokens so far, about {expected:,} expected, "
            f"{request.max_tokens:,} at most"
        )

    def waits_inside(
        self, running: Running, stalled: StalledRequest, found: Sequence[Candidate], now: float
    ) -> str:
        """Why a request waits inside the engine that it was sent to."""
        evicted = stalled.tokens > running.request.generated_tokens
        how = f"evicted at {stalled.tokens:,} output tokens" if evicted else "not started"
        there = (
            f"waits inside {stalled.replica_id} for {max(now - stalled.since_s, 0):.1f} s, {how}"
        )
        if not stalled.movable:
            return f"{there}; it is not moved"
        if not found:
            return f"{there}; there is no other replica"
        if found[0].verdict == "fits":
            return f"{there}; goes to {found[0].replica_id} unless it goes on there"
        return f"{there}; no other replica has room ({_counted(found)})"


def no_room(fleet: Fleet, need: Need, found: Sequence[Candidate]) -> str:
    """Why none of these replicas takes a request.

    Args:
        fleet: The ledgers.
        need: What it asks for.
        found: The replicas, the best first; at least one.
    """
    best = found[0]
    if best.verdict != "memory":
        if all(c.verdict == "slots" for c in found):
            every = "the replica runs" if len(found) == 1 else f"all {len(found):,} replicas run"
            return f"waits for a place: {every} as many requests as may be"
        return f"waits for a replica that takes it: {_counted(found)}"
    ledger = fleet[best.replica_id]
    blocks = -(-(need.held + need.steps) // ledger.replica.block_size)
    steps = peak_step(fleet, need, best)
    others = [c for c in found if c.verdict != "memory"]
    return (
        f"waits for memory: needs {_count(blocks, 'block')} at its peak; the best replica "
        f"({best.replica_id}) would reach {best.peak_with_blocks:,} of {best.limit_blocks:,} in "
        f"{_count(steps, 'step')}" + (f"; {_counted(others)}" if others else "")
    )


def peak_step(fleet: Fleet, need: Need, candidate: Candidate) -> int:
    """Steps until a replica would reach its peak with the request, where that has to fit."""
    profile = fleet[candidate.replica_id].profile
    ends = profile.times
    clocks = np.append(ends[ends < need.steps], need.steps)
    usage = profile.usage_at(clocks) - (-(need.held + clocks) // profile.block_size)
    highest = int(np.argmax(usage))
    if usage[highest] < candidate.peak_with_blocks:
        return profile.peak_time  # of the others, after its end
    return int(clocks[highest])


def _counted(found: Sequence[Candidate]) -> str:
    """How many replicas are out of the question, by why."""
    counts = Counter(candidate.verdict for candidate in found)
    return ", ".join(f"{n:,} {_LACKS[v]}" for v, n in counts.items() if v in _LACKS)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
