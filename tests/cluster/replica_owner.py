"""What stands where the controller does for a replica set: an owner, and an actor for reports."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray

from cluster.config import parse_config
from cluster.membership.member import Ended, Member
from cluster.membership.replica_set import ReplicaSet
from replicas.protocol import Generation, ReplicaReport, pack_tokens

NOBODY = "nobody"


@ray.remote(num_cpus=0, max_concurrency=1000)
class Reports:
    """Takes the reports of replicas, whichever replica set they belong to."""

    def __init__(self) -> None:
        self._died: list[str] = []

    async def report(self, report: ReplicaReport) -> None: ...

    async def engine_died(self, replica_id: str) -> None:
        self._died.append(replica_id)

    async def died(self) -> list[str]:
        return self._died

    async def watch(self) -> None:
        await asyncio.Event().wait()


class Owner:
    """Keeps what it is told. Requests "run" on a replica as `runs` says."""

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.lost: list[tuple[str, Ended]] = []
        self.told: list[str] = []
        self.runs: dict[str, int] = defaultdict(int)
        self.gives_back = True

    def replica_ready(self, member: Member) -> None:
        self.ready.append(member.replica_id)

    def replica_lost(self, member: Member) -> None:
        self.lost.append((member.replica_id, member.ended))

    def replica_leaving(self, member: Member) -> None:
        self.told.append(f"{member.replica_id} leaves")

    async def replica_drained(self, member: Member) -> None:
        while self.runs[member.replica_id]:
            await asyncio.sleep(0.02)

    def replica_gives_back(self, member: Member) -> None:
        self.told.append(f"{member.replica_id} gives back")
        if self.gives_back:
            self.runs[member.replica_id] = 0

    def requests_on(self, member: Member) -> int:
        return self.runs[member.replica_id]


class Keeper:
    """A replica set and its owner, as one controller has them."""

    def __init__(self, reports: Any, number: int = 1, **replicas: Any) -> None:
        config = parse_config({"replicas": {"engine": "simulated", "max_num_seqs": 4, **replicas}})
        self.owner = Owner()
        self.reports = reports
        self.set = ReplicaSet(config, reports, self.owner, number)

    def die(self) -> None:
        """Leave everything as a killed controller does."""
        for task in [*(life.task for life in self.set._lives.values()), *self.set._chores]:
            task.cancel()

    def states(self) -> dict[str, str]:
        return {member.replica_id: member.state for member in self.set.members}

    def named(self, replica_id: str) -> Member:
        return next(m for m in self.set.members if m.replica_id == replica_id)

    def pid(self, replica_id: str) -> int:
        place = self.named(replica_id).place
        assert place is not None
        return place.pid

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for it, or fail with what there is instead."""
        for _ in range(2400):
            if holds():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{self.states()}, lost {self.owner.lost}, told {self.owner.told}")

    async def until_states(self, **states: str) -> None:
        """Wait until the replicas are these, written as `replica_0` or `replica_0_1`."""
        wanted = {
            name.replace("_", "-", 1).replace("_", "."): state for name, state in states.items()
        }
        await self.until(lambda: self.states() == wanted)

    async def give_work(self, replica_id: str, ticket: bytes = b"ticket") -> None:
        """Have the engine there run something for a while."""
        generation = Generation(
            f"on-{replica_id}",
            NOBODY,
            pack_tokens([1, 2, 3]),
            sampling={"max_tokens": 2000, "extra_args": {"simulated_output_tokens": 2000}},
            ticket=ticket,
        )
        await self.named(replica_id).handle.act.remote(1, 1, [], {}, [generation])
