"""What the scheduling core holds true in a world where all news comes late."""

from __future__ import annotations

from cluster.core.suspects import ALONE_AT
from policies.request import RequestClass
from policies.waiting import predicted_tokens
from tests.cluster.recall_world import World


def check(world: World) -> None:
    """What holds after every decision."""
    core = world.core
    entries = [name for ledger in core.fleet for name in ledger.request_ids]
    assert len(entries) == len(set(entries)), "nobody has room twice"
    for name, (to, _) in world.kept.items():
        assert name in core.fleet[to], "its room is kept"
    homeless = [n for n in world.calls if core.state(n) == "recalled" and n not in world.kept]
    assert len(entries) + len(homeless) == core.running
    assert all(not ends or core.state(n) == "unknown" for n, ends in world.ends.items())
    names = [ledger.replica.replica_id for ledger in core.fleet]
    alone = [n for n in entries if _alone(world, n)]
    assert len(alone) <= 1
    for where in (core.placement(name)[0] for name in alone):
        assert len(core.fleet[where]) == 1
    if core._waiting.ordered:
        for where in names:
            if not (core.fleet.is_closed(where) or core.fleet.is_avoided(where)):
                assert len(core.fleet[where]), "a replica is idle"
    _check_queue(world)
    recalled = core._state.moving._recalled.values()
    for where in names:
        due = sum(moving.source == where for moving in recalled)
        assert core.runs_on(where) == len(core._running.on(where)) + due


def _alone(world: World, name: str) -> bool:
    return world.core.state(name) == "running" and world.strikes[name] >= ALONE_AT


def _check_queue(world: World) -> None:
    for request_class in RequestClass:
        waiting = [
            world.core._waiting[n]
            for n, call in world.calls.items()
            if n in world.core._waiting and call.request.request_class is request_class
        ]
        load = world.core.queue(request_class)
        tokens = sum(predicted_tokens(w.request, w.forecast) for w in waiting)
        assert (load.requests, load.tokens) == (len(waiting), tokens)
