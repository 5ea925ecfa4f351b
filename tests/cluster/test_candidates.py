"""The replicas that are named for a request, against the search that decides."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.candidates import Candidate, Need, candidates
from cluster.core.fleet import Fleet
from cluster.core.projected_memory import projected_memory
from cluster.core.reasons import peak_step
from tests.cluster.factories import forecast, replica, request
from tests.cluster.test_fleet import disturb, fleet_of


def close_some(fleet: Fleet, rng: random.Random) -> None:
    """Some replicas drain, are kept for somebody, or are slow."""
    for ledger in fleet:
        close = rng.choice([fleet.drain, fleet.reserve, lambda _: None, lambda _: None])
        close(ledger.replica.replica_id)
        fleet._avoid(ledger.replica.replica_id, rng.random() < 0.3)


def share(fleet: Fleet, candidate: Candidate, need: Need) -> float:
    ledger = fleet[candidate.replica_id]
    return ledger.profile.peak_with(0, need.held, need.steps) / ledger.replica.kv_blocks


def waits(fleet: Fleet, candidate: Candidate) -> bool:
    """Whether it has no place in its batch but those of look-ahead."""
    ledger = fleet[candidate.replica_id]
    return ledger.free_slots <= ledger.replica.look_ahead


@given(seed=st.integers(0, 2**32), horizon=st.sampled_from(["own", "all"]))
@settings(max_examples=200, deadline=None)
def test_a_replica_fits_where_the_search_may_place(seed: int, horizon: str) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(rng, horizon, look_ahead=rng.choice([0, 2]))
    close_some(fleet, rng)
    names = [ledger.replica.replica_id for ledger in fleet]
    for _ in range(15):
        if rng.random() < 0.3:
            disturb(fleet, rng)
        fleet._summarise()  # so that both see the same estimates
        held, steps = rng.randint(0, 250), rng.randint(1, 120)
        besides = rng.choice(["", "", names[0]])
        need = Need(
            held,
            steps,
            held + rng.choice([steps, 200]),
            online=rng.random() < 0.5,
            guard_band=rng.choice([0.0, 0.0, 0.3]),
            besides=besides,
        )
        found = candidates(fleet, need)
        placed = fleet.place(
            held, steps, need.most, need.guard_band, besides=besides or None, online=need.online
        )
        fits = [candidate for candidate in found if candidate.verdict == "fits"]
        assert sorted(c.replica_id for c in found) == sorted(set(names) - {besides})
        if placed is None:
            assert not fits
        else:
            shares = [share(fleet, candidate, need) for candidate in fits]
            assert found[0] is fits[0]
            assert placed[0] in [candidate.replica_id for candidate in fits]
            assert shares[0] == placed[1] / fleet[placed[0]].replica.kv_blocks
            assert shares[0] == min(
                share
                for share, candidate in zip(shares, fits, strict=True)
                if waits(fleet, candidate) == waits(fleet, fits[0])
            )
            assert not waits(fleet, fits[0]) or all(waits(fleet, c) for c in fits)
        for candidate in found:
            if candidate.verdict == "memory":
                assert candidate.peak_with_blocks > candidate.limit_blocks
                step = peak_step(fleet, need, candidate)
                profile = fleet[candidate.replica_id].profile
                at = int(profile.usage_at([step])[0])  # type: ignore[arg-type]
                block_size = profile.block_size
                own = -(-(held + step) // block_size) if step <= steps else 0
                assert at + own == candidate.peak_with_blocks


def test_the_curve_begins_with_what_is_used_holds_the_peak_and_ends_empty() -> None:
    rng = random.Random(3)
    fleet = Fleet(fleet_of(rng, "own")._admission)
    fleet.join(replica("a", blocks=4096, slots=300))
    assert projected_memory(fleet["a"], 40) == ([0], [0])
    for number in range(200):
        running = request(f"r{number}", prompt=rng.randint(0, 300), cap=500)
        fleet["a"].add(running, forecast(50), rng.randint(1, 400))
    ledger = fleet["a"]
    for points in (4, 10, 40, 1000):
        steps, blocks = projected_memory(ledger, points)
        assert len(steps) == len(blocks) <= points
        assert steps[0] == 0
        assert steps == sorted(set(steps))
        assert blocks[0] == ledger.used_blocks
        assert blocks[-1] == 0
        assert max(blocks) == ledger.profile.peak
        assert blocks[steps.index(ledger.profile.peak_time)] == ledger.profile.peak
