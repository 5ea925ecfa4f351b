"""What the controller does as time passes, whether or not anything happens."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from cluster.control.controller_state import ControllerState
from cluster.control.fault_store import save_faults
from cluster.control.intake import Intake, NotServedError
from cluster.control.pacing import Pacing
from cluster.control.replica_desk import ReplicaDesk
from cluster.membership.autoscaler import busy_replicas
from cluster.membership.fleet_watch import FleetWatch
from cluster.membership.replica_set import ReplicaSet
from cluster.messages import ClusterLoad
from cluster.statistics.faults import Fault
from policies.request import RequestClass

logger = logging.getLogger(__name__)

LOAD_INTERVAL_S = 0.2
"""How often clients that follow the load are told of it."""

INTERVAL_S = 1.0
"""How often the rest is looked at; a quarter of the client timeout if that is less."""


class Upkeep:
    """Lost clients, frozen replicas, their number, requests that wait in vain, power, the load.

    Args:
        state: The controller's.
        intake: Refuses and cancels.
        desk: Knows which replicas serve.
        watch: Knows which of them make progress.
        replicas: Kills and starts them.
    """

    def __init__(
        self,
        state: ControllerState,
        intake: Intake,
        desk: ReplicaDesk,
        watch: FleetWatch,
        replicas: ReplicaSet,
    ) -> None:
        self._state = state
        self._intake = intake
        self._desk = desk
        self._watch = watch
        self._replicas = replicas
        self._served_s = time.monotonic()
        self._pacing = Pacing(state)
        self._pacing.look(self._served_s)

    async def forever(self) -> None:
        """Look after everything but the load."""
        while True:
            await asyncio.sleep(min(INTERVAL_S, self._state.config.client_timeout_s / 4))
            try:
                self._look(time.monotonic())
                save_faults(self._state.faults)
            except Exception:
                logger.exception("the controller's upkeep failed")

    def _look(self, now: float) -> None:
        self._state.statistics.sweep(now)
        for client_id in self._state.clients.take_out_lost():
            attempts = self._state.open.attempts_of(client_id)
            logger.warning("client %s is gone: cancelling %d requests", client_id, len(attempts))
            self._intake.cancel(client_id, attempts)
            if attempts:
                self._state.faults.count(Fault.CLIENT_LOST)
                self._state.clients.gave_up(client_id, attempts)
        for replica_id in self._watch.frozen(now):
            logger.error("%s has work and makes no progress: killing it", replica_id)
            # Its end is told in a later round of the event loop, and a decision may come before.
            self._desk.quarantine(replica_id)
            self._replicas.kill(replica_id, ended="frozen")
        self._refuse_what_waits_in_vain(now)
        self._pacing.look(now)
        if self._watch.scales:
            queued = sum(self._state.scheduler.queue(c).tokens for c in RequestClass)
            count, busy = self._replicas.count, busy_replicas(self._state.scheduler.fleet)
            wanted = self._watch.wanted(now, current=count, queued_tokens=queued, busy=busy)
            if wanted != count:
                logger.info("%d replicas instead of %d", wanted, count)
                self._replicas.scale(wanted)

    def _refuse_what_waits_in_vain(self, now: float) -> None:
        """Online requests wait for the replacement of lost replicas, but not for ever."""
        limit_s = self._state.config.queue.replacement_s
        if self._desk.serving:
            self._served_s = now
        elif now - self._served_s >= limit_s:
            error = NotServedError(
                f"no replica has been ready for {limit_s:.0f} s (queue.replacement_s): "
                "`tiebreak status` says why"
            )
            overdue = self._state.open.since_before(now - limit_s, RequestClass.ONLINE)
            for submission in list(overdue):
                self._intake.refuse(submission, error)

    async def tell_load_forever(self) -> None:
        """Tell the load to those that follow it."""
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            try:
                if self._state.clients.follow_load:
                    self._state.clients.tell_load(self._load())
            except Exception:
                logger.exception("the load was not told")

    def _load(self) -> ClusterLoad:
        online = self._state.scheduler.queue(RequestClass.ONLINE)
        states = [member.state for member in self._replicas.members]
        coming = sum(state in ("placing", "loading", "lost") for state in states)
        return ClusterLoad(
            waiting=online.requests,
            waiting_tokens=online.tokens,
            most_waiting=self._state.config.queue.online_requests,
            most_waiting_tokens=self._state.config.queue.online_tokens,
            most_waiting_offline=self._state.config.queue.offline_requests,
            retry_after_s=math.ceil(online.retry_after_s),
            serving=self._desk.serving,
            coming=coming + int(self._watch.scales),
            largest_request=self._state.scheduler.fleet.largest_request,
        )
