"""The replicas of a cluster: brought up, watched, replaced, adopted, drained and scaled."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine
from typing import Any

import ray

from cluster.config import ClusterConfig
from cluster.membership import replica_actors
from cluster.membership.member import Ended, Member, ReplicaOwner, State
from cluster.membership.replica_actors import PlacementError, ReplicaActors
from cluster.membership.roster import Roster, forget_roster, load_roster, replica_name
from replicas.replica import Adoption, Place

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before one of the first replicas is given up."""

MAX_PAUSE_S = 60.0
"""Longest pause before a failed start is tried again."""

ADOPT_TIMEOUT_S = 10.0
"""How long a replica may take to answer a restarted controller before it is replaced."""

GIVE_BACK_TIMEOUT_S = 10.0
"""How long a replica may take to hand back what it did not finish before it left."""


class ReplicaSet:
    """Keeps as many replicas alive as are wanted.

    A replica that ends is replaced by one of another name. One that cannot start is tried again
    with a growing delay, for ever. Only the first ones, while none has ever been ready, are given
    up with their error after a few times, or at once when the engine refused; `scale` tries again.

    Args:
        config: What they run, and how many are wanted at first.
        controller: Whom the actors report to.
        owner: Who is told of the replicas.
        number: The controller's, larger than that of every earlier one.
    """

    def __init__(
        self, config: ClusterConfig, controller: Any, owner: ReplicaOwner, number: int
    ) -> None:
        self._config = config
        self._owner = owner
        self._actors = ReplicaActors(config, controller, number)
        self.members: list[Member] = []
        self._roster = Roster(first_count(config))
        self._incarnations: dict[int, int] = {}
        self._first_incarnation = 0
        self._patient = False
        self._lives: dict[Member, _Life] = {}
        self._dead_engines: set[str] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def count(self) -> int:
        """Replicas that there shall be; those that leave do not count."""
        return self._roster.wanted

    async def clear(self) -> None:
        """End the replicas that an earlier cluster left behind."""
        await _end_all()

    async def adopt(self) -> list[tuple[Member, Adoption]]:
        """Take over the replicas of a controller that died, with what each tells of itself.

        One that does not answer, or was still loading, is ended; `start` replaces it.
        """
        found = await asyncio.to_thread(replica_actors.find_replicas)
        if (roster := load_roster()) is not None:
            self._roster = roster
            self._first_incarnation = roster.incarnation + 1  # names of the dead are taken, too
            self._patient = True
        answers = await asyncio.gather(
            *(self._actors.adopt(handle, ADOPT_TIMEOUT_S) for handle in found.values())
        )
        adopted: dict[int, tuple[Member, Adoption]] = {}
        for name, adoption in zip(found, answers, strict=True):
            index, _ = name
            if adoption is None or index in adopted:
                logger.warning("%s is not adopted: it is replaced", replica_name(*name))
                self._do(replica_actors.kill(found[name]))
                continue
            member = Member(index, replica_name(*name), "ready", found[name], patient=True)
            member.place, member.info = adoption.place, adoption.info
            member.cores = adoption.cores
            adopted[index] = member, adoption
        self.members = [member for member, _ in adopted.values()]
        return list(adopted.values())

    def start(self) -> None:
        """Watch the adopted replicas and bring up what is missing."""
        for member in self.members:
            self._lives[member] = _Life(self._live(member))
        self.scale(self.count)
        self._patient = True

    def scale(self, count: int) -> None:
        """Have this many replicas; the last call wins.

        Further ones are brought up, and those that had failed are tried again. Of too many the
        emptiest leave: they get no more requests, finish what they have for as long as
        `replicas.drain_timeout_s`, hand the rest back, and end.
        """
        self._roster.wanted = count
        self._roster.save()
        staying = sorted(
            (m for m in self.members if m.state not in ("leaving", "left")), key=self._fullness
        )
        for member in staying[: max(0, len(staying) - count)]:
            self._dismiss(member)
        for member in staying[max(0, len(staying) - count) :]:
            if member.state == "failed":
                self._rename(member)
                self._lives[member] = _Life(self._live(member))
        taken = {member.index for member in self.members}
        free = (index for index in itertools.count() if index not in taken)
        for index in itertools.islice(free, max(0, count - len(staying))):
            member = Member(index, "", patient=self._patient)
            self._rename(member)
            self.members.append(member)
            self._lives[member] = _Life(self._live(member))
        self._changed.set()

    def kill(self, replica_id: str, ended: Ended = "frozen") -> None:
        """End a replica that still answers or never will, and replace it.

        Its owner loses it at once; nothing happens when it has ended already.
        """
        for member, life in self._lives.items():
            if member.replica_id == replica_id and not life.killed.done():
                life.killed.set_result(ended)

    def note_engine_died(self, replica_id: str) -> None:
        """Remember that a replica is about to end because its engine died."""
        self._dead_engines.add(replica_id)

    async def settled(self) -> None:
        """Wait until every replica is ready or given up, or is known to take longer and why."""
        while not all(_is_settled(member) for member in self.members):
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Shut all replicas down."""
        for task in [*(life.task for life in self._lives.values()), *self._chores]:
            task.cancel()
        live = [m.handle for m in self.members if m.handle is not None]
        await asyncio.gather(*(replica_actors.stop(handle) for handle in live))
        await _end_all()

    # The life of one replica.

    async def _live(self, member: Member) -> None:
        """From its first start until it leaves, through all its replacements."""
        life = self._lives[member]
        while member.state == "ready" or await self._bring_up(member):
            member.ended = await self._serve(member, life)
            self._set(member, "left" if life.leaves.is_set() else "lost")
            self._owner.replica_lost(member)
            if member.ended == "left":
                await replica_actors.stop(member.handle)
            else:
                logger.error("%s was lost (%s): %s", member.replica_id, member.ended, member.error)
                await replica_actors.kill(member.handle)
            if life.leaves.is_set():
                self._remove(member)
                return
            self._rename(member)

    async def _bring_up(self, member: Member) -> bool:
        """Start it until it is ready; False: it was given up."""
        for failures in itertools.count(1):
            try:
                await self._start(member)
                break
            except Exception as error:  # whatever a start can raise is the replica's state
                member.error = replica_actors.reason(error)
                logger.error("%s did not start: %s", member.replica_id, member.error)
                if member.handle is not None:
                    await replica_actors.kill(member.handle)
                if not member.patient and (failures >= MAX_FAILED_STARTS or not _may_pass(error)):
                    self._set(member, "failed")
                    return False
            await asyncio.sleep(_pause_s(failures))
            self._rename(member)
        member.error = ""
        member.patient = self._patient = True
        self._set(member, "ready")
        self._owner.replica_ready(member)
        return True

    async def _start(self, member: Member) -> None:
        self._set(member, "placing")
        member.handle = member.place = member.info = None
        member.cores, member.ended = [], ""
        member.handle = self._actors.create(member.replica_id)
        member.place = await self._place(member)
        self._set(member, "loading")
        member.cores = self._free_cores(member) if self._actors.pinned else []
        member.info = await self._actors.start(member.handle, member.cores)

    async def _place(self, member: Member) -> Place:
        while True:
            try:
                return await self._actors.place(member.handle)
            except PlacementError as error:
                if not member.patient:
                    raise
                # A node may join: until then Ray's autoscaler sees what is asked for.
                member.error = str(error)
                self._changed.set()

    async def _serve(self, member: Member, life: _Life) -> Ended:
        """Wait until the replica has left, has died, or is to be killed; which of them."""
        life.killed = asyncio.get_running_loop().create_future()
        died = asyncio.create_task(replica_actors.death(member.handle))
        left = asyncio.create_task(self._leave(member, life))
        try:
            ends: list[asyncio.Future[Any]] = [life.killed, died, left]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if life.killed.done():
                member.error = "it had work and made no progress"
                return life.killed.result()
            if died.done():
                member.error = died.result()
                return await self._cause(member)
            left.result()
            return "left"
        finally:
            life.killed.cancel()
            died.cancel()
            left.cancel()

    async def _leave(self, member: Member, life: _Life) -> None:
        """Return when it has been told to leave and runs nothing any more."""
        await life.leaves.wait()
        try:
            async with asyncio.timeout(self._config.replicas.drain_timeout_s):
                await self._owner.replica_drained(member)
        except TimeoutError:
            self._owner.replica_gives_back(member)
            try:
                async with asyncio.timeout(GIVE_BACK_TIMEOUT_S):
                    await self._owner.replica_drained(member)
            except TimeoutError:
                logger.warning("%s leaves and its requests start elsewhere", member.replica_id)

    async def _cause(self, member: Member) -> Ended:
        """How a replica died that nobody killed."""
        if member.replica_id in self._dead_engines:
            self._dead_engines.remove(member.replica_id)
            return "engine"
        assert member.place is not None
        return "node" if await replica_actors.node_died(member.place.node_id) else "process"

    def _dismiss(self, member: Member) -> None:
        """Have it leave; one that serves nobody ends at once."""
        life = self._lives[member]
        life.leaves.set()
        if member.state == "ready":
            self._set(member, "leaving")
            self._owner.replica_leaving(member)
        else:
            life.task.cancel()
            self._set(member, "left")
            self._do(self._discard(member))

    async def _discard(self, member: Member) -> None:
        if member.handle is not None:
            await replica_actors.kill(member.handle)
        self._remove(member)

    def _remove(self, member: Member) -> None:
        self.members.remove(member)
        del self._lives[member]
        self._changed.set()

    def _rename(self, member: Member) -> None:
        """Give it the name of its next actor."""
        incarnation = self._incarnations.get(member.index, self._first_incarnation)
        self._incarnations[member.index] = incarnation + 1
        member.replica_id = replica_name(member.index, incarnation)
        if incarnation > self._roster.incarnation:
            self._roster.incarnation = incarnation
            self._roster.save()

    def _fullness(self, member: Member) -> tuple[int, int, int]:
        """Who leaves first: who serves nobody, then who runs least, then the youngest."""
        steps = ["failed", "lost", "placing", "loading", "ready"]
        runs = self._owner.requests_on(member) if member.state == "ready" else 0
        return steps.index(member.state), runs, -member.index

    def _free_cores(self, member: Member) -> list[int]:
        """Cores of the member's node that no other replica is pinned to, while there are any."""
        assert member.place is not None
        taken = {
            core
            for other in self.members
            if other.place is not None and other.place.node_id == member.place.node_id
            for core in other.cores
        }
        free = [core for core in member.place.cores if core not in taken]
        if not free:
            logger.warning(
                "%s shares its cores with other replicas, because all %d of its node %s are taken: "
                "they slow each other down, and energy shared out by cores counts twice; give the "
                "node no more CPUs in Ray than it has (`ray start --num-cpus`)",
                member.replica_id,
                len(member.place.cores),
                member.place.node_id,
            )
        return (free or member.place.cores)[: self._config.replicas.cpus_per_replica]

    def _set(self, member: Member, state: State) -> None:
        member.state = state
        self._changed.set()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


class _Life:
    """The task that keeps one member alive, and what it is told."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.task = asyncio.create_task(work)
        self.task.add_done_callback(_log_failure)
        self.leaves = asyncio.Event()
        self.killed: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()


def first_count(config: ClusterConfig) -> int:
    """Replicas that a new cluster begins with."""
    count, scaling = config.replicas.count, config.autoscale
    return count if scaling.max is None else min(max(count, scaling.min), scaling.max)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a replica is not looked after any more", exc_info=task.exception())


async def _end_all() -> None:
    found = await asyncio.to_thread(replica_actors.find_replicas)
    await asyncio.gather(*(replica_actors.kill(handle) for handle in found.values()))
    forget_roster()


def _is_settled(member: Member) -> bool:
    in_trouble = member.patient and bool(member.error)
    return in_trouble or member.state in ("ready", "failed", "leaving", "left")


def _pause_s(failures: int) -> float:
    """Pause after so many failed starts in a row; they may be any number."""
    return min(2.0 ** min(failures, 10), MAX_PAUSE_S)


def _may_pass(error: BaseException) -> bool:
    """Whether the same start can succeed another time: the process died, rather than refused."""
    return isinstance(error, ray.exceptions.RayActorError)
