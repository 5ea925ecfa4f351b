"""The fleet's search against one that asks every replica."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.fleet import Fleet
from cluster.core.fleet_summary import NEVER
from policies.admission import AMin
from policies.forecast import Forecast
from policies.ledger import Replica, ReplicaLedger
from tests.cluster.factories import forecast, request


def fleet_of(rng: random.Random, horizon: str, least_cap: int = 1, look_ahead: int = 0) -> Fleet:
    """Replicas of several sizes, some of them overfull once their requests are better known."""
    fleet = Fleet(AMin(overdue="double"), horizon=horizon)
    for index in range(rng.randint(1, 6)):
        blocks, block_size = rng.randint(10, 60), rng.choice([1, 8, 16])
        slots = rng.randint(1, 6) + look_ahead
        fleet.join(Replica(f"r{index}", blocks, block_size, slots, 400, look_ahead))
        for number in range(rng.randint(0, 5)):
            name = f"r{index}/{number}"
            running = request(name, prompt=rng.randint(0, 120), cap=rng.randint(least_cap, 300))
            fleet[f"r{index}"].add(running, forecast(rng.randint(1, 90)), rng.randint(1, 90))
    return fleet


def disturb(fleet: Fleet, rng: random.Random) -> None:
    """Some replica reports progress, or one of its requests ends."""
    replica_id = f"r{rng.randrange(len(fleet))}"
    ids = fleet[replica_id].request_ids
    if rng.random() < 0.5:
        fleet.progressed(replica_id, {name: rng.randint(0, 200) for name in ids})
    elif ids:
        fleet.remove(replica_id, rng.choice(ids))


def admitted_peak(
    ledger: ReplicaLedger, held: int, steps: int, most: int, guard_band: float, horizon: str
) -> int | None:
    """The overall peak with the request; None when the replica does not admit it."""
    capacity = ledger.replica.kv_blocks
    limit = int(capacity * (1 - guard_band)) if len(ledger) else capacity
    tested = ledger.profile.peak_during if horizon == "own" else ledger.profile.peak_with
    kept = ledger.replica.look_ahead if guard_band else 0
    if ledger.free_slots <= kept or ledger.replica.largest_request < most:
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
        ranks = {
            name: (
                fleet[name].free_slots <= fleet[name].replica.look_ahead,  # it waits in the engine
                peak / fleet[name].replica.kv_blocks,
            )
            for name, peak in peaks.items()
        }
        if placed is None:
            assert not peaks
        else:
            name, peak = placed
            assert peaks[name] == peak
            assert ranks[name] == min(ranks.values())


@given(seed=st.integers(0, 2**32), horizon=st.sampled_from(["own", "all"]))
@settings(max_examples=150, deadline=None)
def test_the_searches_for_who_waits_find_what_asking_every_replica_finds(
    seed: int, horizon: str
) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(rng, horizon, look_ahead=2)
    for number in range(15):
        if rng.random() < 0.3:
            disturb(fleet, rng)
        held, steps = rng.randint(0, 250), rng.randint(1, 120)
        most = held + rng.choice([steps, 200])
        home = rng.choice(list(fleet)).replica.replica_id
        placed = fleet.place(held, steps, most, besides=home)
        peaks = {
            ledger.replica.replica_id: peak / ledger.replica.kv_blocks
            for ledger in fleet
            if ledger.replica.replica_id != home
            and ledger.free_slots > 2
            and (peak := admitted_peak(ledger, held, steps, most, 0.0, horizon)) is not None
        }
        assert (placed is None) == (not peaks)
        assert placed is None or peaks[placed[0]] == min(peaks.values())
        ahead = fleet.place_ahead(held, steps, most)
        shares = {
            ledger.replica.replica_id: ledger.profile.peak_with(0, held, steps)
            / ledger.replica.kv_blocks
            for ledger in fleet
            if ledger.free_slots > 0
            and ledger.replica.largest_request >= most
            and sum(
                name.startswith("ahead") and not ledger.generated(name)
                for name in ledger.request_ids
            )
            < 2
        }
        assert (ahead is None) == (not shares)
        if ahead is not None:
            assert shares[ahead[0]] == min(shares.values())
            sent = request(f"ahead {number}", prompt=held, cap=300)
            fleet.enter(ahead[0], sent, forecast(), steps, ahead=True)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_closed_replicas_take_nothing_and_slow_ones_what_is_left(seed: int) -> None:
    """Against asking the fast ones first, and the slow ones where that is allowed."""
    rng = random.Random(seed)
    fleet = fleet_of(rng, "own", look_ahead=1)
    names = [ledger.replica.replica_id for ledger in fleet]
    drained: set[str] = set()
    reserved: set[str] = set()
    slow: set[str] = set()
    for _ in range(25):
        one, event = rng.choice(names), rng.random()
        if event < 0.1:
            fleet.drain(one)
            drained.add(one)
        elif event < 0.3:
            fleet.reserve(one)
            reserved.add(one)
        elif event < 0.5:
            fleet.release(one)
            reserved.discard(one)
        elif event < 0.7:
            fleet._avoid(one, one not in slow)
            slow ^= {one}
        elif event < 0.8:
            disturb(fleet, rng)
        held, steps, online = rng.randint(0, 250), rng.randint(1, 120), rng.random() < 0.5
        most = held + rng.choice([steps, 200])
        open_ones = [
            ledger for ledger in fleet if ledger.replica.replica_id not in drained | reserved
        ]
        assert fleet.serving == len(open_ones)
        assert fleet.has_free_slot == any(ledger.free_slots > 0 for ledger in open_ones)
        able = [
            ledger.replica.replica_id
            for ledger in open_ones
            if admitted_peak(ledger, held, steps, most, 0.0, "own") is not None
        ]
        alternative = any(
            ledger.replica.largest_request >= most
            for ledger in fleet
            if ledger.replica.replica_id not in drained | slow
        )
        quick = [name for name in able if name not in slow]
        allowed = quick or ([] if online and alternative else able)
        placed = fleet.place(held, steps, most, online=online)
        ahead = fleet.place_ahead(held, steps, most, online=online)
        assert (placed is None) == (not allowed)
        assert placed is None or placed[0] in allowed
        assert ahead is None or ahead[0] not in drained | reserved
        assert ahead is None or ahead[0] not in slow or not (online and alternative)
        emptiest = fleet.emptiest(most)
        shares = {
            ledger.replica.replica_id: ledger.used_blocks / ledger.replica.kv_blocks
            for ledger in open_ones
            if ledger.replica.largest_request >= most
        }
        assert (emptiest is None) == (not shares)
        assert emptiest is None or shares[emptiest] == min(shares.values())


@given(seed=st.integers(0, 2**32), horizon=st.sampled_from(["own", "all"]))
@settings(max_examples=150, deadline=None)
def test_who_waits_holds_nothing_where_it_asks_to_go_on(seed: int, horizon: str) -> None:
    rng = random.Random(seed)
    fleet = fleet_of(rng, horizon)
    fleet.join(Replica("home", 40, 8, 7, 400))
    alone = ReplicaLedger(Replica("home", 40, 8, 7, 400))
    waiting = []
    for number in range(rng.randint(1, 7)):
        entry = (
            request(f"n{number}", prompt=rng.randint(0, 80), cap=200),
            forecast(rng.randint(1, 90)),
            rng.randint(1, 90),
        )
        fleet.enter("home", *entry)
        if number and rng.random() < 0.6:
            alone.add(*entry)
        else:
            waiting.append(f"n{number}")
    fleet.place(1, 1, 1)
    held, steps = fleet["home"].sizes("n0")
    expected = not len(alone) or (admitted_peak(alone, held, steps, 0, 0.0, horizon) is not None)
    assert fleet.lets_go_on("home", "n0", waiting) == expected


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
