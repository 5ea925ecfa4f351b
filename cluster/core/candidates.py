"""The replicas, considered for a request: what the search for room makes of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.core.fleet import Fleet
from policies.ledger import ReplicaLedger

_VERDICTS = ("fits", "memory", "slots", "slow", "reserved", "draining", "too large")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica, considered for a request.

    Attributes:
        replica_id: Which.
        used_blocks: In use there now.
        peak_blocks: Projected peak without the request.
        peak_with_blocks: Projected peak with it, over the steps in which it must fit.
        limit_blocks: What that may be at most: the capacity, less the guard band for offline ones.
        free_slots: Places that are free for it.
        verdict: `fits`, `memory`, `slots`, `too large`, `slow`, `draining`, `reserved` where the
            replica is kept for a request that must run alone, or, where it is told, `online only`
            where it would fit but for what is kept for online requests.
    """

    replica_id: str
    used_blocks: int
    peak_blocks: int
    peak_with_blocks: int
    limit_blocks: int
    free_slots: int
    verdict: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a request asks of a replica.

    Attributes:
        held: Tokens that it brings (prompt and earlier output).
        steps: Tokens that it is projected to add.
        most: Tokens that it can reach.
        online: Whether it is an online request.
        guard_band: Share of a replica's memory that it must leave free.
        only_empty: Whether all places that are free are kept, but for those of empty replicas.
        besides: The replica in whose engine it waits; empty: none.
        in_batch: Whether it is sent nowhere to wait for a place in the batch.
    """

    held: int
    steps: int
    most: int
    online: bool
    guard_band: float = 0.0
    only_empty: bool = False
    besides: str = ""
    in_batch: bool = False

    @property
    def unguarded(self) -> Need:
        """The same, if nothing were kept for online requests."""
        return replace(self, guard_band=0.0, only_empty=False, in_batch=True)


def told_candidates(fleet: Fleet, need: Need) -> list[Candidate]:
    """The same as `candidates`, in the words of whoever looks on.

    Where only what is kept for online requests keeps it out, the verdict is `online only`.
    """
    if not (need.guard_band or need.only_empty):
        return candidates(fleet, need)
    taken = {c.replica_id for c in candidates(fleet, need) if c.verdict == "fits"}
    return [
        replace(candidate, verdict="online only")
        if candidate.verdict == "fits" and candidate.replica_id not in taken
        else candidate
        for candidate in candidates(fleet, need.unguarded)
    ]


def candidates(fleet: Fleet, need: Need) -> list[Candidate]:
    """Every replica but `need.besides`, the best one first.

    Says what `Fleet.place` would, but for estimates that it would first make again: nothing is
    changed here. Costs a projection per replica.
    """
    found = sorted(_considered(fleet, need), key=lambda pair: pair[0])
    quick_fits = any(
        candidate.verdict == "fits" and not fleet.is_avoided(candidate.replica_id)
        for _, candidate in found
    )
    return [
        replace(candidate, verdict="slow")
        if quick_fits and candidate.verdict == "fits" and fleet.is_avoided(candidate.replica_id)
        else candidate
        for _, candidate in found
    ]


def _considered(
    fleet: Fleet, need: Need
) -> Iterator[tuple[tuple[int, bool, bool, float, int], Candidate]]:
    """Candidates with what they are sorted by.

    Verdict, speed, whether it would wait for a place in the batch, share of their memory, index.
    """
    for index, ledger in enumerate(fleet):
        replica_id, capacity = ledger.replica.replica_id, ledger.replica.kv_blocks
        if replica_id == need.besides:
            continue
        must_fit, peak = fleet.outlook(replica_id, need.held, need.steps)
        candidate = _candidate(fleet, ledger, need, must_fit)
        share = (peak if candidate.verdict == "fits" else must_fit) / capacity
        waits = ledger.free_slots <= ledger.replica.look_ahead
        verdict, avoided = _VERDICTS.index(candidate.verdict), fleet.is_avoided(replica_id)
        yield (verdict, avoided, waits, share, index), candidate


def _candidate(fleet: Fleet, ledger: ReplicaLedger, need: Need, must_fit: int) -> Candidate:
    replica, used = ledger.replica, ledger.used_blocks
    limit = replica.kv_blocks
    if need.guard_band > 0 and used > 0:
        limit = int(limit * (1.0 - need.guard_band))
    in_batch = need.besides or need.guard_band or need.in_batch
    kept_slots = replica.look_ahead if in_batch else 0
    free_slots = max(ledger.free_slots - kept_slots, 0)
    if need.only_empty and used > 0:
        free_slots = 0
    verdict = _refusal(fleet, replica.replica_id, need)
    if not verdict:
        verdict = "slots" if not free_slots else "memory" if must_fit > limit else "fits"
    return Candidate(
        replica_id=replica.replica_id,
        used_blocks=used,
        peak_blocks=ledger.profile.peak,
        peak_with_blocks=must_fit,
        limit_blocks=limit,
        free_slots=free_slots,
        verdict=verdict,
    )


def _refusal(fleet: Fleet, replica_id: str, need: Need) -> str:
    """Why a replica is not even looked at; empty: it is."""
    if fleet.is_draining(replica_id):
        return "draining"
    if fleet.is_reserved(replica_id):
        return "reserved"
    if need.most > fleet[replica_id].replica.largest_request:
        return "too large"
    if fleet.is_avoided(replica_id) and not fleet.may_be_slow(need.most, online=need.online):
        return "slow"
    return ""
