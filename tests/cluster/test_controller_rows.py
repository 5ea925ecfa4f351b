"""What the controller tells its statistics of each thing that can happen to a request."""

from __future__ import annotations

import time

import pytest

from cluster.control.tickets import ticket_of
from cluster.messages import Submission
from cluster.statistics.finished_row import FinishedRow
from policies.request import RequestClass
from replicas.protocol import EnergyTotals, EngineTerms, Finished, Generation, Held, Stalled
from tests.cluster.controlled import CLIENT, Controlled
from tests.cluster.test_controller_recalls import Cluster

MODEL = EnergyTotals("model:x")


def cluster(**config: object) -> Controlled:
    made = Controlled(**config)
    made.join("a")
    return made


def row(made: Controlled, name: str = "r") -> FinishedRow:
    found = made.state.statistics.row(name)
    assert found is not None
    return found


def told(made: Controlled, name: str = "r") -> list[str]:
    return [event.what for event in made.state.statistics.events(name)]


async def test_a_request_is_followed_from_its_arrival_to_its_end() -> None:
    made = cluster(policy={"name": "a_min"})
    await made.submit("r", job="demo")
    assert told(made) == ["arrived"]
    await made.decide()
    assert made.state.statistics.running(RequestClass.OFFLINE) == 1
    await made.report("a", stalled={"r": Stalled(tokens=3, evictions=1)})
    await made.end("r", "a", tokens=12, joules=5.0)
    found = row(made)
    assert (found.job, found.policy, found.replica_id) == ("demo", "a_min", "a")
    assert (found.output_tokens, found.finish_reason) == (12, "stop")
    assert (found.energy_joules, found.wasted_joules, found.energy_source) == (5.0, 0.5, "model:x")
    assert abs(found.arrival_unix_s - time.time()) < 60
    assert told(made) == ["arrived", "dispatched", "evicted", "finished"]
    assert made.state.statistics.running(RequestClass.OFFLINE) == 0
    assert list(made.state.statistics.rows()) == ["r"]


async def test_forecasts_that_come_are_told() -> None:
    made = cluster()
    await made.submit("r")
    (prior,) = made.state.forecasting.prior([made.state.scheduler._waiting["r"].request])
    made.control._forecasts_arrived({"r": prior, "unknown": prior})
    await made.decide()
    await made.end("r", "a", tokens=3)
    assert row(made).forecast_s is not None
    assert told(made) == ["arrived", "forecast", "dispatched", "finished"]


@pytest.mark.parametrize("times", [1, 2])
async def test_what_a_recalled_request_cost_before_is_in_its_row(times: int) -> None:
    home = Cluster()
    await home.full()
    statistics = home.control._state.statistics
    await home.decide()
    assert statistics.running(RequestClass.OFFLINE) == 4
    first = Finished("r4", CLIENT, 1, 50, "abort", preemptions=1, energy_joules=7.0)
    await home.control.report(home.report(finished=[first]))
    await home.submit(*[home.submission(4, attempt=2, generated=50)] * times)
    await home.decide()
    assert statistics.running(RequestClass.OFFLINE) == 5
    last = Finished("r4", CLIENT, 2, 60, "stop", energy_joules=2.0)
    report = home.report(finished=[last])
    await home.control.report(type(report)("away", {}, [last], report.load, MODEL, 0.0))
    found = statistics.row("r4")
    assert found is not None
    assert (found.recalls, found.attempts, found.evictions) == (1, 2, 1)
    assert (found.energy_joules, found.recomputed_tokens) == (9.0, 60)
    assert (found.replica_id, found.energy_source) == ("away", "model:x")
    assert [e.what for e in statistics.events("r4")] == [
        "arrived", "dispatched", "evicted", "recalled", "dispatched", "finished",
    ]  # fmt: skip


async def test_a_lost_request_goes_on_in_the_same_row() -> None:
    made = cluster()
    made.join("b")
    await made.submit("r")
    where = (await made.decide())["r"]
    made.lose(where, "process")
    assert made.state.statistics.is_open("r")
    assert made.state.statistics.running(RequestClass.ONLINE) == 0
    await made.submit("r", attempt=2, generated=5)
    there = (await made.decide())["r"]
    ended = Finished("r", CLIENT, 2, 9, "stop")
    await made.report(there, finished=[ended])
    assert (row(made).attempts, row(made).recomputed_tokens) == (2, 25)
    assert told(made) == ["arrived", "dispatched", "lost", "dispatched", "finished"]


async def test_a_cancelled_request_s_last_energy_is_booked() -> None:
    made = cluster()
    await made.submit("r")
    await made.submit("waits", cap=900)
    await made.decide()
    await made.control.cancel(CLIENT, ["r"])
    aborted = Finished("r", CLIENT, 1, 4, "abort", energy_joules=3.0)
    await made.report("a", finished=[aborted], energy=MODEL)
    assert (row(made).finish_reason, row(made).energy_joules) == ("abort", 3.0)
    assert row(made).output_tokens == 4


async def test_a_client_that_takes_an_id_over_begins_a_row_of_its_own() -> None:
    made = cluster()
    rows: list[FinishedRow] = []
    made.state.statistics.on_row.append(lambda row, events, submission: rows.append(row))
    await made.submit("r")
    await made.decide()
    await made.submit("r", client="successor")
    assert [row.finish_reason for row in rows] == ["abort"]
    await made.decide()
    await made.report("a", finished=[Finished("r", "successor", 1, 8, "stop")])
    assert [row.finish_reason for row in rows] == ["abort", "stop"]


async def test_only_final_refusals_leave_a_row() -> None:
    made = cluster(queue={"online_requests": 1})
    for name in ("first", "second"):
        await made.submit(name)
    assert made.state.statistics.row("second") is None
    assert not made.state.statistics.is_open("second")
    await made.submit("large", prompt=5000)
    assert row(made, "large").finish_reason == "error"
    assert told(made, "large") == ["arrived", "refused"]


async def test_a_restarted_controller_follows_what_it_adopts() -> None:
    made = Controlled()
    member = made.join("a")
    terms = EngineTerms(3.0, 0.5, 5, 50, key=1.0, arrival_s=0.0)
    generation = Generation("r", CLIENT, b"", attempt=2, terms=terms)
    orders = Submission(generation, 20, 100, job="demo")
    held = [Held(ticket_of(orders, generation), output_tokens=7)]
    books = EnergyTotals("model:x", metered_joules=70.0, idle_joules=60.0)
    await made.desk.take_over(member, held, books)
    assert made.state.energy.view().totals.metered_joules == 70.0, "before it has reported"
    assert made.state.statistics.running(RequestClass.ONLINE) == 1
    await made.report("a", finished=[Finished("r", CLIENT, 2, 11, "stop", energy_joules=1.0)])
    found = row(made)
    assert (found.job, found.attempts, found.dispatched_s) == ("demo", 2, None)
    assert (found.forecast_mu, found.energy_joules) == (3.0, 1.0)


async def test_no_row_waits_for_ever() -> None:
    made = cluster(client_timeout_s=5.0)
    await made.submit("r")
    await made.decide()
    before_s = time.monotonic()
    made.lose("a", "node")
    statistics = made.state.statistics
    statistics.sweep(before_s + 4.0)
    assert statistics.is_open("r")
    statistics.sweep(time.monotonic() + 6.0)
    assert not statistics.is_open("r")
