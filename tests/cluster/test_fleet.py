"""The fleet's search against one that asks every replica."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fleet import NEVER, Fleet
from cluster.ledger import Replica, ReplicaLedger
from policies.admission import AMin
from policies.forecast import Forecast
from tests.cluster.factories import forecast, request


def fleet_of(rng: random.Random, horizon: str, least_cap: int = 1) -> Fleet:
    """Replicas of several sizes, some of them overfull once their requests are better known."""
    fleet = Fleet(AMin(overdue="double"), horizon=horizon)
    for index in range(rng.randint(1, 6)):
        blocks, block_size = rng.randint(10, 60), rng.choice([1, 8, 16])
        fleet.join(Replica(f"r{index}", blocks, block_size, rng.randint(1, 6), 400))
        for number in range(rng.randint(0, 5)):
            name = f"r{index}/{number}"
            running = request(name, prompt=rng.randint(0, 120), cap=rng.randint(least_cap, 300))
            fleet[f"r{index}"].add(running, forecast(rng.randint(1, 90)), rng.randint(1, 90))
    return fleet


def disturb(fleet: Fleet, rng: random.Random) -> None:
    """Some replica reports progress, or one of its requests ends."""
    ledger = fleet[f"r{rng.randrange(len(fleet))}"]
    ids = ledger.request_ids
    if rng.random() < 0.5:
        ledger.progressed({name: rng.randint(0, 200) for name in ids})
        fleet.changed(ledger.replica.replica_id, refine=True)
    elif ids:
        ledger.remove(rng.choice(ids))
        fleet.changed(ledger.replica.replica_id)


def admitted_peak(
    ledger: ReplicaLedger, held: int, steps: int, most: int, guard_band: float, horizon: str
) -> int | None:
    """The overall peak with the request; None when the replica does not admit it."""
    capacity = ledger.replica.kv_blocks
    limit = int(capacity * (1 - guard_band)) if len(ledger) else capacity
    tested = ledger.profile.peak_during if horizon == "own" else ledger.profile.peak_with
    if ledger.free_slots < 1 or ledger.replica.largest_request < most:
        return None
    if tested(0, held, steps) > limit:
        return None
    return ledger.profile.peak_with(0, held, steps)


@given(seed=st.integers(0, 2**32), horizon=st.sampled_from(["own", "all"]))
@settings(max_examples=300, deadline=None)
def test_the_search_finds_what_asking_every_replica_finds(seed: int, horizon: str) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(rng, horizon)
    for _ in range(25):
        if rng.random() < 0.3:
            disturb(fleet, rng)
        held, steps = rng.randint(0, 250), rng.randint(1, 120)
        guard_band = rng.choice([0.0, 0.0, 0.3])
        most = held + rng.choice([steps, 200])
        placed = fleet.place(held, steps, most, guard_band)
        peaks = {
            ledger.replica.replica_id: peak
            for ledger in fleet
            if (peak := admitted_peak(ledger, held, steps, most, guard_band, horizon)) is not None
        }
        shares = {name: peak / fleet[name].replica.kv_blocks for name, peak in peaks.items()}
        if placed is None:
            assert not peaks
        else:
            name, peak = placed
            assert peaks[name] == peak
            assert shares[name] == min(shares.values())


@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_totals_are_those_of_the_ledgers(seed: int) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(rng, "own")
    for index in range(12):
        disturb(fleet, rng)
        if index == 6 and len(fleet) > 1:
            fleet.leave(f"r{len(fleet) - 1}")
        assert fleet.used_blocks == sum(ledger.used_blocks for ledger in fleet)
        assert fleet.peak_blocks == sum(ledger.profile.peak for ledger in fleet)
        assert fleet.has_free_slot == any(ledger.free_slots > 0 for ledger in fleet)


@pytest.mark.parametrize(("horizon", "expected"), [("own", ("r", 110)), ("all", None)])
def test_who_is_gone_before_the_overload_is_admitted_by_its_own_steps(
    horizon: str, expected: tuple[str, int] | None
) -> None:
    fleet = Fleet(AMin(), horizon=horizon)
    fleet.join(Replica("r", kv_blocks=100, block_size=1, slots=2, max_model_len=4096))
    fleet["r"].add(request("overdue", prompt=10, cap=100), forecast(100), estimate=100)
    fleet.changed("r")
    assert fleet.place(held=5, steps=3, most=8) == expected


def test_the_lowest_overall_peak_is_chosen_even_where_the_own_steps_are_equal() -> None:
    """The candidate makes 3 steps, in which both replicas look alike; later they do not."""
    fleet = Fleet(AMin(), horizon="own")
    for name, estimate in (("late peak", 90), ("calm", 20)):
        fleet.join(Replica(name, kv_blocks=200, block_size=1, slots=2, max_model_len=4096))
        fleet[name].add(request(name, prompt=10, cap=100), forecast(100), estimate)
    assert fleet.place(held=5, steps=3, most=8) == ("calm", 30)


@given(seed=st.integers(0, 2**32), horizon=st.sampled_from(["own", "all"]))
@settings(max_examples=300, deadline=None)
def test_nobody_is_let_in_before_patience_ends(seed: int, horizon: str) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(rng, horizon, least_cap=200)
    held, steps = rng.randint(0, 250), rng.randint(1, 120)
    guard_band = rng.choice([0.0, 0.0, 0.3])
    sizes = held, steps, held + steps, guard_band
    if fleet.place(*sizes) is not None:
        return
    generated = {name: 0 for ledger in fleet for name in ledger.request_ids}
    for _ in range(1, min(fleet.patience(*sizes), 150)):
        for ledger in fleet:
            for name in ledger.request_ids:
                generated[name] += 1
            ledger.progressed({name: generated[name] for name in ledger.request_ids})
            fleet.changed(ledger.replica.replica_id)
        assert fleet.place(*sizes) is None


def test_patience_ends_when_the_peak_has_come_near_enough() -> None:
    fleet = Fleet(AMin())
    fleet.join(Replica("r", kv_blocks=60, block_size=1, slots=4, max_model_len=400))
    fleet["r"].add(request("long", prompt=25, cap=100), Forecast(3.0, 0.1, lower=20, upper=40), 20)
    fleet.changed("r")
    # At its end, in 20 steps, the first holds 45 of 60. The second would then hold 10 + 20, twice
    # as much as is left, unless it starts 15 steps later.
    sizes = 10, 30, 40
    assert fleet.place(*sizes) is None
    assert fleet.patience(*sizes) == 15
    for made in (14, 15):
        fleet["r"].progressed({"long": made})
        fleet.changed("r", refine=True)
        assert (fleet.place(*sizes) is None) == (made < 15)


def test_only_an_end_helps_where_no_slot_or_memory_is_free() -> None:
    fleet = Fleet(AMin())
    fleet.join(Replica("r", kv_blocks=30, block_size=1, slots=1, max_model_len=400))
    assert fleet.patience(held=40, steps=5, most=50) == NEVER
    fleet["r"].add(request("only", prompt=5, cap=100), forecast(20), 20)
    fleet.changed("r")
    assert fleet.patience(held=1, steps=1, most=10) == NEVER
