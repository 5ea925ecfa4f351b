"""Requests that wait inside engines: recalled for another replica's room, and sent there ahead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.core.relocations import ENGINE_PATIENCE_S
from cluster.scheduler import (
    ClusterScheduler,
    Dispatch,
    ImpossibleRequestError,
    Recall,
)
from policies.forecast import Forecast
from policies.request import Request
from tests.cluster.factories import dispatched, forecast, replica, request, scheduler


def tight_core(**options: object) -> ClusterScheduler:
    """`x` waits on `a` with 10 of at most 100 output tokens: beside `big` there is no room."""
    core = scheduler(replica("a", blocks=16), policy_name="fcfs", admission="a_max", **options)
    core.submit(request("big", prompt=20, cap=200), Forecast(3.0, 0.5, 2, 100), now=0.0)
    core.submit(request("x", prompt=4, cap=100), Forecast(3.0, 0.5, 2, 100), now=0.0)
    assert dispatched(core) == [("big", "a"), ("x", "a")]
    core.forecast("big", Forecast.exact(200), now=0.1)
    core.progressed("a", {"big": 120, "x": 10}, now=0.1)
    core.stalled("a", {"x": 10}, now=0.1)
    return core


def moving_core(*, resubmitted: bool = False, **options: object) -> ClusterScheduler:
    """`x` was recalled from `a`, its room kept on `b`."""
    core = tight_core(**options)
    core.replica_joined(replica("b", blocks=20), now=0.2)
    assert core.decide(0.2) == [Recall("x", "a", to="b")]
    if resubmitted:
        assert core.submit(again(), forecast(), now=0.3, attempt=2)
    return core


def again(generated: int = 10, cap: int = 100) -> Request:
    return request("x", prompt=4, cap=cap, generated=generated, arrival_s=9.0)


def held(core: ClusterScheduler) -> dict[str, list[str]]:
    return {ledger.replica.replica_id: sorted(ledger.request_ids) for ledger in core.fleet}


def test_a_request_that_waits_in_an_engine_is_recalled_for_room_elsewhere() -> None:
    core = tight_core()
    assert core.decide(0.1) == [], "there is no other replica"
    core.replica_joined(replica("b", blocks=20), now=0.2)
    assert core.decide(0.2) == [Recall("x", "a", to="b")]
    assert held(core) == {"a": ["big"], "b": ["x"]}
    assert (core.state("x"), core.running, core.waiting) == ("recalled", 2, 0)
    assert core.decide(0.3) == [], "it is told once"


def test_the_next_attempt_goes_where_the_room_is_kept_and_keeps_what_was_known() -> None:
    core = moving_core()
    core.replica_joined(replica("empty", blocks=400), now=0.3)
    core.submit(request("first", arrival_s=-5.0), forecast(), now=0.3)
    assert core.submit(again(generated=12), forecast(), now=0.3, attempt=2)
    assert core.state("x") == "waiting"
    first, second = core.decide(0.4)
    assert isinstance(first, Dispatch)
    assert isinstance(second, Dispatch)
    assert (first.request.request_id, first.replica_id, first.attempt) == ("x", "b", 2)
    assert first.forecast == Forecast(3.0, 0.5, 12, 100)
    assert (first.key, first.request.arrival_s, first.request.generated_tokens) == (0.0, 0.0, 12)
    assert first.queued_s == pytest.approx(0.1)
    assert first.peak_blocks == core.fleet["b"].profile.peak == 7, "104 tokens"
    assert (second.request.request_id, second.replica_id) == ("first", "empty")
    assert core.state("x") == "running"
    assert core.finished("b", "x", 30, now=1.0)
    assert held(core)["b"] == []


def test_what_its_own_engine_will_let_go_on_is_not_recalled_until_it_has_waited_long() -> None:
    core = scheduler(replica("a", blocks=16), replica("b", blocks=16), policy_name="fcfs")
    for name in ("y", "x"):
        core.submit(request(name, prompt=4, cap=100), forecast(), now=0.0)
    on_a = [name for name, where in dispatched(core) if where == "a"]
    core.submit(request("z", prompt=4, cap=100), forecast(), now=0.0)
    on_a += [name for name, where in dispatched(core) if where == "a"]
    core.stalled("a", {on_a[1]: 0}, now=1.0)
    assert core.decide(1.0 + 0.9 * ENGINE_PATIENCE_S) == []
    core.stalled("a", {on_a[1]: 0}, now=1.5)
    assert core.decide(1.0 + ENGINE_PATIENCE_S) == [Recall(on_a[1], "a", to="b")]


def test_it_stays_where_no_other_projection_has_room() -> None:
    core = tight_core()
    core.stalled("a", {}, now=0.2)
    core.replica_joined(replica("b", blocks=8), now=0.2)
    core.submit(request("other", prompt=60, cap=60), Forecast.exact(60), now=0.2)
    assert dispatched(core, 0.2) == [("other", "b")]
    core.replica_joined(replica("short", longest=103), now=0.3)
    core.stalled("a", {"x": 10}, now=0.3)
    assert core.decide(0.3) == [], "other will fill b, and x may reach 104 tokens"
    core.finished("b", "other", 30, now=0.4)
    assert core.decide(0.4) == [Recall("x", "a", to="b")]


@pytest.mark.parametrize(("look_ahead", "recalled"), [(1, False), (0, True)])
def test_a_slot_beyond_the_batch_is_no_room(look_ahead: int, recalled: bool) -> None:
    core = tight_core()
    core.replica_joined(replace(replica("b", slots=2), look_ahead=look_ahead), now=0.2)
    core.submit(request("y", prompt=4, cap=10), Forecast.exact(10), now=0.2)
    core.stalled("a", {}, now=0.2)
    assert dispatched(core, 0.2) == [("y", "b")]
    core.stalled("a", {"x": 10}, now=0.3)
    assert core.decide(0.3) == ([Recall("x", "a", to="b")] if recalled else [])


def test_a_request_is_recalled_again_only_after_it_has_run_there() -> None:
    core = moving_core(resubmitted=True)
    assert dispatched(core, 0.3) == [("x", "b")]
    core.replica_joined(replica("c", blocks=30), now=0.4)
    core.stalled("b", {"x": 10}, now=0.4)
    core.forecast("x", Forecast.exact(90), now=0.4)
    assert core.decide(0.4 + 2 * ENGINE_PATIENCE_S) == []
    core.stalled("b", {"x": 11}, now=3.0)
    assert core.decide(3.0 + ENGINE_PATIENCE_S) == [Recall("x", "b", to="c")]


def test_one_that_went_on_and_ended_before_its_recall_came_has_ended() -> None:
    core = moving_core()
    core.progressed("a", {"x": 13, "big": 130}, now=0.3)
    core.stalled("a", {"x": 13}, now=0.3)
    assert not core.evicted("a", "x", 13, now=0.3)
    assert core.decide(0.3) == []
    assert not core.finished("b", "x", 14, now=0.4), "it never ran there"
    assert core.finished("a", "x", 14, now=0.4)
    assert core.state("x") == "unknown"
    assert held(core) == {"a": ["big"], "b": []}
    assert not core.finished("a", "x", 14, now=0.5)


def test_the_old_attempts_end_is_nothing_once_the_next_is_here() -> None:
    core = moving_core(resubmitted=True)
    assert not core.finished("a", "x", 14, now=0.4)
    assert dispatched(core, 0.4) == [("x", "b")]
    assert not core.finished("a", "x", 14, now=0.5)
    assert core.state("x") == "running"


def test_without_its_destination_it_waits_like_any_other() -> None:
    core = moving_core()
    assert core.replica_lost("b", now=0.3) == {}
    assert core.state("x") == "recalled"
    assert core.decide(0.3) == []
    core.replica_joined(replica("c"), now=0.4)
    assert core.submit(again(), forecast(), now=0.4, attempt=2)
    (dispatch,) = core.decide(0.4)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.replica_id, dispatch.attempt) == ("c", 2)
    assert dispatch.forecast == Forecast(3.0, 0.5, 10, 100), "what was learnt stays"
    assert dispatch.key == 0.0, "and so does its arrival"


def test_without_its_destination_its_next_attempt_waits_in_the_queue() -> None:
    core = moving_core(resubmitted=True)
    assert core.replica_lost("b", now=0.4) == {}
    assert (core.state("x"), core.waiting) == ("waiting", 1)
    assert core.decide(0.4) == []
    core.replica_joined(replica("c"), now=0.5)
    assert dispatched(core, 0.5) == [("x", "c")]


def test_with_its_source_a_recalled_request_is_lost_until_it_is_submitted_again() -> None:
    core = moving_core()
    assert core.replica_lost("a", now=0.3) == {"big": 0.0, "x": 0.0}
    assert (core.state("x"), core.running) == ("unknown", 0)
    assert held(core) == {"b": []}
    core = moving_core(resubmitted=True)
    assert core.replica_lost("a", now=0.4) == {"big": 0.0}
    assert dispatched(core, 0.4) == [("x", "b")]


@pytest.mark.parametrize("resubmitted", [False, True])
def test_cancelling_frees_the_room_that_is_kept(resubmitted: bool) -> None:
    core = moving_core(resubmitted=resubmitted)
    assert core.cancel("x", now=0.4)
    assert held(core) == {"a": ["big"], "b": []}
    assert (core.state("x"), core.running, core.waiting) == ("unknown", 1, 0)
    assert core.decide(0.4) == [], "its old replica has been told already"
    assert not core.cancel("x", now=0.5)


def test_submitting_a_recalled_request_is_idempotent() -> None:
    core = moving_core()
    assert not core.submit(again(), forecast(), now=0.3, attempt=1)
    assert core.state("x") == "recalled"
    assert core.submit(again(), forecast(), now=0.3, attempt=2)
    assert not core.submit(again(20), forecast(), now=0.3, attempt=2)
    assert core.submit(again(15), forecast(), now=0.3, attempt=3)
    (dispatch,) = core.decide(0.4)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.attempt, dispatch.request.generated_tokens) == (3, 15)
    assert core.fleet["b"].generated("x") == 15
    assert core.submit(again(15), forecast(), now=0.5, attempt=4), "it supersedes"
    assert core.decide(0.5)[0] == Recall("x", "b")


def test_a_next_attempt_that_fits_nowhere_leaves_nothing_behind() -> None:
    core = moving_core()
    with pytest.raises(ImpossibleRequestError, match="needs 1004 tokens"):
        core.submit(again(cap=1000), forecast(), now=0.3, attempt=2)
    assert core.state("x") == "unknown"
    assert held(core) == {"a": ["big"], "b": []}


def test_a_next_attempt_too_large_for_its_destination_waits_for_another() -> None:
    core = moving_core()
    core.replica_joined(replica("c", blocks=64), now=0.3)
    assert core.submit(again(cap=400), forecast(), now=0.3, attempt=2)
    assert dispatched(core, 0.3) == [("x", "c")]
    assert held(core)["b"] == []


def test_a_forecast_corrects_the_room_that_is_kept() -> None:
    core = moving_core()
    core.forecast("x", Forecast.exact(20), now=0.3)
    core.submit(request("y", prompt=250, cap=30), Forecast.exact(30), now=0.3)
    assert dispatched(core, 0.3) == [("y", "b")], "24 of 320 tokens are kept, not 104"


def test_what_an_eviction_taught_outlives_later_forecasts() -> None:
    core = tight_core(eviction="shortest_lower_bound")
    core.forecast("x", Forecast(1.0, 0.5, 3, 4), now=0.2)
    core.replica_joined(replica("b", blocks=20), now=0.2)
    assert core.decide(0.2 + ENGINE_PATIENCE_S) == [Recall("x", "a", to="b")]
    core.submit(again(generated=0), forecast(), now=2.0, attempt=2)
    (dispatch,) = core.decide(2.0)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.forecast.lower, dispatch.forecast.upper) == (10, 10)


def test_output_that_exists_bounds_the_forecast_of_any_submission() -> None:
    core = scheduler(replica())
    core.submit(request("x", generated=70), forecast(30), now=0.0, attempt=2)
    (dispatch,) = core.decide(0.0)
    assert isinstance(dispatch, Dispatch)
    assert dispatch.forecast == forecast(30).at_least(70)
    core.forecast("x", forecast(20), now=0.1)
    core.submit(request("y", generated=70), forecast(30), now=0.1, attempt=2)
    core.forecast("y", forecast(20), now=0.1)
    (dispatch,) = core.decide(0.2)
    assert isinstance(dispatch, Dispatch)
    assert dispatch.forecast == forecast(20).at_least(70)


def test_the_first_in_order_is_recalled_first() -> None:
    core = scheduler(replica("a", blocks=30), policy_name="fcfs", admission="a_max")
    for name, arrival_s in (("second", 2.0), ("first", 1.0)):
        one = request(name, prompt=4, cap=100, arrival_s=arrival_s)
        core.submit(one, Forecast(3.0, 0.5, 2, 100), now=2.0)
    core.submit(request("big", prompt=20, cap=200), Forecast(3.0, 0.5, 2, 60), now=2.0)
    assert len(dispatched(core, 2.0)) == 3
    core.forecast("big", Forecast.exact(460).at_least(460), now=2.0)
    core.progressed("a", {"big": 150}, now=2.0)
    core.stalled("a", {"second": 7, "first": 7}, now=2.0)
    core.replica_joined(replica("b", blocks=8), now=2.0)
    late = 2.0 + ENGINE_PATIENCE_S
    assert core.decide(late) == [Recall("first", "a", to="b")], "there is room for one"


def test_once_the_first_has_left_the_others_may_go_on_at_home() -> None:
    core = scheduler(replica("a", blocks=16), policy_name="fcfs", admission="a_max")
    sizes = {"long": 200, "short": 30, "runs": 200}
    for name, cap in sizes.items():
        core.submit(request(name, prompt=4, cap=cap), Forecast(3.0, 0.5, 2, 30), now=0.0)
    assert len(dispatched(core)) == 3
    for name in ("long", "runs"):
        core.forecast(name, Forecast.exact(200), now=0.0)
    core.stalled("a", {"long": 0, "short": 0}, now=0.0)
    core.replica_joined(replica("b"), now=0.1)
    assert core.decide(0.1) == [Recall("long", "a", to="b")], "short has room beside runs"


def test_work_that_is_begun_goes_before_the_queue_of_its_class_and_after_the_one_before() -> None:
    for online, expected in ((False, ["x", "new"]), (True, ["new"])):
        core = scheduler(replica("a", blocks=16), policy_name="fcfs", admission="a_max")
        core.submit(request("x", prompt=4, cap=100, online=False), Forecast.exact(100), now=0.0)
        core.submit(request("big", prompt=20, cap=100, online=False), Forecast.exact(90), now=0.0)
        assert len(dispatched(core)) == 2
        core.stalled("a", {"x": 10}, now=0.0)
        core.replica_joined(replica("b", blocks=16, slots=1 if online else 2), now=1.0)
        new = request("new", prompt=4, cap=100, online=online, arrival_s=-9.0)
        core.submit(new, Forecast.exact(100), now=1.0)
        names = [
            action.request_id if isinstance(action, Recall) else action.request.request_id
            for action in core.decide(2.0)
        ]
        assert names == expected


def test_in_one_round_begun_offline_work_goes_between_the_online_and_the_offline_queue() -> None:
    core = scheduler(replica("a", blocks=16), policy_name="fcfs", admission="a_max")
    for name in ("x", "big"):
        one = request(name, prompt=4, cap=100, online=False)
        core.submit(one, Forecast.exact(100), now=0.0)
    assert len(dispatched(core)) == 2
    core.stalled("a", {"x": 10}, now=0.0)
    core.replica_joined(replica("b", blocks=64, slots=2), now=1.0)
    for name, online in (("on", True), ("off", False)):
        new = request(name, prompt=150, cap=100, online=online, arrival_s=-9.0)
        core.submit(new, Forecast.exact(100), now=1.0)
    first, second = core.decide(2.0)
    assert isinstance(first, Dispatch)
    assert (first.request.request_id, first.replica_id) == ("on", "b")
    assert second == Recall("x", "a", to="b")
    assert core.state("off") == "waiting"


# Look-ahead.


def ahead_core(look_ahead: int = 2, **options: object) -> ClusterScheduler:
    """On `a` one request fills the memory; four more are queued."""
    one = replace(replica("a", blocks=16, slots=8), look_ahead=look_ahead)
    core = scheduler(one, policy_name="fcfs", admission="a_max", **options)
    core.submit(request("big", prompt=20, cap=200), Forecast.exact(200), now=0.0)
    for name in "pqrs":
        core.submit(request(name, prompt=20, cap=200), Forecast.exact(200), now=0.0)
    return core


@pytest.mark.parametrize("look_ahead", [0, 1, 2])
def test_so_many_requests_are_sent_ahead_of_there_being_room(look_ahead: int) -> None:
    core = ahead_core(look_ahead)
    assert [name for name, _ in dispatched(core)] == ["big", "p", "q"][: 1 + look_ahead]
    assert dispatched(core, 1.0) == []


def test_a_start_makes_place_for_one_more() -> None:
    core = ahead_core(1)
    assert dispatched(core) == [("big", "a"), ("p", "a")]
    core.progressed("a", {"big": 50, "p": 0}, now=1.0)
    assert dispatched(core, 1.0) == [], "p has not started"
    core.progressed("a", {"big": 50, "p": 1}, now=2.0)
    assert dispatched(core, 2.0) == [("q", "a")]
    core.stalled("a", {"q": 0}, now=3.0)
    assert dispatched(core, 3.0) == []
    core.stalled("a", {}, now=4.0)
    assert dispatched(core, 4.0) == [("r", "a")], "q waits no more, so that it runs"
    core.cancel("r", now=5.0)
    assert dispatched(core, 5.0) == [("s", "a")]


def test_the_replica_with_the_lowest_projected_peak_is_sent_a_request_ahead() -> None:
    core = scheduler(policy_name="fcfs", admission="a_max")
    for name, blocks in (("small", 16), ("large", 27)):
        core.replica_joined(replace(replica(name, blocks=blocks), look_ahead=1), 0.0)
    for name in ("one", "two", "head", "next"):
        core.submit(request(name, prompt=20, cap=200), Forecast.exact(200), now=0.0)
    assert sorted(dispatched(core)[:2]) == [("one", "large"), ("two", "small")]
    placed = {name: where for where in held(core) for name in held(core)[where]}
    assert (placed["head"], placed["next"]) == ("large", "small")


def test_work_that_keeps_clear_of_the_guard_band_is_not_sent_ahead() -> None:
    core = ahead_core(1, guard_band=0.1)
    core.cancel("p", now=0.0)
    for name in "qrs":
        core.cancel(name, now=0.0)
    core.submit(request("off", prompt=20, cap=200, online=False), Forecast.exact(200), now=0.0)
    assert dispatched(core) == [("big", "a")]
    assert dispatched(core, 100.0) == [("off", "a")], "no online request has come for long"


def test_one_sent_ahead_is_recalled_before_it_has_started() -> None:
    core = ahead_core(1)
    assert len(dispatched(core)) == 2
    core.stalled("a", {"p": 0}, now=1.0)
    core.replica_joined(replica("b", blocks=16), now=1.0)
    recall, *others = core.decide(1.0)
    assert recall == Recall("p", "a", to="b")
    assert [(o.request.request_id, o.replica_id) for o in others if isinstance(o, Dispatch)] == [
        ("q", "a")
    ]
