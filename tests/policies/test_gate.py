"""One engine's gate: who may start, who gives way, and what is learnt."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bundle import policy
from policies.forecast import Forecast
from policies.gate import Gate
from policies.gate_options import gate_of, rehearse
from policies.ledger import Replica
from policies.request import Request, RequestClass

ONLINE, OFFLINE = RequestClass


def engine(kv_blocks: int = 100, block_size: int = 1) -> Replica:
    return Replica("engine", kv_blocks, block_size, slots=64, max_model_len=1 << 20)


def gate(name: str = "a_min", kv_blocks: int = 100, **options: int) -> Gate:
    return gate_of({"name": name, **options}, engine(kv_blocks))


def request(name: str, prompt: int = 10, cap: int = 1000, arrival_s: float = 0.0) -> Request:
    return Request(name, prompt, cap, arrival_s)


def between(lower: int, upper: int) -> Forecast:
    return Forecast(mu=3.0, sigma=0.5, lower=lower, upper=upper)


def start_all(gated: Gate) -> list[str]:
    started = []
    while (name := gated.first()) is not None:
        gated.start(name)
        started.append(name)
    return started


def test_the_shortest_lower_bound_goes_first_and_all_start_that_fit() -> None:
    gated = gate(kv_blocks=60)
    gated.add(request("long"), between(30, 40))
    gated.add(request("short"), between(10, 40))
    gated.add(request("middle"), between(20, 40))
    # short and middle: 20 + 20 at step 10, then 30 at step 20; long beside them: 20 + 20 + 20.
    assert start_all(gated) == ["short", "middle", "long"]
    gated.add(request("another"), between(10, 40))
    assert gated.first() is None
    assert (gated.running, gated.waiting) == (3, 1)


def test_a_given_key_decides_and_precedence_goes_before_it() -> None:
    gated = gate()
    gated.add(request("a"), between(5, 10), key=2.0)
    gated.add(request("b"), between(50, 90), key=1.0)
    gated.add(request("c"), between(50, 90), key=9.0, precedence=-1)
    assert gated.head() == "c"
    gated.remove("c")
    assert gated.head() == "b"


def test_the_head_starts_in_an_empty_engine_however_large_it_is_projected() -> None:
    gated = gate("a_max", kv_blocks=50)
    gated.add(request("huge"), between(500, 900))
    gated.add(request("small"), between(1, 1))
    assert gated.first() == "small"
    gated.start("small")
    assert gated.first() is None
    gated.remove("small")
    assert gated.first() == "huge"


def test_what_runs_longer_than_projected_keeps_others_out_until_it_ends() -> None:
    gated = gate(kv_blocks=50)
    gated.add(request("first"), between(5, 900))
    gated.start("first")
    gated.add(request("second"), between(20, 30))
    assert gated.first() == "second"
    gated.progressed({"first": 30})
    assert gated.first() is None  # 10 + 30 + 1 and 10 + 1 in the next step alone
    gated.remove("first")
    assert gated.first() == "second"


def test_the_victim_is_the_smallest_learned_bound_and_the_bound_is_kept() -> None:
    gated = gate()
    for name, lower in (("a", 30), ("b", 10), ("c", 20)):
        gated.add(request(name), between(lower, 90))
        gated.start(name)
    gated.progressed({"a": 5, "b": 25, "c": 5})
    held = {"a": 15, "b": 35, "c": 15}
    assert gated.victims(held, 1) == ["c"]  # realtime: b has shown that it is 25 at least
    assert gated.victims(held, 16) == ["c", "b"]
    gated.evict("b", 25)
    assert gated.tokens("b") == 25
    assert gated.evictions("b") == 1
    gated.add(request("d"), between(24, 90))
    gated.add(request("e"), between(26, 90))
    order = []
    while (name := gated.head()) is not None:
        order.append(name)
        gated.remove(name)
    assert order == ["d", "b", "e"]


def test_stored_bounds_do_not_count_what_was_generated_since() -> None:
    gated = gate_of(
        {"name": "a_min", "eviction_options": {"variant": "stored"}},
        engine(),
    )
    for name, lower in (("a", 30), ("b", 10)):
        gated.add(request(name), between(lower, 90))
        gated.start(name)
    gated.progressed({"a": 0, "b": 50})
    assert gated.victims({"a": 10, "b": 60}, 1) == ["b"]


def test_equal_keys_give_up_the_one_that_was_started_last() -> None:
    gated = gate("tie", kv_blocks=1000)
    for name in ("a", "b", "c"):
        gated.add(request(name), between(5, 5))
        gated.start(name)
    assert gated.victims({"b": 10, "a": 10, "c": 10}, 11) == ["c", "b"]


def test_a_request_evicted_often_enough_is_protected_and_projected_at_its_cap() -> None:
    gated = gate(kv_blocks=100, max_evictions=2)
    gated.add(request("old", cap=60), between(1, 50))
    for tokens in (3, 6):
        gated.start("old")
        gated.evict("old", tokens)
    gated.add(request("young"), between(50, 90))
    gated.start("young")
    assert gated.first() is None, "its cap of 60 does not fit beside the other's 50"
    gated.remove("young")
    gated.start("old")
    gated.add(request("young"), between(20, 90))
    gated.start("young")
    gated.progressed({"old": 7, "young": 70})
    assert gated.victims({"old": 18, "young": 81}, 1) == ["young"], "though its bound is larger"


def test_protected_requests_start_together_only_where_all_their_caps_fit() -> None:
    """The projection has one end before the other has grown, but a long prefill may delay it."""
    gated = gate(kv_blocks=100, max_evictions=1)
    for name in ("first", "second", "third"):
        gated.add(request(name, prompt=10, cap=40), between(1, 40), evictions=1)
    gated.start("first")
    gated.progressed({"first": 39})
    assert gated.first() == "second", "twice 50"
    gated.start("second")
    assert gated.first() is None, "though the first has a step to go, and the second then 38"
    gated.evict("second", 3)
    assert gated.first() == "third", "its place is free again"
    gated.start("third")
    gated.remove("first")
    assert gated.first() == "second"


def test_promotion_evicts_who_outlives_the_bound_once_and_never_a_protected_one() -> None:
    gated = gate("promote_l", max_evictions=3)
    gated.add(request("a"), between(4, 20))
    gated.add(request("kept"), between(4, 20), evictions=3)
    gated.start("a")
    gated.start("kept")
    gated.progressed({"a": 3, "kept": 3})
    assert gated.overdue() == []
    gated.progressed({"a": 4, "kept": 4})
    assert gated.overdue() == ["a"]
    gated.evict("a", 4)
    gated.start("a")
    assert gated.overdue() == []


def test_shared_blocks_are_counted_once() -> None:
    gated = gate_of({"name": "a_min"}, engine(kv_blocks=10, block_size=10))
    gated.add(request("a", prompt=60), between(10, 10))
    gated.start("a")
    gated.add(request("b", prompt=60), between(10, 10))
    assert gated.first() is None
    gated.share({"a": 50}, 5)
    assert gated.first(shared_tokens=50) == "b"
    gated.share({}, 0)
    assert gated.first() is None


def test_an_end_that_is_noticed_late_holds_memory_longer() -> None:
    for lag_steps, admitted in ((0, "next"), (1, None)):
        gated = Gate(policy("a_min"), engine(kv_blocks=31), lag_steps=lag_steps)
        gated.add(request("runs"), Forecast.exact(5))
        gated.start("runs")
        gated.progressed({"runs": 4})
        # 15 + 16 in one step; in a second one, which only a late engine has, 16 + 17.
        gated.add(request("next", prompt=15), Forecast.exact(6))
        assert gated.first() == admitted


def running_gate(*jobs: tuple[str, int, RequestClass], max_evictions: int = 3) -> Gate:
    """A gate in which all of these run: name, lower bound, class."""
    gated = gate(kv_blocks=4000, max_evictions=max_evictions)
    for name, lower, request_class in jobs:
        one = replace(request(name), request_class=request_class)
        gated.add(one, between(lower, 90))
        gated.start(name)
    return gated


def test_offline_requests_are_evicted_before_online_ones_whatever_their_bounds() -> None:
    gated = running_gate(
        ("online, short", 1, ONLINE),
        ("offline, long", 80, OFFLINE),
        ("online, long", 70, ONLINE),
        ("offline, short", 9, OFFLINE),
    )
    blocks = dict.fromkeys(gated.running_ids, 1)
    assert gated.victims(blocks, 4) == [
        "offline, short",
        "offline, long",
        "online, short",
        "online, long",
    ]


def test_a_precedence_that_was_given_decides_who_is_evicted_first() -> None:
    gated = gate(kv_blocks=4000)
    for name, precedence in (("first", 0), ("last", 7), ("middle", 3)):
        gated.add(request(name), between(5, 90), precedence=precedence)
        gated.start(name)
    gated.evict("last", 4)
    gated.start("last")
    assert gated.victims(dict.fromkeys(gated.running_ids, 1), 3) == ["last", "middle", "first"]


def test_a_protected_offline_request_outlasts_online_ones_that_are_not() -> None:
    gated = running_gate(("online", 5, ONLINE), ("offline", 5, OFFLINE), max_evictions=1)
    gated.evict("offline", 6)
    gated.start("offline")
    assert gated.victims({"online": 1, "offline": 1}, 2) == ["online", "offline"]


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.booleans(), st.booleans(), st.integers(0, 5)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 60),
    st.sampled_from(["a_min", "tiebreak", "fcfs"]),
)
@settings(max_examples=80, deadline=None)
def test_victims_are_the_fewest_in_order_of_protection_and_class(
    jobs: list[tuple[int, bool, bool, int]], excess: int, name: str
) -> None:
    gated = gate(name, kv_blocks=10_000, max_evictions=1)
    for number, (lower, offline, protected, _) in enumerate(jobs):
        one = replace(request(str(number)), request_class=OFFLINE if offline else ONLINE)
        gated.add(one, between(lower, 900), evictions=int(protected))
        gated.start(str(number))
    blocks = {str(number): size for number, (*_, size) in enumerate(jobs)}
    victims = gated.victims(blocks, excess)
    places = {str(n): (protected, not offline) for n, (_, offline, protected, _) in enumerate(jobs)}
    assert [places[v] for v in victims] == sorted(places[v] for v in victims)
    spared = [place for job, place in places.items() if job not in victims]
    assert all(places[v] <= place for v in victims for place in spared)
    freed = [blocks[v] for v in victims]
    assert sum(freed[:-1]) < max(excess, 1)
    assert sum(freed) >= min(excess, sum(blocks.values()))


def test_a_held_request_comes_back_to_its_place() -> None:
    gated = gate()
    for name, lower in (("a", 1), ("b", 2), ("c", 3)):
        gated.add(request(name), between(lower, 9))
    assert gated.first() == "a"
    gated.hold("a")
    assert gated.first() == "b"
    gated.give_back("a")
    assert gated.first() == "a"


def test_going_back_to_the_same_place_again_and_again_is_no_contest_of_stale_entries() -> None:
    gated = gate("fcfs")
    for name in ("a", "b"):
        gated.add(request(name), between(1, 9))
    for _ in range(2):
        gated.first()
        gated.start("a")
        gated.evict("a", 2)
    assert gated.first() == "a"


def test_steps_that_all_make_are_progress_of_all_but_those_that_stand() -> None:
    gated = gate()
    for name in ("a", "b", "c"):
        gated.add(request(name, cap=6), between(1, 9))
        gated.start(name)
    gated.advanced(1, {"b": 0})
    gated.advanced(3, {})
    assert [gated.tokens(name) for name in ("a", "b", "c")] == [4, 3, 4]
    gated.advanced(9, {})
    assert gated.tokens("a") == 5, "below its cap: the last token ends it"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "tei"}, "did you mean 'tie'"),
        ({"backfill": 2}, "unknown scheduler option 'backfill'"),
        ({"max_evictions": 0}, "max_evictions is 0, must be at least 1"),
        ({"admission_options": {"q": 2}}, "q is 2"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        gate_of(options, engine())


@pytest.mark.parametrize("name", ["fcfs", "tie", "a_max", "a_min", "promote_l", "tiebreak"])
def test_a_rehearsal_leaves_nothing_behind(name: str) -> None:
    rehearse({"name": name}, engine())


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=9
    ),
    st.sampled_from(["a_min", "tie+a_min", "tiebreak"]),
)
@settings(max_examples=60)
def test_exact_lengths_never_overflow_and_all_end(
    jobs: list[tuple[int, int, int]], name: str
) -> None:
    """Invariant I2, with arrivals in the middle of the work."""
    blocks = 64
    gated = gate_of({"name": name}, engine(blocks))
    left = {str(i): length for i, (_, length, _) in enumerate(jobs)}
    arrivals = {str(i): step for i, (*_, step) in enumerate(jobs)}
    prompts = {str(i): prompt for i, (prompt, *_) in enumerate(jobs)}
    done = dict.fromkeys(left, 0)
    running: set[str] = set()
    for step in itertools.count():
        for job, at in arrivals.items():
            if at == step:
                gated.add(request(job, prompts[job], left[job]), Forecast.exact(left[job]))
        running |= set(start_all(gated))
        for job in running:
            done[job] += 1
        assert sum(prompts[job] + done[job] for job in running) <= blocks
        ended = {job for job in running if done[job] == left[job]}
        running -= ended
        for job in ended:
            gated.remove(job)
            del left[job]
        gated.progressed({job: done[job] for job in running})
        if not left:
            break
        assert step < 1000, "no progress"


def crowded(slots: int = 3, kv_blocks: int = 4000, *jobs: tuple[str, int], **options: Any) -> Gate:
    """A gate with offline requests that run: name, prompt; their lengths are known to be 50."""
    replica = Replica("engine", kv_blocks, 1, slots, max_model_len=1 << 20)
    gated = gate_of({"name": "a_min", **options}, replica)
    for name, prompt in jobs:
        gated.add(replace(request(name, prompt), request_class=OFFLINE), between(50, 50))
        gated.start(name)
        gated.advanced(1, {})
    return gated


def test_an_offline_request_gives_its_place_to_an_online_one_and_waits_a_step() -> None:
    gated = crowded(2, 4000, ("a", 10), ("b", 10))
    gated.add(replace(request("c"), request_class=OFFLINE), between(5, 5))
    assert gated.make_way() == [], "nobody goes before them"
    gated.add(request("online"), between(50, 50))
    assert gated.first() is None
    assert gated.make_way() == ["b"], "of those that have as much left, who was started last"
    gated.evict("b", 1)
    assert start_all(gated) == ["online"]
    gated.remove("a")
    assert gated.first() is None, "who gave way does not take a place in the same step"
    gated.advanced(1, {})
    assert gated.first() == "c"


def test_as_few_give_way_as_make_the_memory_that_is_missing() -> None:
    gated = crowded(64, 400, ("a", 50), ("b", 150), ("c", 40))
    gated.add(request("online", prompt=60), between(20, 20))
    # At its end 3 + 20 steps on: 70 + 170 + 60 + 80 = 380, and 400 with the one below.
    assert start_all(gated) == ["online"]
    gated.advanced(1, {})
    gated.add(request("another", prompt=60), between(20, 20))
    assert gated.make_way() == ["c", "b"]
    gated = crowded(64, 400, ("a", 50), ("b", 150), ("c", 40))
    gated.add(request("huge", prompt=399), between(20, 20))
    assert gated.make_way() == [], "all of them would not do"


def test_nobody_gives_way_who_is_protected_or_of_a_gate_that_does_not() -> None:
    gated = crowded(2, 4000, ("a", 10), ("b", 10), max_evictions=1)
    gated.evict("b", 3)
    gated.start("b")
    gated.advanced(1, {})
    gated.add(request("online"), between(5, 5))
    assert gated.make_way() == ["a"]
    gated.evict("a", 3)
    gated.start("online")
    gated.add(request("another"), between(5, 5))
    assert gated.make_way() == []
    gated = crowded(2, 4000, ("a", 10), ("b", 10), give_way=False)
    gated.add(request("online"), between(5, 5))
    assert gated.make_way() == []


def test_beside_online_requests_offline_ones_start_a_few_tokens_in_a_step() -> None:
    gated = gate(kv_blocks=4000)
    for number in range(3):
        gated.add(replace(request(f"long {number}", 100), request_class=OFFLINE), between(9, 9))
    assert len(start_all(gated)) == 3, "all at once while nobody is online"
    gated.advanced(1, {})
    gated.add(request("online", 100), between(5, 5))
    for number in range(3, 5):
        gated.add(replace(request(f"long {number}", 100), request_class=OFFLINE), between(9, 9))
    for number in range(2):
        gated.add(replace(request(f"short {number}", 14), request_class=OFFLINE), between(8, 8))
    assert start_all(gated) == ["online", "short 0", "short 1"]
    gated.advanced(1, {})
    assert start_all(gated) == ["long 3"]
    gated.advanced(1, {})
    assert start_all(gated) == ["long 4"]
