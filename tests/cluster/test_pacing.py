"""The power cap in a controller: its readings, its complaints, and a cluster that it paces."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.control.controller_state import ControllerState
from cluster.control.pacing import UNMETERED_S, Pacing
from cluster.control.power_cap import START
from cluster.lifecycle import running_cluster
from policies.request import RequestClass
from replicas.protocol import EnergyTotals
from tests.cluster.factories import dispatched, forecast, replica, request
from tests.cluster.running import Running
from tests.cluster.test_cluster import generation

POWER = {"idle_w": 50.0, "max_w": 400.0, "peak_flops_per_s": 3e14, "flops_per_token": 1.6e10}


def controller_state(cap_w: float | None, *, waiting: int = 3) -> ControllerState:
    """The state of a controller with one replica and offline requests that wait."""
    config = parse_config({"energy": {"power_cap_w": cap_w}})
    state = Running(config.model_dump(mode="json"))._state
    state.scheduler.replica_joined(replica("a"), 0.0)
    for number in range(waiting):
        state.scheduler.submit(request(f"r{number}", cap=40, online=False), forecast(20), 0.0)
    return state


def told(state: ControllerState, power_w: float | None, idle_w: float = 100.0) -> None:
    state.energy.reported("a", EnergyTotals("made-up", power_w=power_w, idle_w=idle_w))


def test_without_a_cap_nobody_is_paced() -> None:
    state = controller_state(None)
    Pacing(state).look(0.0)
    assert len(dispatched(state.scheduler)) == 3


def test_a_cap_lets_few_in_before_anything_is_known_and_more_as_power_allows() -> None:
    state = controller_state(500.0)
    pacing = Pacing(state)
    pacing.look(0.0)
    assert len(dispatched(state.scheduler)) == START
    told(state, 150.0)
    for second in range(1, 4):
        state.wake.clear()
        pacing.look(float(second))
    assert state.wake.is_set()
    assert len(dispatched(state.scheduler, 4.0)) == 1, "twice as many as before"
    told(state, 900.0)
    for second in range(6, 9):
        pacing.look(float(second))
    assert state.scheduler.offline_running == 2
    assert state.scheduler.finished("a", "r0", 20, 9.0)
    assert dispatched(state.scheduler, 9.0) == []


def test_a_controller_that_was_started_again_goes_on_at_the_pace_it_finds() -> None:
    state = controller_state(500.0)
    assert len(dispatched(state.scheduler)) == 3
    pacing = Pacing(state)
    pacing.look(0.0)
    assert state.scheduler.finished("a", "r0", 20, 1.0)
    state.scheduler.submit(request("next", cap=40, online=False), forecast(20), 1.0)
    assert [name for name, _ in dispatched(state.scheduler, 1.0)] == ["next"]


def test_a_cap_that_nobody_meters_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    pacing = Pacing(controller_state(500.0))
    with caplog.at_level(logging.ERROR):
        pacing.look(0.0)
        pacing.look(UNMETERED_S / 2)
        assert not caplog.records
        pacing.look(UNMETERED_S)
        pacing.look(2 * UNMETERED_S)
    (record,) = caplog.records
    assert "energy.power_cap_w is 500 W, but the replicas' power is not measured" in record.message


def test_a_meter_that_falls_silent_lets_nobody_in_and_is_complained_of_when_it_stays_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = controller_state(500.0, waiting=100)
    pacing = Pacing(state)
    with caplog.at_level(logging.ERROR):
        pacing.look(0.0)
        told(state, 150.0)
        for second in range(1, 4):
            pacing.look(float(second))
        assert len(dispatched(state.scheduler, 4.0)) == 1
        told(state, None)
        for second in range(5, 60):
            pacing.look(float(second))
            assert not dispatched(state.scheduler, float(second))
            if second < 5 + UNMETERED_S:
                assert not caplog.records
    assert len(caplog.records) == 1


def test_a_cap_below_idle_power_is_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    state = controller_state(500.0)
    told(state, 620.0, idle_w=600.0)
    pacing = Pacing(state)
    with caplog.at_level(logging.ERROR):
        for second in range(5):
            pacing.look(float(second))
    (record,) = caplog.records
    assert "500 W, but the replicas take 600 W without work" in record.message
    assert dispatched(state.scheduler) == []


async def offline_and_online(controller: Any, cap_w: float) -> tuple[list[float], list[int]]:
    """Power and running requests each second, with more offline work than the cap allows."""
    watts, running = [], []
    async with ClusterClient(controller) as client:
        tasks = [
            asyncio.create_task(client.complete(generation(i, tokens=150))) for i in range(400)
        ]
        started_s = time.monotonic()
        while time.monotonic() - started_s < 120 and (not watts or watts[-1] < 0.9 * cap_w):
            await asyncio.sleep(0.5)
            snapshot = await client.snapshot()
            watts.append(snapshot.energy.power_w or 0.0)
            running.append(snapshot.status.running)
        assert snapshot.energy.power_cap_w == cap_w
        chat = await client.complete(
            GenerationRequest("chat", [1] * 20, 5, request_class=RequestClass.ONLINE)
        )
        assert chat.finish_reason in ("stop", "length")
        status = await client.status()
        assert status.waiting > 100, "offline requests waited meanwhile"
        for task in tasks:
            task.cancel()
    return watts, running


@pytest.mark.usefixtures("ray_here")
def test_a_cluster_comes_up_to_its_cap_and_stays_under_it() -> None:
    cap_w = 180.0
    config = parse_config(
        {
            "replicas": {"engine": "simulated", "count": 2, "max_num_seqs": 32},
            "energy": {"power_model": POWER, "power_cap_w": cap_w},
        }
    )
    with running_cluster(config) as (controller, _):
        watts, running = asyncio.run(offline_and_online(controller, cap_w))
    assert 0.9 * cap_w <= watts[-1]
    # Engines that were held up catch up at once, by a quarter of a second in one.
    second, highest = sorted([0.0, *watts])[-2:]
    assert second <= 1.05 * cap_w
    assert highest <= 1.3 * cap_w
    assert 1 < max(running) < 10, "64 would fit"
