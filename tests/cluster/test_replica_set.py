"""The life of replicas: real Ray actors with simulated engines, killed and suspended for real."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import ray

from cluster.membership.replica_actors import find_replicas
from cluster.membership.roster import load_roster
from tests.cluster.replica_owner import Keeper, Reports

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_here")]


@contextlib.asynccontextmanager
async def keeper(**replicas: Any) -> AsyncIterator[Keeper]:
    """A replica set whose first replicas are ready; afterwards nothing of it may be left."""
    reports = Reports.remote()
    made = Keeper(reports, **replicas)
    try:
        made.set.start()
        await made.set.settled()
        yield made
    finally:
        await made.set.stop()
        ray.kill(reports)
    assert not find_replicas()
    assert load_roster() is None


@contextlib.asynccontextmanager
async def successor(dead: Keeper, **replicas: Any) -> AsyncIterator[Keeper]:
    """Another controller's, after the first died."""
    dead.die()
    made = Keeper(dead.reports, number=2, **replicas)
    try:
        yield made
    finally:
        await made.set.stop()


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_a_replica_that_is_killed_is_replaced_under_another_name() -> None:
    async with keeper(count=2) as kept:
        for name in ["replica-0", "replica-0.1"]:
            os.kill(kept.pid(name), signal.SIGKILL)
            await kept.until(lambda name=name: (name, "process") in kept.owner.lost)  # type: ignore[misc]
            await kept.until(lambda: set(kept.states().values()) == {"ready"})
        assert set(kept.states()) == {"replica-0.2", "replica-1"}
        assert set(kept.owner.ready[:2]) == {"replica-0", "replica-1"}
        assert kept.owner.ready[2:] == ["replica-0.1", "replica-0.2"]
        assert len(kept.owner.lost) == 2
        assert not any(member.error for member in kept.set.members)


async def test_an_engine_that_died_is_told_from_a_process_that_vanished() -> None:
    async with keeper(count=1) as kept:
        kept.set.note_engine_died("replica-0")
        os.kill(kept.pid("replica-0"), signal.SIGKILL)
        await kept.until_states(replica_0_1="ready")
        os.kill(kept.pid("replica-0.1"), signal.SIGKILL)
        await kept.until_states(replica_0_2="ready")
        assert kept.owner.lost == [("replica-0", "engine"), ("replica-0.1", "process")]


async def test_a_suspended_replica_is_killed_and_replaced() -> None:
    async with keeper(count=1) as kept:
        pid = kept.pid("replica-0")
        os.kill(pid, signal.SIGSTOP)
        kept.set.kill("replica-0", ended="frozen")
        kept.set.kill("replica-0", ended="frozen")
        kept.set.kill("unknown", ended="frozen")
        await kept.until(lambda: bool(kept.owner.lost))
        assert lives(pid), "its requests go on elsewhere before it has ended"
        await kept.until_states(replica_0_1="ready")
        await kept.until(lambda: not lives(pid))
        assert kept.owner.lost == [("replica-0", "frozen")]


async def test_another_controller_adopts_what_runs_and_starts_what_is_missing() -> None:
    async with keeper(count=3) as first:
        await first.give_work("replica-1", b"a ticket")
        pids = {name: first.pid(name) for name in ("replica-0", "replica-1")}
        os.kill(first.pid("replica-2"), signal.SIGKILL)
        await first.until_states(replica_0="ready", replica_1="ready", replica_2_1="ready")
        first.die()
        ray.kill(first.named("replica-2.1").handle)
        async with successor(first, count=1) as second:
            adopted = {m.replica_id: told.held for m, told in await second.set.adopt()}
            assert set(adopted) >= set(pids)
            assert [held.ticket for held in adopted["replica-1"]] == [b"a ticket"]
            assert adopted["replica-0"] == []
            assert {name: second.pid(name) for name in pids} == pids
            second.set.start()
            await second.until(lambda: set(second.states().values()) == {"ready"})
            assert second.set.count == 3, "what was wanted outlives the controller"
            names = set(second.states()) - set(pids)
            assert names.isdisjoint({"replica-2", "replica-2.1"}), "a name is never used twice"
            assert not set(second.owner.ready) & set(pids), "the adopted are not told of again"
            os.kill(pids["replica-0"], signal.SIGKILL)
            await second.until(lambda: ("replica-0", "process") in second.owner.lost)


async def test_orders_of_the_controller_before_are_not_obeyed() -> None:
    async with keeper(count=1) as first:
        stale = first.named("replica-0").handle
        async with successor(first) as second:
            await second.set.adopt()
            await first.give_work("replica-0")
            assert not (await stale.adopt.remote(3)).held


async def test_who_does_not_answer_the_new_controller_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Time enough for the one that does answer.
    monkeypatch.setattr("cluster.membership.replica_set.ADOPT_TIMEOUT_S", 10.0)
    async with keeper(count=2) as first:
        pid = first.pid("replica-0")
        os.kill(pid, signal.SIGSTOP)
        async with successor(first) as second:
            adopted = await second.set.adopt()
            assert [member.replica_id for member, _ in adopted] == ["replica-1"]
            second.set.start()
            await second.until_states(replica_0_1="ready", replica_1="ready")
            await second.until(lambda: not lives(pid))


