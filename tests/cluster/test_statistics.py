"""What becomes of a request's record, whatever happens to the request."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.decisions import Dispatch
from cluster.messages import Submission
from cluster.snapshot import Event
from cluster.statistics.finished_row import FinishedRow
from cluster.statistics.statistics import LAST_WORD_S, Statistics
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from replicas.protocol import EngineTerms, Finished, Generation, Stalled

UNIX_S = 1_700_000_000.0
PRIOR = Forecast(math.log(40), 0.5, 10, 90)
LEARNED = Forecast(math.log(25), 0.3, 12, 60, "learned")


class Played:
    """Statistics of requests `r` of a client `c`, with what the listeners heard."""

    def __init__(self, **options: Any) -> None:
        self.statistics = Statistics("tiebreak", **options)
        self.heard: list[tuple[FinishedRow, list[Event], Submission]] = []
        self.statistics.on_row.append(lambda *row: self.heard.append(row))

    def submission(
        self, name: str = "r", attempt: int = 1, generated: int = 0, client: str = "c"
    ) -> Submission:
        terms = EngineTerms(PRIOR.mu, PRIOR.sigma, PRIOR.lower, PRIOR.upper, 1.0, 0.0)
        generation = Generation(
            name, client, b"", generated_tokens=generated, attempt=attempt, terms=terms
        )
        return Submission(
            generation, 30, 100, RequestClass.OFFLINE, "acme", job="demo", evictions=attempt - 1
        )

    def submit(self, now: float, name: str = "r", **attempt: Any) -> None:
        self.statistics.submitted(self.submission(name, **attempt), now, UNIX_S + now)

    def dispatch(
        self, now: float, replica: str = "a", name: str = "r", forecast: Forecast = PRIOR
    ) -> None:
        request = Request(name, 30, 100)
        self.statistics.dispatched(Dispatch(request, replica, 1, forecast, 1.5, now, 12), now)

    def end(
        self, now: float, reason: str = "stop", tokens: int = 20, attempt: int = 1, **cost: Any
    ) -> Finished:
        """The replica's word, told as `ReplicaDesk` tells it."""
        finished = Finished("r", "c", attempt, tokens, reason, **cost)
        self.statistics.attempt_ended("a", finished, "zeus:gpu", now)
        if reason != "abort":
            self.statistics.ended("a", finished, self.submission(attempt=attempt), now)
        return finished

    def whats(self) -> list[str]:
        return [event.what for event in self.statistics.events("r")]

    @property
    def row(self) -> FinishedRow:
        row = self.statistics.row("r")
        assert row is not None
        return row


def test_a_row_tells_what_was_asked_and_what_came_of_it() -> None:
    played = Played()
    played.submit(10.0)
    played.statistics.forecast_arrived("r", LEARNED, 10.25)
    assert played.statistics.is_open("r")
    assert played.whats() == ["arrived", "forecast"]
    played.dispatch(11.0, forecast=LEARNED)
    assert played.statistics.running(RequestClass.OFFLINE) == 1
    played.statistics.stalled("a", {"r": Stalled(tokens=7, evictions=1)}, 12.0)
    played.statistics.stalled("a", {"r": Stalled(tokens=7, evictions=1)}, 12.1)
    played.end(
        14.0, preemptions=1, recomputed_tokens=37, first_token_s=0.5, running_s=2.9,
        energy_joules=6.0, wasted_joules=2.0,
    )  # fmt: skip
    assert played.row == FinishedRow(
        request_id="r", request_class="offline", tenant="acme", job="demo", policy="tiebreak",
        arrival_unix_s=UNIX_S + 10.0, forecast_s=0.25, dispatched_s=1.0, first_token_s=1.5,
        finished_s=4.0, prompt_tokens=30, max_tokens=100, output_tokens=20, finish_reason="stop",
        forecast_mu=LEARNED.mu, forecast_sigma=0.3, forecast_lower=12, forecast_upper=60,
        forecast_source="learned", replica_id="a", attempts=1, evictions=1, recalls=0,
        recomputed_tokens=37, energy_joules=6.0, wasted_joules=2.0, energy_source="zeus:gpu",
    )  # fmt: skip
    expected = ["arrived", "forecast", "dispatched", "first token", "evicted", "finished"]
    assert played.whats() == expected
    events = played.statistics.events("r")
    assert [event.at_s for event in events] == [0.0, 0.25, 1.0, 1.5, 2.0, 4.0]
    assert events[2].detail.startswith("a, ")
    assert "25 tokens, between 12 and 60" in events[1].detail
    assert not played.statistics.is_open("r")
    assert played.statistics.running(RequestClass.OFFLINE) == 0
    assert played.heard == [(played.row, events, played.submission())]
    (point,) = played.statistics.forecasts(5)
    assert (round(point.median), point.lower, point.upper, point.actual) == (25, 12, 60, 20)
    assert not point.censored


