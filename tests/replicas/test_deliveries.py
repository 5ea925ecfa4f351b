"""What clients get of what runs for them, and what becomes of those that are gone."""

from __future__ import annotations

import asyncio

import pytest

from replicas import deliveries as module
from replicas.deliveries import FORGET_AFTER, Deliveries
from replicas.energy import NullMeter
from replicas.metering import Metering
from replicas.protocol import Delta, Generation, pack_tokens
from replicas.reports import Reports
from replicas.running_attempt import RunningAttempt
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions

CLIENT_TIMEOUT_S = 60.0


class Here:
    """Deliveries with two clients, of which each has a request of the same name."""

    def __init__(self) -> None:
        engine = SimulatedEngine(SimulatedEngineOptions())
        metering = Metering(NullMeter("a test"), engine)
        self.requests: dict[str, RunningAttempt] = {}
        self.reports = Reports("a", None, engine, metering, self.requests)
        self.deliveries = Deliveries(self.requests, metering, self.reports, CLIENT_TIMEOUT_S)
        for client in ("here", "gone"):
            self.deliveries.begin(Generation(client, client, pack_tokens([1]), attempt=3))
            self.deliveries.deliver([Delta(client, token_ids=[7])])

    def silent(self, client_id: str, seconds: float) -> None:
        self.deliveries._outbox(client_id).last_read_s -= seconds


async def test_what_ends_is_delivered_and_reported_once_and_runs_no_more() -> None:
    here = Here()
    for _ in range(2):
        here.deliveries.deliver([Delta("here", token_ids=[8], finish_reason="stop")])
    number, deltas = await here.deliveries.take("here", 0)
    assert [(d.token_ids, d.finish_reason, d.attempt) for d in deltas] == [
        ([7], None, 3),
        ([8], "stop", 3),
    ]
    assert number == 1
    assert [(f.request_id, f.output_tokens) for f in here.reports._finished] == [("here", 2)]
    assert list(here.requests) == ["gone"]


async def test_what_runs_for_a_lost_client_ends_and_it_finds_the_end_should_it_come_back() -> None:
    here = Here()
    assert here.deliveries.end_lost() == []
    here.silent("gone", CLIENT_TIMEOUT_S + 1)
    assert here.deliveries.end_lost() == ["gone"]
    assert list(here.requests) == ["here"]
    assert here.deliveries.end_lost() == []
    _, deltas = await here.deliveries.take("gone", 0)
    assert [d.finish_reason for d in deltas] == [None, "abort"]


@pytest.mark.parametrize(("times", "left"), [(0.5, True), (1.5, False)])
async def test_what_nobody_fetches_is_thrown_away_in_the_end(times: float, left: bool) -> None:
    here = Here()
    here.deliveries.deliver([Delta("gone", finish_reason="stop")])
    here.silent("gone", times * FORGET_AFTER * CLIENT_TIMEOUT_S)
    here.deliveries.end_lost()
    assert ("gone" in here.deliveries._outboxes) == left


async def test_who_still_reads_is_waited_for_and_who_is_silent_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LAST_READ_S", 1e6)
    here = Here()
    here.silent("gone", 2e6)
    waiting = asyncio.create_task(here.deliveries.until_read())
    number, _ = await here.deliveries.take("here", 0)
    await asyncio.sleep(2 * module.LAST_LOOK_S)
    assert not waiting.done()  # it may not have come
    acknowledging = asyncio.create_task(here.deliveries.take("here", number))
    await waiting
    acknowledging.cancel()
