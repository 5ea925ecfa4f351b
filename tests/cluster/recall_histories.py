"""Random histories: requests come, replicas drain and are lost, controllers are restarted."""

from __future__ import annotations

import random

from cluster.core.suspects import VANISHED
from cluster.scheduler import ClusterScheduler, QueueLimits
from policies.bundle import policy, policy_names
from tests.cluster.factories import forecast
from tests.cluster.recall_checks import check
from tests.cluster.recall_world import World

POLICIES = [name for name in policy_names() if name != "h_sf"]


def history(
    seed: int,
    policy_name: str,
    length: int = 100,
    scheduler: type[ClusterScheduler] = ClusterScheduler,
) -> World:
    """A world after a random history, which a seed gives."""
    rng = random.Random(seed)
    names = ["a", "b", "c"][: rng.randint(2, 3)]
    rules = policy(policy_name, backfill=rng.choice([0, 0, 2]), guard_band=0.05)
    limits = rng.choice([None, None, QueueLimits(6, 300, 4, 500)])
    fair_share = rng.random() < 0.5

    def new_core() -> ClusterScheduler:
        return scheduler(rules, limits=limits, fair_share=fair_share)

    world = World(new_core, rng, names)
    for number in range(length):
        world.now += rng.expovariate(10.0)
        where = rng.choice(names)
        event = rng.random()
        if event < 0.3:
            world.begin(f"r{number}")
        elif event < 0.65:
            world.deliver()
        elif event < 0.67 and world.calls:
            world.cancel(rng.choice(list(world.calls)))
        elif event < 0.685:
            world.lose(where, rng.choice([0.0, VANISHED]))
        elif event < 0.69:
            world.drain(where)
        elif event < 0.694:
            world.restart()
        elif event < 0.71 and world.calls:
            name = rng.choice(list(world.calls))
            world.go_on(name, world.calls[name].attempt)
        elif event < 0.74 and world.calls:
            name = rng.choice(list(world.calls))
            world.core.forecast(name, forecast(rng.uniform(1, 60)), world.now)
        else:
            for _ in range(rng.randint(1, 6)):
                world.step(where)
        world.decide()
        check(world)
    finish(world)
    return world


def finish(world: World) -> None:
    """Events become fewer, until nothing is left to do."""
    for number in range(4000):
        world.now += 0.1
        world.deliver()
        for where in world.engines:
            world.step(where)
        if number < 80 and world.rng.random() < 0.15:
            world.cancel(world.rng.choice(list(world.calls)))
        if number < 80 and world.rng.random() < 0.1:
            world.lose(world.rng.choice(list(world.engines)))
        for where in [w for w, engine in world.engines.items() if engine.drains]:
            world.leave(where)
        world.decide()
        check(world)
        if not (world.core.waiting or world.core.running or world.sends):
            return
    raise AssertionError("requests are left although the replicas work")