def test_a_request_that_lost_its_replica_keeps_its_arrival_and_what_it_cost() -> None:
    played = Played()
    played.submit(0.0)
    played.dispatch(1.0)
    played.end(2.0, "abort", 8, preemptions=2, energy_joules=3.0, wasted_joules=1.0)
    played.statistics.recalled("r", "a", "b", 2.0)
    played.submit(2.5, attempt=2, generated=8)
    played.dispatch(2.6, "b")
    played.statistics.lost("r", "b", 4.0)
    assert played.statistics.running(RequestClass.OFFLINE) == 0
    played.submit(30.0, attempt=3, generated=15)
    played.statistics.sweep(100.0)
    played.dispatch(31.0, "a", forecast=LEARNED)
    played.end(40.0, "length", 100, attempt=3, energy_joules=4.0, wasted_joules=0.5)
    row = played.row
    assert (row.arrival_unix_s, row.finished_s, row.dispatched_s) == (UNIX_S, 40.0, 1.0)
    assert (row.attempts, row.recalls, row.evictions) == (3, 1, 2)
    assert (row.energy_joules, row.wasted_joules) == (7.0, 1.5)
    assert row.recomputed_tokens == (30 + 8) + (30 + 15)
    assert row.forecast_mu == PRIOR.mu, "the length was not known when it was first scheduled"
    assert played.statistics.forecasts(1)[0].censored
    assert played.whats() == [
        "arrived", "dispatched", "recalled", "dispatched", "lost", "dispatched", "finished",
    ]  # fmt: skip
    assert len(played.heard) == 1


def test_what_a_replica_says_twice_is_booked_once() -> None:
    played = Played()
    played.submit(0.0)
    played.dispatch(0.0)
    for now in (1.0, 2.0):
        played.end(now, "abort", energy_joules=5.0, preemptions=1)
    played.end(3.0, attempt=2, energy_joules=2.0)
    assert (played.row.energy_joules, played.row.evictions) == (7.0, 1)


def test_a_record_whose_client_does_not_come_back_is_dropped() -> None:
    played = Played(away_s=10.0)
    for name in ("r", "s"):
        played.submit(0.0, name)
        played.dispatch(0.0, "a", name)
        played.statistics.lost(name, "a", 1.0)
    played.submit(5.0, "s", attempt=2)
    played.statistics.sweep(10.9)
    assert played.statistics.is_open("r")
    played.statistics.sweep(11.0)
    assert not played.statistics.is_open("r")
    assert played.statistics.is_open("s"), "its client came back"
    assert (played.statistics.dropped, played.heard) == (1, [])


def test_a_cancelled_request_waits_a_moment_for_its_cost() -> None:
    played = Played()
    played.submit(0.0)
    played.dispatch(1.0)
    played.statistics.cancelled(played.submission(), 3.0)
    assert not played.statistics.is_open("r")
    assert not played.heard
    played.end(3.5, "abort", 9, energy_joules=4.0)
    row = played.row
    assert (row.finish_reason, row.finished_s, row.output_tokens) == ("abort", 3.0, 9)
    assert row.energy_joules == 4.0
    assert played.statistics.forecasts(1) == [], "its length is not known"


@pytest.mark.parametrize("submitted_again", [False, True])
def test_a_cancelled_request_whose_replica_says_nothing_has_a_row_too(
    submitted_again: bool,
) -> None:
    played = Played()
    played.submit(0.0)
    played.dispatch(1.0)
    played.statistics.cancelled(played.submission(), 3.0)
    played.statistics.sweep(3.0 + LAST_WORD_S - 0.1)
    assert not played.heard
    if submitted_again:
        played.submit(3.5)
    else:
        played.statistics.sweep(3.0 + LAST_WORD_S)
    assert [row.finish_reason for row, _, _ in played.heard] == ["abort"]
    assert played.row.energy_joules is None
    assert played.statistics.is_open("r") == submitted_again


def test_one_that_is_cancelled_before_it_ran_has_its_row_at_once() -> None:
    played = Played()
    played.submit(0.0)
    played.statistics.cancelled(played.submission(), 3.0)
    row = played.row
    assert (row.dispatched_s, row.forecast_mu, row.replica_id, row.attempts) == (None, None, "", 0)


