"""What the controller knows of its replicas, and what they and their set tell it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from cluster.asking import ask
from cluster.call import must_restart
from cluster.control.controller_state import ControllerState
from cluster.control.intake import request_of
from cluster.control.orders import Orders
from cluster.control.tickets import submission_of
from cluster.core.suspects import ENGINE_DIED, FROZEN, NODE_LOST, VANISHED
from cluster.membership.fleet_watch import FleetWatch
from cluster.membership.member import Member
from cluster.messages import Orphaned, ReplicaStatus, Submission
from cluster.statistics.faults import Fault
from policies.ledger import Replica
from replicas.protocol import EnergyTotals, EngineLoad, Finished, Held, ReplicaReport, Stalled

logger = logging.getLogger(__name__)

DRAIN_LOOK_S = 0.05

BLAME = {"engine": ENGINE_DIED, "frozen": FROZEN, "process": VANISHED, "node": NODE_LOST}
"""How far the requests of a replica are suspected of its end, by `Member.ended`."""

FAULTS = {
    "engine": Fault.REPLICA_ENGINE_DIED,
    "frozen": Fault.REPLICA_FROZEN,
    "process": Fault.REPLICA_PROCESS_DIED,
    "node": Fault.REPLICA_NODE_LOST,
}
"""As what its end is counted; one that leaves is none."""


class ReplicaDesk:
    """Implements `ReplicaOwner`: replicas come, report, are told what to do, and go.

    Args:
        state: The controller's.
        watch: Told what the reports say.
    """

    def __init__(self, state: ControllerState, watch: FleetWatch) -> None:
        self._state = state
        self._watch = watch
        self._handles: dict[str, Any] = {}
        self._reports: dict[str, ReplicaReport] = {}
        self._heard_s: dict[str, float] = {}
        self._to_replace: set[int] = set()
        self._orders = itertools.count(1)

    @property
    def serving(self) -> int:
        """Replicas that are ready."""
        return len(self._handles)

    async def act(self, replica_id: str, orders: Orders) -> None:
        """Send a replica its orders."""
        handle = self._handles.get(replica_id)
        if handle is None:
            return
        order = next(self._orders)
        try:
            await ask(
                handle.act,
                self._state.number,
                order,
                orders.aborts,
                orders.recalls,
                orders.starts,
            )
        except ray.exceptions.RayActorError:
            pass  # the replica set notices, too, and tells everybody
        except Exception:
            logger.exception("%s refused its orders", replica_id)

    def report(self, report: ReplicaReport) -> None:
        """A replica's counts, what waits in its engine and what ended there."""
        now = time.monotonic()
        replica_id = report.replica_id
        earlier = self._reports.get(replica_id)
        lives = replica_id in self._handles
        if lives:
            self._reports[replica_id] = report
            self._heard_s[replica_id] = now
            self._state.energy.reported(replica_id, report.energy)
        self._state.scheduler.progressed(replica_id, report.progress, now)
        for ended in report.finished:
            self._state.statistics.attempt_ended(replica_id, ended, report.energy.source, now)
            self._ended(replica_id, ended, now)
        if report.stalled or (earlier and earlier.stalled):
            self._state.scheduler.stalled(replica_id, self._movable(report.stalled), now)
            self._state.statistics.stalled(replica_id, report.stalled, now)
        if lives:
            scheduler = self._state.scheduler
            self._watch.reported(
                report,
                scheduler.works(replica_id),
                now,
                made_tokens=scheduler.made[replica_id],
            )
        self._state.wake.set()

    def _ended(self, replica_id: str, ended: Finished, now: float) -> None:
        self._state.counters.preemptions += ended.preemptions
        self._state.counters.recomputed_tokens += ended.recomputed_tokens
        submission = self._state.open.get(ended.request_id)
        if submission is None or not _is_of(ended, submission):
            return
        handed_back = self._state.scheduler.state(ended.request_id) == "recalled"
        if handed_back and ended.finish_reason == "abort":
            return  # it goes on as its client's next attempt
        if not self._state.scheduler.finished(
            replica_id, ended.request_id, ended.output_tokens, now
        ):
            return
        self._state.open.discard(ended.request_id)
        self._state.counters.finished += 1
        self._state.statistics.ended(replica_id, ended, submission, now)
        self._state.forecasting.observe(submission, ended)

    def _movable(self, stalled: Mapping[str, Stalled]) -> dict[str, int]:
        """Output tokens of those that can go on elsewhere from the tokens that they have.

        One that would have to start again is left out whether or not it has tokens: by the time it
        is recalled it might.
        """
        return {
            request_id: state.tokens
            for request_id, state in stalled.items()
            if (submission := self._state.open.get(request_id))
            and not must_restart(submission.generation.sampling)
        }

    def replica_ready(self, member: Member) -> None:
        """A replica can be sent requests."""
        assert member.info is not None
        info, config = member.info, self._state.config
        replicas = config.replicas
        replica = Replica(
            replica_id=member.replica_id,
            kv_blocks=info.kv_blocks,
            block_size=info.block_size,
            slots=info.max_num_seqs + replicas.slots_ahead,
            max_model_len=info.max_model_len,
            look_ahead=replicas.memory_ahead,
            gives_way=replicas.scheduler == "projected" and config.policy.give_way,
        )
        self._handles[member.replica_id] = member.handle
        if member.index in self._to_replace:
            self._to_replace.discard(member.index)
            self._state.faults.count(Fault.REPLICA_REPLACED)
        self._state.scheduler.replica_joined(replica, time.monotonic())
        self._state.wake.set()

    async def take_over(self, member: Member, held: Sequence[Held], energy: EnergyTotals) -> None:
        """Enter what a replica runs that an earlier controller had sent there, and its books."""
        now = time.monotonic()
        self._state.energy.reported(member.replica_id, energy)
        unwanted = Orders()
        for request in held:
            submission = submission_of(request.ticket)
            generation = submission.generation
            assert generation.terms is not None, "a ticket is of a dispatch"
            terms = generation.terms
            is_wanted = self._state.scheduler.adopt(
                request_of(submission, now),
                terms.forecast,
                now,
                replica_id=member.replica_id,
                attempt=generation.attempt,
                key=terms.key,
                tokens=request.output_tokens,
                strikes=submission.strikes,
            )
            if is_wanted:
                self._state.clients.meet(generation.client_id)
                self._state.open.add(submission, now)
                self._state.statistics.adopted(submission, member.replica_id, now, time.time())
                self._watch.dispatched(member.replica_id, now)
            else:
                unwanted.aborts.append(generation.request_id)
        if unwanted.aborts:
            await self.act(member.replica_id, unwanted)

    def replica_lost(self, member: Member) -> None:
        """A replica is gone; its clients submit again what ran there."""
        replica_id = member.replica_id
        self._reports.pop(replica_id, None)
        self._heard_s.pop(replica_id, None)
        self._state.energy.lost(replica_id)
        self._handles.pop(replica_id, None)
        self._watch.forget(replica_id)
        blame = BLAME.get(member.ended, 0.0)
        orphans = self._state.scheduler.replica_lost(replica_id, time.monotonic(), blame=blame)
        if (fault := FAULTS.get(member.ended)) is not None:
            self._state.faults.count(fault)
            self._to_replace.add(member.index)
        by_client: dict[str, dict[str, int]] = defaultdict(dict)
        for request_id in orphans:
            submission = self._state.open.orphan(request_id)
            assert submission is not None, "what runs is open"
            if orphans[request_id] > submission.strikes:
                self._state.faults.count(Fault.REQUEST_SUSPECTED)
            self._state.forecasting.forget(request_id)
            self._state.statistics.lost(request_id, replica_id, time.monotonic())
            generation = submission.generation
            by_client[generation.client_id][request_id] = generation.attempt
        for client_id, attempts in by_client.items():
            strikes = {i: orphans[i] for i in attempts if orphans[i]}
            self._state.clients.tell(client_id, [Orphaned(replica_id, attempts, strikes)])
        self._state.wake.set()

    def quarantine(self, replica_id: str) -> None:
        """A replica is given up and about to be killed: it gets nothing more, and is not judged."""
        self._watch.forget(replica_id)
        self._state.scheduler.replica_draining(replica_id, time.monotonic())
        self._state.wake.set()

    def replica_leaving(self, member: Member) -> None:
        """A replica takes no more requests."""
        self._state.scheduler.replica_draining(member.replica_id, time.monotonic())
        self._state.wake.set()

    def replica_gives_back(self, member: Member) -> None:
        """What still runs on a replica that leaves goes on elsewhere."""
        self._state.scheduler.give_back(member.replica_id, time.monotonic())
        self._state.wake.set()

    def requests_on(self, member: Member) -> int:
        """Requests that run on a replica."""
        return self._state.scheduler.runs_on(member.replica_id)

    async def replica_drained(self, member: Member) -> None:
        """Wait until nothing runs on a replica any more."""
        while self._state.scheduler.runs_on(member.replica_id):
            await asyncio.sleep(DRAIN_LOOK_S)

    def report_age_s(self, replica_id: str, now: float) -> float | None:
        """Age of a replica's last report in seconds; None: it has not reported."""
        heard_s = self._heard_s.get(replica_id)
        return None if heard_s is None else max(now - heard_s, 0.0)

    def status(self, member: Member) -> ReplicaStatus:
        """What is known of a replica now."""
        replica_id = member.replica_id
        ledger = self._state.scheduler.fleet.get(replica_id)
        report = self._reports.get(replica_id)
        energy = report.energy if report else EnergyTotals()
        info = member.info
        return ReplicaStatus(
            replica_id=replica_id,
            state=member.state,
            node=member.place.host if member.place else "",
            cores=member.cores,
            gpus=member.place.gpus if member.place else [],
            engine=info.kind if info else "",
            kv_blocks=info.kv_blocks if info else 0,
            block_size=info.block_size if info else 0,
            slots=info.max_num_seqs if info else 0,
            running=len(ledger) if ledger else 0,
            used_blocks=ledger.used_blocks if ledger else 0,
            projected_peak_blocks=ledger.profile.peak if ledger else 0,
            engine_load=report.load if report else EngineLoad(),
            energy=energy,
            error=member.error,
        )


def _is_of(ended: Finished, submission: Submission) -> bool:
    """Whether it is the end of this dispatch, not of an earlier one."""
    generation = submission.generation
    return (ended.client_id, ended.attempt) == (generation.client_id, generation.attempt)
