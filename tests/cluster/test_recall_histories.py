"""Design invariants I1, I3, I5 and I6 where engines keep who waits and all news comes late.

Replicas drain and are lost, controllers are restarted, requests kill engines and queues are full.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.recall_histories import POLICIES, history


@given(st.integers(0, 2**32), st.sampled_from(POLICIES))
@settings(max_examples=80, deadline=None)
def test_i1_every_request_ends_once_and_leaves_nothing_behind(seed: int, policy_name: str) -> None:
    world = history(seed, policy_name)
    core = world.core
    assert all(len(ends) == 1 for ends in world.ends.values())
    assert all(call.done for call in world.calls.values())
    assert all(len(ledger) == 0 and ledger.used_blocks == 0 for ledger in core.fleet)
    assert core.fleet.used_blocks == core.fleet.peak_blocks == 0
    assert not core.pending
    assert not core._learned
    assert not core._state.suspects
    assert not core.fleet._ahead
    assert not core._state.moving._sources
    assert not core._state.moving._rooms
    assert core.fleet.serving == len(core.fleet)
    shares = core._waiting.shares
    if shares is not None:
        assert not any(lane.waiting or lane.running for lane in shares._lanes.values())


@given(st.integers(0, 2**32), st.sampled_from(POLICIES))
@settings(max_examples=15, deadline=None)
def test_i5_equal_histories_give_equal_decisions(seed: int, policy_name: str) -> None:
    assert history(seed, policy_name).log == history(seed, policy_name).log


def test_the_histories_reach_what_they_are_about() -> None:
    reached: Counter[str] = Counter()
    for seed in range(60):
        reached += history(seed, "fcfs").reached
    assert reached["recalled"] > reached["went on"] > 60
    for race in (
        "cancelled on its way",
        "ended before its recall came",
        "source lost",
        "destination lost",
        "destination drained",
        "drained",
        "handed back",
        "restarted",
        "adopted",
        "poisoned",
        "alone",
        "PoisonedRequestError",
        "QueueFullError",
    ):
        assert reached[race], race
