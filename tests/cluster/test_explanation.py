"""Why requests wait and where they run, in words and numbers, and that to ask changes nothing."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.suspects import ENGINE_DIED
from cluster.scheduler import ClusterScheduler, Dispatch, Recall, Standing
from policies.bundle import policy
from policies.forecast import Forecast
from policies.request import Request
from tests.cluster.factories import dispatched, forecast, replica, request, scheduler
from tests.cluster.recall_histories import POLICIES, history


class Asked(ClusterScheduler):
    """A scheduler that is asked everything, after events and before decisions."""

    calls = asked = 0

    def submit(self, request: Request, forecast: Forecast, now: float, **options: Any) -> bool:
        try:
            return super().submit(request, forecast, now, **options)
        finally:
            self.ask(now)

    def forecast(self, request_id: str, forecast: Forecast, now: float) -> None:
        super().forecast(request_id, forecast, now)
        self.ask(now)

    def cancel(self, request_id: str, now: float) -> bool:
        known = super().cancel(request_id, now)
        self.ask(now)
        return known

    def progressed(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        super().progressed(replica_id, tokens_by_request, now)
        self.ask(now)

    def stalled(self, replica_id: str, tokens_by_request: Mapping[str, int], now: float) -> None:
        super().stalled(replica_id, tokens_by_request, now)
        self.ask(now)

    def decide(self, now: float) -> list[Dispatch | Recall]:
        self.ask(now)
        return super().decide(now)

    def ask(self, now: float) -> None:
        self.calls += 1
        if self.calls % 4:
            return
        for ledger in self.fleet:
            assert ledger.profile is not None  # kept once it is made
        before = pickle.dumps(self._state)
        self.ask_everything(now)
        assert pickle.dumps(self._state) == before

    def ask_everything(self, now: float) -> None:
        head = self.head(1000, now)
        assert len(head) == len(self._waiting) - self._waiting.alone
        self.candidates(now)
        for request_id in [*self._running._by_id, *self._waiting._places, *self._moving._recalled]:
            standing = self.explain(request_id, now)
            assert standing is not None
            assert standing.state == self.state(request_id)
            assert standing.reason
            if standing.position is not None and standing.position_is_exact:
                assert head[standing.position - 1].request.request_id == request_id
            Asked.asked += 1


@given(st.integers(0, 2**32), st.sampled_from(POLICIES))
@settings(max_examples=5, deadline=None)
def test_decisions_are_the_same_whether_or_not_anybody_asks(seed: int, policy_name: str) -> None:
    Asked.asked = 0
    assert history(seed, policy_name, 60).log == history(seed, policy_name, 60, Asked).log
    assert Asked.asked


def why(core: ClusterScheduler, name: str, now: float = 0.0) -> Standing:
    standing = core.explain(name, now)
    assert standing is not None
    return standing


def full(**options: object) -> ClusterScheduler:
    """Two replicas of 20 blocks; on `a` runs a request that leaves no room at its peak."""
    core = scheduler(
        replica("a", blocks=20, slots=4),
        replica("b", blocks=20, slots=4),
        policy_name="h_sf",
        **options,
    )
    for name in ("x", "y"):
        core.submit(request(name, prompt=100, cap=200, truth=150), Forecast.exact(150), 0.0)
    assert len(dispatched(core)) == 2
    return core


def test_nobody_is_explained_who_is_not_known() -> None:
    assert scheduler().explain("nobody", 0.0) is None


def test_without_replicas_the_reason_says_so() -> None:
    core = scheduler()
    core.submit(request("r"), forecast(), 0.0)
    standing = why(core, "r")
    assert (standing.state, standing.position) == ("waiting", 1)
    assert standing.reason == "waits for a replica: none is ready"
    assert standing.candidates == ()


def test_the_first_waits_for_memory_in_numbers_that_can_be_checked() -> None:
    core = full()
    core.submit(request("r", prompt=100, cap=200, truth=140), Forecast.exact(140), 1.0)
    assert dispatched(core, 1.0) == []
    standing = why(core, "r", 1.0)
    # Of 250 tokens at the end 16 blocks; the other one holds 240 of its own then, 15 blocks.
    assert standing.reason == (
        "waits for memory: needs 15 blocks at its peak; the best replica (a) would reach "
        "30 of 20 in 140 steps"
    )
    best = standing.candidates[0]
    assert (best.replica_id, best.verdict) == ("a", "memory")
    assert (best.used_blocks, best.peak_blocks, best.peak_with_blocks) == (7, 16, 30)
    assert (best.limit_blocks, best.free_slots, standing.candidates_of) == (20, 3, 2)
    core.progressed("a", {"x": 149}, 1.1)
    core.finished("a", "x", 150, 2.0)
    assert why(core, "r", 2.0).reason == "can start on a with the next decision"
    assert dispatched(core, 2.0) == [("r", "a")]
    running = why(core, "r", 2.0)
    assert (running.state, running.replica_id, running.position) == ("running", "a", None)
    assert running.reason == ("runs on a: 0 output tokens so far, about 140 expected, 200 at most")


def test_those_behind_say_how_many_are_before_them_and_what_the_first_waits_for() -> None:
    core = full()
    for number in range(3):
        tokens = 120 + number
        sizes = request(f"r{number}", prompt=100, cap=200, truth=tokens, online=number < 2)
        core.submit(sizes, Forecast.exact(tokens), 1.0)
    dispatched(core, 1.0)
    assert [s.request.request_id for s in core.head(10, 1.0)] == ["r0", "r1", "r2"]
    assert [s.position for s in core.head(10, 1.0)] == [1, 2, 3]
    assert core.head(10, 1.0)[1].reason == "is behind 1 request smaller than it, or older"
    last = why(core, "r2", 1.0)
    assert (last.position, last.position_is_exact) == (3, True)
    assert last.reason.startswith(
        "is behind 2 online requests; the first of them, r0, waits for memory: needs 14 blocks"
    )


def test_all_places_taken_is_a_reason_of_its_own() -> None:
    core = scheduler(replica("a", slots=1), replica("b", slots=1))
    for number in range(3):
        core.submit(request(f"r{number}"), forecast(), 0.0)
    dispatched(core)
    waiting = core.head(1, 0.0)[0]
    assert waiting.reason == "waits for a place: all 2 replicas run as many requests as may be"
    found = why(core, waiting.request.request_id).candidates
    assert [candidate.verdict for candidate in found] == ["slots", "slots"]


def test_offline_work_that_the_guard_band_holds_is_told_so() -> None:
    core = scheduler(replica("a", blocks=20, slots=8), policy_name="h_sf", guard_band=0.25)
    core.submit(request("x", prompt=100, cap=200, truth=60), Forecast.exact(60), 0.0)
    dispatched(core)
    core.submit(request("r", prompt=60, cap=200, truth=60, online=False), Forecast.exact(60), 1.0)
    assert dispatched(core, 1.0) == []
    assert why(core, "r", 1.0).reason == (
        "waits because the last 50 % of each replica's memory is kept for online requests, which "
        "keep coming; a has room but for that"
    )
    found = why(core, "r", 1.0).candidates[0]
    assert (found.verdict, found.peak_with_blocks, found.limit_blocks) == ("online only", 18, 20)
    assert why(core, "r", 100.0).reason.startswith("can start on a")


def test_offline_work_that_the_power_cap_holds_is_told_so() -> None:
    core = scheduler(replica("a"))
    core.pace_offline(1, 0.0)
    for number in range(2):
        core.submit(request(f"r{number}", online=False), forecast(), 0.0)
    (started,) = dispatched(core)
    held = {"r0", "r1"} - {started[0]}
    assert why(core, held.pop()).reason == (
        "is held by the power cap: 1 of at most 1 offline requests run"
    )


def test_replicas_that_take_nothing_are_counted_by_why() -> None:
    core = scheduler(replica("a"), replica("b", longest=60))
    core.replica_draining("a", 0.0)
    core.submit(request("r", prompt=50, cap=60), forecast(), 0.0)
    assert dispatched(core) == []
    assert why(core, "r").reason == (
        "waits for a replica that takes it: 1 taking nothing more before the end, "
        "1 too small for it"
    )


def test_a_suspect_waits_to_run_alone() -> None:
    core = scheduler(replica("a"))
    core.submit(request("x"), forecast(), 0.0)
    dispatched(core)
    core.submit(request("r"), forecast(), 0.0, attempt=3, strikes=2 * ENGINE_DIED)
    assert dispatched(core) == []
    standing = why(core, "r")
    assert standing.position is None
    assert standing.reason == (
        "is suspected of having killed engines (2 strikes), so it runs alone: waits for a replica "
        "that is empty"
    )
    dispatched(core, 10.0)
    assert why(core, "r", 10.0).reason.endswith("waits for a, which still runs 1 request")
    core.finished("a", "x", 10, 11.0)
    assert dispatched(core, 11.0) == [("r", "a")]
    assert why(core, "r", 11.0).reason.startswith("runs alone on a: 0 output tokens")


def test_a_suspect_whose_replica_is_gone_is_explained_before_the_next_decision() -> None:
    core = scheduler(replica("a"))
    core.submit(request("x"), forecast(), 0.0)
    dispatched(core)
    core.submit(request("r"), forecast(), 0.0, attempt=3, strikes=2 * ENGINE_DIED)
    dispatched(core, 10.0)
    core.replica_lost("a", 11.0)
    assert why(core, "r", 11.0).reason.endswith("waits for a replica that is empty")


def test_who_waits_inside_an_engine_and_is_moved_is_followed_on_the_way() -> None:
    core = scheduler(replace(replica("home", blocks=20), look_ahead=1))
    core.submit(request("x", prompt=100, cap=200), Forecast.exact(150), 0.0)
    dispatched(core)
    core.submit(request("r", prompt=100, cap=200), Forecast.exact(150), 0.0)
    assert dispatched(core) == [("r", "home")]
    assert why(core, "r").reason == (
        "was sent to home ahead of there being room, and starts there when there is"
    )
    core.stalled("home", {"r": 0}, 1.0)
    inside = why(core, "r", 3.5)
    assert inside.reason == "waits inside home for 2.5 s, not started; there is no other replica"
    assert inside.state == "running"
    core.replica_joined(replica("away"), 4.0)
    inside = why(core, "r", 4.0)
    assert inside.reason.endswith("goes to away unless it goes on there")
    assert [candidate.replica_id for candidate in inside.candidates] == ["away"]
    assert core.decide(4.0) == [Recall("r", "home", "away")]
    recalled = why(core, "r", 4.0)
    assert (recalled.state, recalled.replica_id) == ("recalled", "away")
    assert recalled.reason == (
        "was taken back from home; continues on away, where its room is kept, once its client has "
        "asked for that"
    )
    core.submit(request("r", prompt=100, cap=200), forecast(), 5.0, attempt=2)
    assert why(core, "r", 5.0).reason.startswith("continues on away, where its room is kept, with")


def test_the_best_of_many_replicas_are_named_and_all_are_counted() -> None:
    core = scheduler(*(replica(f"r{number}", blocks=10) for number in range(30)))
    core.replica_draining("r3", 0.0)
    core.submit(request("big", prompt=100, cap=60), forecast(50), 0.0)
    standing = why(core, "big")
    assert len(standing.candidates) == 20
    assert standing.candidates_of == 30
    assert standing.candidates[0].verdict == "fits"
    assert len(core.candidates(0.0)) == 30


def test_beyond_the_first_thousand_places_are_estimated_and_said_to_be() -> None:
    core = ClusterScheduler(policy("fcfs"))
    for number in range(1500):
        core.submit(request(f"r{number}", arrival_s=number), forecast(), 0.0)
    exact, estimated = why(core, "r999"), why(core, "r1400")
    assert (exact.position, exact.position_is_exact) == (1000, True)
    assert (estimated.position, estimated.position_is_exact) == (1401, False)
    assert estimated.reason.startswith("is behind 1,400 requests that came earlier; the first")


def test_where_tenants_share_the_reason_says_that_turns_are_taken() -> None:
    core = ClusterScheduler(policy("fcfs"), fair_share=True)
    core.replica_joined(replica("a", slots=1), 0.0)
    for number in range(3):
        core.submit(request(f"r{number}", arrival_s=number), forecast(), 0.0)
    assert dispatched(core) == [("r0", "a")]
    core.submit(replace(request("modest"), tenant="modest"), forecast(), 5.0)
    dispatched(core, 5.0)
    greedy = why(core, "r2", 5.0)
    assert greedy.position == 3
    assert greedy.reason.startswith(
        "is behind 2 requests of tenants whose turn is before its own's, or that came earlier;"
    )


def test_what_replicas_made_is_counted_once() -> None:
    core = scheduler(replica("a"))
    core.submit(request("r"), forecast(), 0.0)
    dispatched(core)
    core.progressed("a", {"r": 30}, 1.0)
    core.progressed("a", {"r": 30}, 1.5)
    assert core.made["a"] == 30
    core.finished("a", "r", 42, 2.0)
    assert (core.made["a"], core.made.total) == (42, 42)
    core.replica_lost("a", 3.0)
    assert (core.made["a"], core.made.total) == (0, 42)
