"""The scheduling core, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.scheduler import Dispatch, ImpossibleRequestError, Recall
from policies.forecast import Forecast
from tests.cluster.factories import dispatched, forecast, replica, request, scheduler


def test_first_come_first_served_when_the_policy_says_so() -> None:
    core = scheduler(replica(slots=2), policy_name="fcfs")
    for name, arrival_s in (("late", 2.0), ("early", 1.0), ("later", 3.0)):
        core.submit(request(name, arrival_s=arrival_s), forecast(), now=3.0)
    assert [name for name, _ in dispatched(core)] == ["early", "late"]
    assert core.state("later") == "waiting"


def test_the_shortest_forecast_goes_first_under_tie() -> None:
    core = scheduler(replica(slots=1), policy_name="tie")
    core.submit(request("long"), forecast(150), now=0.0)
    core.submit(request("short"), forecast(5), now=0.0)
    assert dispatched(core) == [("short", "a")]


def test_a_forecast_that_arrives_later_changes_the_place_in_the_queue() -> None:
    core = scheduler(replica(slots=1), policy_name="tie")
    core.submit(request("first"), forecast(30), now=0.0)
    core.submit(request("second"), forecast(60), now=0.0)
    core.forecast("second", forecast(3), now=0.1)
    assert dispatched(core) == [("second", "a")]


def test_a_forecast_after_dispatch_corrects_the_projection() -> None:
    core = scheduler(replica(blocks=32))
    core.submit(request("x", cap=400), forecast(20, sigma=0.0), now=0.0)
    core.decide(0.0)
    before = core.fleet["a"].profile.peak
    core.forecast("x", forecast(300, sigma=0.0), now=0.1)
    core.decide(0.2)
    core.submit(request("y", cap=400), forecast(300, sigma=0.0), now=0.2)
    assert dispatched(core, 0.2) == [], "x is now known to need the memory"
    assert core.fleet["a"].profile.peak > before


def test_online_stands_before_offline_whatever_their_scores() -> None:
    core = scheduler(replica(slots=1))
    core.submit(request("offline", online=False), forecast(2), now=0.0)
    core.submit(request("online"), forecast(150), now=0.0)
    assert dispatched(core) == [("online", "a")]


def test_offline_work_keeps_clear_of_the_guard_band_only_while_online_requests_come() -> None:
    core = scheduler(replica(blocks=20, slots=4), guard_band=0.5)
    core.submit(request("online", prompt=16, cap=16), Forecast.exact(16), now=0.0)
    core.submit(request("offline", prompt=150, cap=100, online=False), Forecast.exact(100), now=0.0)
    assert dispatched(core, 0.0) == [("online", "a")]
    assert dispatched(core, 30.0) == []
    assert dispatched(core, 90.0) == [("offline", "a")]


@pytest.mark.parametrize("guard_band", [0.0, 0.05])
def test_offline_work_is_not_sent_ahead_of_room_while_online_requests_come(
    guard_band: float,
) -> None:
    core = scheduler(replace(replica(blocks=16), look_ahead=2), guard_band=guard_band)
    for name, online in (("online", True), ("offline", False)):
        sizes = request(name, prompt=150, cap=90, online=online)
        core.submit(sizes, Forecast.exact(90), now=0.0)
    assert dispatched(core, 0.0) == [("online", "a")]
    core.submit(request("more", prompt=150, cap=90), Forecast.exact(90), now=1.0)
    assert dispatched(core, 1.0) == [("more", "a")], "an online one is"
    core.finished("a", "more", 9, now=2.0)
    assert dispatched(core, 30.0) == []
    assert dispatched(core, 90.0) == [("offline", "a")]


def test_offline_work_leaves_places_in_the_batch_while_online_requests_come() -> None:
    core = scheduler(replace(replica(slots=6, blocks=1000), look_ahead=2), guard_band=0.05)
    core.submit(request("online"), forecast(), now=0.0)
    for number in range(8):
        core.submit(request(f"offline {number}", online=False), forecast(), now=0.0)
    assert len(dispatched(core, 0.0)) == 1 + 1, "two places of four are left"
    core.submit(request("more"), forecast(), now=1.0)
    assert dispatched(core, 1.0) == [("more", "a")]
    core.finished("a", "more", 9, now=2.0)
    assert dispatched(core, 2.0) == []
    assert len(dispatched(core, 90.0)) == 4, "all that are left, and two ahead"


def test_offline_work_leaves_more_places_the_more_online_requests_come() -> None:
    def left(every_s: float) -> int:
        core = scheduler(replica(slots=100, blocks=10_000), guard_band=0.05)
        for number in range(40):
            core.submit(request(f"first {number}", online=False), forecast(), now=0.0)
        dispatched(core, 0.0)
        online = 0
        for second in range(60):  # an offline request ends each second
            if second < 40:
                core.finished("a", f"first {second}", 9, now=float(second))
            while online * every_s <= second:
                core.submit(request(f"online {online}"), forecast(), now=float(second))
                dispatched(core, float(second))
                core.finished("a", f"online {online}", 9, now=float(second))
                online += 1
        for number in range(200):
            core.submit(request(f"offline {number}", online=False), forecast(), now=60.0)
        return 100 - len(dispatched(core, 60.0))

    assert 1 <= left(every_s=20.0) < left(every_s=1.0) < left(every_s=0.5) <= 50


def test_an_empty_replica_takes_a_request_that_needs_the_guard_band() -> None:
    core = scheduler(replica(blocks=20), guard_band=0.5)
    core.submit(request("online"), forecast(), now=0.0)
    core.cancel("online", now=0.0)
    core.submit(request("big", prompt=200, cap=100, online=False), Forecast.exact(100), now=0.0)
    assert dispatched(core) == [("big", "a")]


def test_the_replica_with_the_lowest_projected_share_takes_the_request() -> None:
    core = scheduler(replica("small", blocks=40), replica("large", blocks=400))
    core.submit(request("x"), forecast(), now=0.0)
    assert dispatched(core) == [("x", "large")]


def test_a_replica_too_small_for_the_cap_is_passed_over() -> None:
    core = scheduler(replica("short", longest=100), replica("long", blocks=30))
    core.submit(request("x", prompt=20, cap=200), Forecast.exact(1), now=0.0)
    assert dispatched(core) == [("x", "long")]


def test_nothing_is_admitted_beyond_the_projection() -> None:
    core = scheduler(replica(blocks=10, block_size=16), policy_name="a_max")
    for name in "abc":
        exact = Forecast.exact(60)
        core.submit(request(name, prompt=4, cap=60), exact, now=0.0)
    assert len(dispatched(core)) == 2, "each needs 4 blocks of the 10"


def test_a_head_that_fits_nowhere_blocks_the_queue_unless_backfill_allows() -> None:
    for backfill, expected in ((0, []), (1, [("small", "a")])):
        core = scheduler(
            replica(blocks=12), policy_name="fcfs", admission="a_max", backfill=backfill
        )
        core.submit(request("running", prompt=90, cap=20), Forecast.exact(20), now=0.0)
        core.decide(0.0)
        core.submit(request("big", prompt=100, cap=90, arrival_s=1), Forecast.exact(90), now=1.0)
        core.submit(request("small", prompt=2, cap=10, arrival_s=2), Forecast.exact(10), now=2.0)
        core.submit(request("small2", prompt=2, cap=10, arrival_s=3), Forecast.exact(10), now=3.0)
        assert dispatched(core, 3.0) == expected
        assert core.state("big") == "waiting"
        assert dispatched(core, 4.0) == [], "it was overtaken as often as it may be"
        core.finished("a", "running", 20, now=5.0)
        assert dispatched(core, 5.0)[0] == ("big", "a")


def test_a_finished_request_makes_room() -> None:
    core = scheduler(replica(slots=1))
    for name in "ab":
        core.submit(request(name), forecast(), now=0.0)
    first = dispatched(core)
    assert len(first) == 1
    assert core.finished("a", first[0][0], 10, now=1.0)
    assert len(dispatched(core, 1.0)) == 1
    assert core.running == 1


def test_an_impossible_request_is_refused_with_the_limit() -> None:
    core = scheduler(replica(blocks=10, block_size=16, longest=4096), replica("b", longest=100))
    with pytest.raises(
        ImpossibleRequestError, match=r"needs 220 tokens.*hold 160.*max_tokens to 140"
    ):
        core.submit(request("x", prompt=20, cap=200), forecast(), now=0.0)
    assert core.state("x") == "unknown"


def test_submission_is_idempotent_and_a_later_attempt_supersedes() -> None:
    core = scheduler(replica("a", slots=2), replica("b", slots=2))
    assert core.submit(request("x"), forecast(), now=0.0)
    assert not core.submit(request("x"), forecast(), now=0.0)
    ((_, first),) = dispatched(core)
    assert not core.submit(request("x"), forecast(), now=0.1)
    assert core.submit(request("x", generated=7), forecast(), now=0.2, attempt=2)
    recall, dispatch = core.decide(0.2)
    assert recall == Recall("x", first)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.attempt, dispatch.request.generated_tokens) == (2, 7)


def test_a_later_attempt_of_a_waiting_request_takes_its_place() -> None:
    core = scheduler(policy_name="fcfs")
    for name in ("x", "y"):
        core.submit(request(name), forecast(), now=0.0)
    assert core.submit(request("x", generated=7), forecast(), now=1.0, attempt=2)
    assert not core.submit(request("x"), forecast(), now=1.0, attempt=1)
    core.replica_joined(replica(slots=1), now=2.0)
    (dispatch,) = core.decide(2.0)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.request.request_id, dispatch.attempt) == ("x", 2)
    assert (dispatch.request.generated_tokens, core.waiting) == (7, 1)


def test_cancelling_frees_the_replica_and_tells_it() -> None:
    core = scheduler(replica())
    core.submit(request("x"), forecast(), now=0.0)
    core.decide(0.0)
    assert core.cancel("x", now=1.0)
    assert core.decide(1.0) == [Recall("x", "a")]
    assert core.fleet["a"].used_blocks == 0
    assert not core.cancel("x", now=2.0)


def test_a_lost_replica_returns_its_requests_and_nothing_is_sent_to_it() -> None:
    core = scheduler(replica("a"), replica("b"))
    for name in "xyz":
        core.submit(request(name), forecast(), now=0.0)
    placed = dispatched(core)
    core.cancel(placed[0][0], now=0.5)
    lost = placed[0][1]
    orphans = core.replica_lost(lost, now=1.0)
    assert set(orphans.values()) == {0.0}
    assert sorted(orphans) == sorted(n for n, r in placed[1:] if r == lost)
    assert core.decide(1.0) == []
    assert all(core.state(name) == "unknown" for name in orphans)


def test_a_late_report_about_a_superseded_request_changes_nothing() -> None:
    core = scheduler(replica("a"))
    core.submit(request("x"), forecast(), now=0.0)
    core.decide(0.0)
    assert not core.finished("b", "x", 5, now=1.0)
    assert not core.finished("a", "y", 5, now=1.0)
    assert core.state("x") == "running"


def test_an_evicted_request_waits_again_with_what_was_learnt_of_it() -> None:
    core = scheduler(replica(blocks=8), policy_name="a_min")
    core.submit(request("x", prompt=10, cap=100), forecast(30), now=0.0)
    (first,) = core.decide(0.0)
    assert isinstance(first, Dispatch)
    assert core.evicted("a", "x", tokens=80, now=1.0)
    assert core.state("x") == "waiting"
    assert core.fleet["a"].used_blocks == 0
    (again,) = core.decide(3.0)
    assert isinstance(again, Dispatch)
    assert (first.attempt, again.attempt) == (1, 2)
    assert again.request.generated_tokens == 80
    assert (again.forecast.lower, again.forecast.upper) == (80, first.forecast.upper)
    assert (first.forecast.lower, again.queued_s) == (10, 2.0)
    # 90 tokens are held and, the bound being reached, one more step is projected: 6 blocks of 16.
    assert again.peak_blocks == core.fleet["a"].profile.peak == 6


def test_an_evicted_request_that_restarts_is_projected_to_its_learnt_bound() -> None:
    core = scheduler(replica(blocks=8), policy_name="a_min")
    core.submit(request("x", prompt=10, cap=100), forecast(30), now=0.0)
    core.decide(0.0)
    assert core.evicted("a", "x", tokens=80, now=1.0, kept=0)
    (again,) = core.decide(1.0)
    assert isinstance(again, Dispatch)
    assert (again.request.generated_tokens, again.forecast.lower, again.attempt) == (0, 80, 2)
    assert core.fleet["a"].used_blocks == 1
    assert core.fleet["a"].profile.peak == 6


def test_an_eviction_below_the_known_bound_teaches_nothing() -> None:
    core = scheduler(replica(), policy_name="a_min")
    core.submit(request("x"), forecast(90), now=0.0)
    (first,) = core.decide(0.0)
    core.evicted("a", "x", tokens=12, now=1.0)
    (again,) = core.decide(1.0)
    assert isinstance(first, Dispatch)
    assert isinstance(again, Dispatch)
    assert again.forecast == first.forecast


def test_an_evicted_request_keeps_its_place_among_equals() -> None:
    core = scheduler(replica(slots=1), policy_name="fcfs")
    for name in ("first", "second"):
        core.submit(request(name), forecast(), now=0.0)
    assert dispatched(core) == [("first", "a")]
    core.evicted("a", "first", tokens=3, now=1.0)
    assert dispatched(core, 1.0) == [("first", "a")]


def test_an_eviction_of_what_does_not_run_there_changes_nothing() -> None:
    core = scheduler(replica("a"), replica("b"))
    for name in ("runs", "cancelled"):
        core.submit(request(name), forecast(), now=0.0)
    placed = dict(dispatched(core))
    core.cancel("cancelled", now=0.5)
    other = {"a": "b", "b": "a"}[placed["runs"]]
    assert not core.evicted(other, "runs", tokens=5, now=1.0)
    assert not core.evicted("a", "stranger", tokens=5, now=1.0)
    assert not core.evicted(placed["cancelled"], "cancelled", tokens=5, now=1.0)
    assert (core.state("runs"), core.waiting, core.running) == ("running", 0, 1)


@pytest.mark.parametrize(("horizon", "expected"), [("own", [("short", "a")]), ("all", [])])
def test_the_horizon_of_the_policy_decides_on_who_is_gone_before_an_overload(
    horizon: str, expected: list[tuple[str, str]]
) -> None:
    core = scheduler(replica(blocks=100, block_size=1), policy_name="a_min", horizon=horizon)
    core.submit(request("long", prompt=2, cap=98), Forecast(4.0, 1.0, 4, 98), now=0.0)
    core.submit(request("other", prompt=2, cap=98), Forecast(4.0, 1.0, 4, 98), now=0.0)
    assert len(dispatched(core)) == 2
    for name in ("long", "other"):
        core.forecast(name, Forecast.exact(98), now=1.0)
    core.submit(request("short", prompt=2, cap=3), Forecast.exact(3), now=1.0)
    assert dispatched(core, 1.0) == expected, "the two others alone are projected to 200 tokens"


def test_progress_beyond_the_estimate_is_projected_on() -> None:
    core = scheduler(replica(blocks=30), policy_name="a_min")
    core.submit(request("x", prompt=10, cap=300), Forecast(3.0, 0.5, 16, 200), now=0.0)
    core.decide(0.0)
    core.progressed("a", {"x": 250, "stranger": 3}, now=1.0)
    core.submit(request("y", prompt=220, cap=60), Forecast.exact(20), now=1.0)
    assert dispatched(core, 1.0) == [], "x holds 261 of 480 tokens, y brings 220 and grows"
    assert core.fleet["a"].used_blocks == 17


def test_a_report_that_comes_late_takes_nothing_back() -> None:
    core = scheduler(replica())
    core.submit(request("x", prompt=10), forecast(), now=0.0)
    core.decide(0.0)
    for tokens in (60, 12):
        core.progressed("a", {"x": tokens}, now=1.0)
        assert core.fleet["a"].used_blocks == 5, "71 tokens with the next one's place"