async def test_who_had_not_loaded_is_replaced() -> None:
    async with keeper(count=1) as first:
        unloaded = first.set._actors.create("replica-1")
        pid = (await unloaded.place.remote()).pid
        async with successor(first, count=2) as second:
            first.set.scale(2)
            adopted = await second.set.adopt()
            assert [member.replica_id for member, _ in adopted] == ["replica-0"]
            second.set.start()
            await second.until_states(replica_0="ready", replica_1_1="ready")
            await second.until(lambda: not lives(pid))


async def test_what_an_earlier_cluster_left_behind_is_cleared_away() -> None:
    async with keeper(count=2) as first:
        pids = [first.pid(name) for name in first.states()]
        async with successor(first, count=1) as second:
            await second.set.clear()
            await second.until(lambda: not any(map(lives, pids)))
            second.set.start()
            await second.until_states(replica_0="ready")


async def test_scaling_up_adds_and_scaling_down_takes_the_emptiest() -> None:
    async with keeper(count=2) as kept:
        kept.set.scale(4)
        await kept.until(lambda: list(kept.states().values()) == ["ready"] * 4)
        kept.owner.runs |= {"replica-0": 5, "replica-1": 2, "replica-2": 3, "replica-3": 4}
        kept.set.scale(2)
        assert kept.states()["replica-1"] == kept.states()["replica-2"] == "leaving"
        assert kept.owner.told == ["replica-1 leaves", "replica-2 leaves"]
        kept.owner.runs["replica-1"] = 0
        await kept.until(lambda: len(kept.states()) == 3)
        assert kept.owner.lost == [("replica-1", "left")]
        kept.owner.runs["replica-2"] = 0
        await kept.until_states(replica_0="ready", replica_3="ready")
        assert len(kept.owner.told) == 2, "nobody gave anything back"
        await kept.until(lambda: len(find_replicas()) == 2)


async def test_none_and_back_and_no_name_is_used_twice() -> None:
    async with keeper(count=1) as kept:
        kept.set.scale(0)
        await kept.until_states()
        kept.set.scale(2)
        await kept.until_states(replica_0_1="ready", replica_1="ready")


async def test_the_last_call_wins() -> None:
    async with keeper(count=1) as kept:
        for count in (4, 0, 3, 3, 1, 2):
            kept.set.scale(count)
        await kept.until(lambda: list(kept.states().values()) == ["ready", "ready"])
        await kept.until(lambda: len(find_replicas()) == 2)
        assert kept.set.count == 2


async def test_what_is_not_finished_in_time_is_handed_back() -> None:
    async with keeper(count=2, drain_timeout_s=0.3) as kept:
        kept.owner.runs |= {"replica-0": 1, "replica-1": 2}
        kept.set.scale(1)
        await kept.until_states(replica_1="ready")
        assert kept.owner.told == ["replica-0 leaves", "replica-0 gives back"]
        assert kept.owner.lost == [("replica-0", "left")]


async def test_what_is_not_handed_back_either_is_lost_with_the_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.membership.replica_set.GIVE_BACK_TIMEOUT_S", 0.3)
    async with keeper(count=2, drain_timeout_s=0.0) as kept:
        kept.owner.gives_back = False
        kept.owner.runs |= {"replica-0": 1, "replica-1": 2}
        kept.set.scale(1)
        await kept.until_states(replica_1="ready")
        assert kept.owner.lost == [("replica-0", "left")]


async def test_who_dies_or_freezes_while_it_leaves_is_not_replaced() -> None:
    async with keeper(count=3) as kept:
        kept.owner.runs |= {"replica-0": 1, "replica-1": 1, "replica-2": 2}
        kept.set.scale(1)
        os.kill(kept.pid("replica-0"), signal.SIGKILL)
        os.kill(kept.pid("replica-1"), signal.SIGSTOP)
        kept.set.kill("replica-1", ended="frozen")
        await kept.until_states(replica_2="ready")
        assert sorted(kept.owner.lost) == [("replica-0", "process"), ("replica-1", "frozen")]


async def test_a_refused_start_is_final_until_somebody_asks_again() -> None:
    async with keeper(count=1, engine_args={"no_such_option": 1}) as kept:
        assert kept.states() == {"replica-0": "failed"}
        assert "no_such_option" in kept.set.members[0].error
        kept.set.scale(1)
        await kept.until_states(replica_0_1="failed")
        kept.set.scale(0)
        await kept.until_states()
        assert kept.owner.lost == []


async def test_a_replacement_is_tried_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.membership.replica_set.MAX_PAUSE_S", 0.1)
    async with keeper(count=1) as kept:
        whole = kept.set._actors._config
        broken = whole.replicas.model_copy(update={"engine_args": {"no_such_option": 1}})
        kept.set._actors._config = whole.model_copy(update={"replicas": broken})
        os.kill(kept.pid("replica-0"), signal.SIGKILL)
        await kept.until(lambda: kept.set.members[0].replica_id == "replica-0.5")
        assert "no_such_option" in kept.set.members[0].error
        await kept.set.settled()
        kept.set._actors._config = whole
        await kept.until(lambda: kept.set.members[0].state == "ready")
        assert not kept.set.members[0].error