def test_refusals_leave_rows_when_they_are_final() -> None:
    played = Played(away_s=10.0)
    refused = played.statistics.refused
    refused(played.submission(), ValueError("full"), 1.0, UNIX_S, may_return=True)
    assert not played.heard, "it may come again"
    refused(played.submission(), ValueError("too large"), 2.0, UNIX_S)
    assert (played.row.finish_reason, played.row.attempts) == ("error", 0)
    assert [(e.what, e.detail) for e in played.statistics.events("r")][-1] == (
        "refused",
        "too large",
    )
    played.submit(10.0)
    played.dispatch(11.0)
    played.statistics.lost("r", "a", 12.0)
    again = played.submission(attempt=2)
    refused(again, ValueError("full"), 13.0, UNIX_S, may_return=True)
    played.submit(22.0, attempt=2)
    played.dispatch(23.0)
    played.end(24.0, attempt=2)
    assert (played.row.finish_reason, played.row.finished_s) == ("stop", 14.0)


def test_another_client_with_the_same_id_begins_anew() -> None:
    played = Played()
    played.submit(0.0)
    played.dispatch(1.0)
    played.statistics.cancelled(played.submission(), 5.0)
    played.submit(5.0, client="d")
    assert [row.finish_reason for row, _, _ in played.heard] == ["abort"]
    played.end(6.0, "abort", energy_joules=9.0)
    finished = Finished("r", "d", 1, 3, "stop")
    played.statistics.ended("a", finished, played.submission(client="d"), 7.0)
    assert (played.row.arrival_unix_s, played.row.energy_joules) == (UNIX_S + 5.0, None)


def test_an_adopted_request_tells_nothing_of_the_time_before() -> None:
    played = Played()
    played.statistics.adopted(played.submission(attempt=2), "a", 100.0, UNIX_S)
    assert played.statistics.running(RequestClass.OFFLINE) == 1
    played.end(103.0, attempt=2, first_token_s=0.5, running_s=20.0, energy_joules=1.0)
    row = played.row
    assert (row.dispatched_s, row.first_token_s, row.finished_s) == (None, None, 3.0)
    assert (row.attempts, row.forecast_mu, row.energy_joules) == (2, PRIOR.mu, 1.0)
    everything = next(v for v in played.statistics.latencies(103.0) if v.by == "all")
    assert everything.requests == 1
    assert everything.measures["latency_s"].count == 0, "its latency is not known"


def test_a_listener_that_fails_does_not_stop_the_others() -> None:
    played = Played()

    def fails(*row: object) -> None:
        raise RuntimeError("no")

    played.statistics.on_row.insert(0, fails)
    played.submit(0.0)
    played.end(1.0)
    assert len(played.heard) == 1


def test_the_ring_keeps_the_latest_rows() -> None:
    played = Played(rows_kept=3)
    for number in range(5):
        name = f"r{number}"
        played.submit(0.0, name)
        played.statistics.cancelled(played.submission(name), 1.0)
    assert list(played.statistics.rows()) == ["r4", "r3", "r2"]
    assert played.statistics.row("r1") is None
    assert played.statistics.events("r1") == []


_moves = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "dispatch", "recall", "lost", "end", "cancel", "refuse", "return", "sweep"]
        ),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(_moves)
def test_nothing_is_left_when_everything_has_ended(moves: list[tuple[str, int]]) -> None:
    played = Played(away_s=5.0)
    statistics = played.statistics
    now = 0.0
    for move, number in moves:
        now += 1.0
        name = f"r{number}"
        asked = played.submission(name)
        if move == "submit":
            played.submit(now, name)
        elif move == "dispatch":
            played.dispatch(now, "a", name)
        elif move == "recall":
            statistics.recalled(name, "a", "b", now)
        elif move == "lost":
            statistics.lost(name, "a", now)
        elif move == "end":
            finished = Finished(name, "c", 1, 5, "stop")
            statistics.attempt_ended("a", finished, "none", now)
            statistics.ended("a", finished, asked, now)
        elif move == "cancel":
            statistics.cancelled(asked, now)
        elif move in ("refuse", "return"):
            statistics.refused(asked, ValueError("no"), now, UNIX_S, may_return=move == "return")
        else:
            statistics.sweep(now)
        on_replicas = sum(statistics.running(c) for c in RequestClass)
        assert on_replicas == sum(record.runs for record in statistics._open._records.values())
    for number in range(4):
        statistics.cancelled(played.submission(f"r{number}"), now)
    statistics.sweep(now + 100.0)
    assert not len(statistics._open)
    assert not statistics._open._away
    assert not statistics._closing
    assert [statistics.running(c) for c in RequestClass] == [0, 0]
