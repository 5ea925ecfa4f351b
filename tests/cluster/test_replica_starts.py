"""Replicas that cannot start for as long as nobody has mended what stops them."""

from __future__ import annotations

import asyncio

import pytest
import ray

from cluster.membership import replica_set
from cluster.membership.member import Member
from cluster.membership.replica_set import MAX_PAUSE_S, ReplicaSet
from cluster.membership.roster import Roster
from replicas.replica import Place
from tests.cluster.controlled import Controlled

FAILURES = 1100
"""Starts that fail: a night, at one a minute."""


def test_a_start_is_tried_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    pauses: list[float] = []

    async def start(_: ReplicaSet, member: Member) -> None:
        nonlocal tries
        tries += 1
        if tries <= FAILURES:
            raise ray.exceptions.RayActorError
        member.info = Controlled().join("other").info

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def scenario() -> Controlled:
        made = Controlled()
        member = Member(0, "replica-0", patient=True)
        made.members["replica-0"] = member
        with monkeypatch.context() as patched:
            patched.setattr(ReplicaSet, "_start", start)
            patched.setattr(Roster, "save", lambda _: None)
            patched.setattr(replica_set.asyncio, "sleep", pause)
            assert await made.replicas._bring_up(member)
        return made

    made = asyncio.run(scenario())
    member = made.members["replica-0"]
    assert (member.state, member.error) == ("ready", "")
    assert made.desk.serving == 1
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert set(pauses[10:]) == {MAX_PAUSE_S}
    assert len(pauses) == FAILURES


@pytest.mark.parametrize(("taken", "is_told"), [([0, 1], False), ([0, 1, 2, 3], True)])
def test_replicas_never_share_cores_silently(
    taken: list[int], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place("node", "host", [0, 1, 2, 3], [])
    replicas = Controlled(replicas={"cpus_per_replica": 2}).replicas
    first, second = Member(0, "replica-0", place=place), Member(1, "replica-1", place=place)
    first.cores = taken
    replicas.members = [first, second]
    cores = replicas._free_cores(second)
    assert cores == ([0, 1] if is_told else [2, 3])
    assert ("replica-1 shares its cores" in caplog.text) is is_told
