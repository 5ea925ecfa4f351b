"""A controller in this process with replicas that do what a test says, without Ray."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cluster.config import parse_config
from cluster.membership.member import Ended, Member
from cluster.membership.replica_set import ReplicaSet
from cluster.messages import Orphaned, Submission
from cluster.scheduler import Dispatch
from policies.request import RequestClass
from replicas.protocol import (
    EnergyTotals,
    EngineInfo,
    EngineLoad,
    Finished,
    Generation,
    ReplicaReport,
    Stalled,
)
from tests.cluster.running import Running

CLIENT = "client"


class Deaf:
    """Stands where the handle of a replica's actor does, and obeys nothing."""

    def __init__(self) -> None:
        self.act = self

    async def remote(self, *_: Any) -> None:
        """Orders."""


class Controlled:
    """A controller, its replicas by name and the times at which it is asked.

    Args:
        config: Sections of its configuration.
    """

    def __init__(self, **config: Any) -> None:
        replicas = {"engine": "simulated", "look_ahead": 0}
        replicas |= config.pop("replicas", {})
        sections = {"model": "m", "replicas": replicas, **config}
        parsed = parse_config(sections)
        self.control = Running(parsed.model_dump(mode="json"))
        self.state = self.control._state
        self.desk = self.control._desk
        self.replicas = ReplicaSet(parsed, None, self.desk, 1)
        self.control._replicas = self.replicas
        self.members: dict[str, Member] = {}

    def join(
        self, name: str, index: int | None = None, *, blocks: int = 64, slots: int = 8
    ) -> Member:
        """A replica is ready; with the index of one that was lost it is its replacement."""
        member = Member(len(self.members) if index is None else index, name, "ready")
        member.info = EngineInfo("m", blocks, 16, slots, 1024, kind="simulated")
        member.handle = Deaf()
        self.members[name] = member
        self.replicas.members = [m for m in self.replicas.members if m.index != member.index]
        self.replicas.members.append(member)
        self.desk.replica_ready(member)
        return member

    def lose(self, name: str, ended: Ended) -> None:
        member = self.members[name]
        member.ended, member.state = ended, "lost"
        self.desk.replica_lost(member)

    async def submit(
        self,
        name: str,
        prompt: int = 20,
        cap: int = 100,
        *,
        attempt: int = 1,
        generated: int = 0,
        strikes: float = 0.0,
        job: str = "",
        client: str = CLIENT,
        accepted: bool = False,
        tenant: str = "default",
    ) -> None:
        generation = Generation(name, client, b"", generated_tokens=generated, attempt=attempt)
        kind = RequestClass.OFFLINE if job else RequestClass.ONLINE
        submission = Submission(
            generation, prompt, cap, kind, tenant, job=job, strikes=strikes, accepted=accepted
        )
        await self.control.submit(client, [submission])

    async def decide(self) -> dict[str, str]:
        """One round of decisions: where requests are dispatched to."""
        actions = self.state.scheduler.decide(time.monotonic())
        self.control._carry_out(actions)
        await asyncio.gather(*self.control._tasks)
        return {a.request.request_id: a.replica_id for a in actions if isinstance(a, Dispatch)}

    async def report(
        self,
        name: str,
        progress: dict[str, int] | None = None,
        finished: list[Finished] | None = None,
        stalled: dict[str, Stalled] | None = None,
        energy: EnergyTotals | None = None,
        kv_usage: float = 0.0,
    ) -> None:
        books, load = energy or EnergyTotals(), EngineLoad(kv_usage=kv_usage)
        report = ReplicaReport(
            name, progress or {}, finished or [], load, books, 0.0, stalled or {}
        )
        await self.control.report(report)

    async def end(self, name: str, where: str, tokens: int, joules: float | None = None) -> None:
        """A request ends in its first attempt."""
        wasted = None if joules is None else joules / 10
        ended = Finished(
            name, CLIENT, 1, tokens, "stop", energy_joules=joules, wasted_joules=wasted
        )
        await self.report(where, finished=[ended], energy=EnergyTotals("model:x"))

    async def orphans(self) -> list[Orphaned]:
        """What the client has been told of lost replicas."""
        _, events, _ = await self.control.take(CLIENT, 0, self.state.number)
        return [event for event in events if isinstance(event, Orphaned)]
