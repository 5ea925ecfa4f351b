"""The power cap's controller on a plant with a power model, and in a controller."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from cluster.control.power_cap import ENOUGH, START, PowerCap, PowerReading
from replicas.power_model import ModelledDevice, PowerModel

DEVICE = ModelledDevice(
    "made-up", PowerModel(90.0, 400.0), peak_flops_per_s=3e14, flops_per_token=16e9
)
SLOTS = 64


@dataclass
class Plant:
    """Replicas that decode, with a power model, read as late and as smeared as real meters are."""

    replicas: int = 4
    seed: int = 0
    lag_s: int = 1
    noise: float = 0.01
    offline: list[int] = field(default_factory=list)
    online: int = 0
    watts: list[float] = field(default_factory=list)
    waiting: float = math.inf

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.seen: deque[float] = deque([self.draws(0)], maxlen=self.lag_s + 1)

    def draws(self, running: int) -> float:
        """Watts of all replicas with so many requests, spread evenly."""
        batch = running / self.replicas
        step_s = 6e-3 + 2e-4 * batch
        return self.replicas * DEVICE.watts(round(1000 * batch), 1000 * step_s)

    def second(self, most: int) -> PowerReading:
        """A second passes in which as many offline requests are kept running as may be."""
        self.offline = [left - 1 for left in self.offline if left > 1]
        room = min(most, self.replicas * SLOTS - self.online) - len(self.offline)
        for _ in range(int(min(max(room, 0), self.waiting))):
            self.waiting -= 1
            self.offline.append(max(1, round(self.rng.expovariate(1 / 12))))
        running = len(self.offline) + self.online
        power_w = self.draws(running) * (1 + self.rng.uniform(-self.noise, self.noise))
        self.watts.append(power_w)
        self.seen.append(power_w)
        return PowerReading(self.seen[0], self.replicas * 90.0, running, len(self.offline))


def run(plant: Plant, cap: PowerCap, seconds: int, start_s: int = 0) -> list[int]:
    """The paces of so many seconds."""
    paces = []
    for now in range(start_s, start_s + seconds):
        reading = plant.second(cap.most_running)
        paces.append(cap.look(float(now), reading))
    return paces


@pytest.mark.parametrize("cap_w", [500.0, 700.0, 900.0])
@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("lag_s", [0, 1])
def test_power_comes_up_to_the_cap_and_stays_under_it(
    cap_w: float, replicas: int, lag_s: int
) -> None:
    plant, cap = Plant(replicas, lag_s=lag_s), PowerCap(cap_w)
    run(plant, cap, 150)
    assert max(plant.watts) <= 1.02 * cap_w, "it is approached from below"
    settled = run(plant, cap, 200, 150)
    watts = plant.watts[150:]
    highest = plant.draws(replicas * SLOTS)
    one_more_w = plant.draws(replicas + 1) - plant.draws(replicas)
    assert min(watts) >= min(0.9 * (cap_w - one_more_w), 0.98 * highest)
    assert sum(w > cap_w for w in watts) <= 0.02 * len(watts)
    assert max(watts) <= 1.02 * cap_w
    if highest > cap_w:
        assert max(settled) - min(settled) <= 0.2 * max(settled) + 2, "no oscillation"


def test_with_power_enough_everything_runs() -> None:
    plant, cap = Plant(), PowerCap(1e5)
    paces = run(plant, cap, 150)
    assert len(plant.offline) == 4 * SLOTS
    growth = [after / before for before, after in pairwise(paces)]
    assert max(growth) <= 2, "no more than twice what runs at a time"


def test_online_work_takes_the_place_of_offline_work_and_is_never_counted_out() -> None:
    plant, cap = Plant(), PowerCap(900.0)
    run(plant, cap, 100)
    before = len(plant.offline)
    plant.online = 60
    run(plant, cap, 60, 100)
    assert len(plant.offline) < before
    assert max(plant.watts[130:]) <= 1.02 * 900.0
    plant.online = 4 * SLOTS
    run(plant, cap, 90, 160)
    assert plant.draws(4 * SLOTS) > 900.0, "online work alone is above the cap"
    assert (len(plant.offline), cap.most_running) == (0, 0)
    plant.online = 0
    run(plant, cap, 150, 250)
    assert len(plant.offline) >= 0.8 * before, "it comes back"


def test_a_drain_is_waited_for_and_not_cut_again() -> None:
    cap = PowerCap(1000.0)
    cap.most_running = 100
    assert cap.look(0.0, PowerReading(1200.0, 200.0, 100, 100)) == 77
    # They end slowly; what is above the cap still has been dealt with.
    assert cap.look(3.0, PowerReading(1100.0, 200.0, 90, 90)) == 77
    assert cap.look(6.0, PowerReading(1010.0, 200.0, 81, 81)) == 77


def test_readings_of_before_a_change_let_nobody_in() -> None:
    cap = PowerCap(1000.0)
    paces = [cap.look(float(second), PowerReading(300.0, 200.0, 1, 1)) for second in range(3)]
    assert paces == [1, 1, 2]
    # Two run at once; their power is seen later.
    paces = [cap.look(float(second), PowerReading(300.0, 200.0, 2, 2)) for second in range(3, 8)]
    assert paces == [2, 2, 2, 2, 4]


@pytest.mark.parametrize(("power_w", "most"), [(161.0, 5), (166.0, 4)])
def test_one_wide_request_more_is_let_in_below_the_cap_though_above_the_aim(
    power_w: float, most: int
) -> None:
    cap = PowerCap(180.0, running=4)
    reading = PowerReading(power_w, 100.0, 4, 4)
    assert [cap.look(float(second), reading) for second in range(3)] == [4, 4, most]


def test_a_pace_that_nobody_uses_comes_down_to_what_runs() -> None:
    cap = PowerCap(1000.0)
    cap.most_running = 100
    mostly_online = PowerReading(950.0, 200.0, 75, 5)
    assert [cap.look(float(second), mostly_online) for second in range(3)] == [100, 100, 7]


def test_a_new_job_does_not_find_the_pace_of_an_old_one() -> None:
    plant, cap = Plant(), PowerCap(900.0)
    run(plant, cap, 100)
    plant.waiting = 0.0
    run(plant, cap, 120, 100)
    assert plant.offline == []
    assert cap.most_running <= 2 * START
    plant.waiting = math.inf
    run(plant, cap, 120, 220)
    assert max(plant.watts) <= 1.02 * 900.0
    assert plant.watts[-1] >= ENOUGH * 900.0 * 0.97


def test_a_request_that_takes_too_much_alone_is_not_tried_again_at_once() -> None:
    plant = Plant(replicas=1, noise=0.0)
    cap = PowerCap(plant.draws(1) - 1.0)
    run(plant, cap, 400)
    above = sum(watts > cap.cap_w for watts in plant.watts)
    assert 0 < above < 0.5 * len(plant.watts)
    assert any(watts > cap.cap_w for watts in plant.watts[200:]), "but in a minute it is"


def test_without_readings_the_pace_stays() -> None:
    cap = PowerCap(500.0)
    assert [cap.look(float(second), None) for second in range(100)] == [START] * 100
    plant = Plant()
    run(plant, cap, 60, 100)
    reached = cap.most_running
    assert reached > START
    assert [cap.look(float(second), None) for second in range(160, 200)] == [reached] * 40
