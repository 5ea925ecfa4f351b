"""The controller actor: carries the scheduling core's decisions to replicas and clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.config import ClusterConfig, parse_config
from cluster.control.clients import Clients, Event
from cluster.control.controller_state import ControllerState
from cluster.control.explanations import RequestExplainer
from cluster.control.fault_store import forget_faults, load_faults, save_faults
from cluster.control.intake import Intake
from cluster.control.open_requests import OpenRequests
from cluster.control.orders import Orders
from cluster.control.rehearsal import rehearse
from cluster.control.replica_desk import ReplicaDesk
from cluster.control.snapshots import SnapshotTaker
from cluster.control.upkeep import Upkeep
from cluster.core.queue_limits import QueueLimits
from cluster.forecasting import Forecasting
from cluster.journaled_scheduler import JournaledScheduler, open_journal
from cluster.membership.fleet_watch import FleetWatch
from cluster.membership.replica_set import ReplicaSet
from cluster.messages import ClusterStatus, Dispatched, Submission
from cluster.scheduler import ClusterScheduler, Dispatch, Recall
from cluster.snapshot import ClusterSnapshot, Explanation
from cluster.statistics.faults import Fault
from cluster.statistics.row_files import RowFiles
from cluster.statistics.statistics import Statistics
from cluster.telemetry.telemetry import Telemetry
from policies.forecast import Forecast
from replicas.process_heap import freeze_heap
from replicas.protocol import ReplicaReport

logger = logging.getLogger(__name__)

TICK_S = 0.001
"""Shortest time between two rounds of decisions: events of a burst are decided together."""

IDLE_TICK_S = 1.0
"""Decisions are also due without an event, because a guard band lapses with time."""

CANCEL_BATCH = 1024
"""Requests that are cancelled before others are heard."""

RESTART_PAUSE_S = 1.0
"""Pause before a restarted controller that failed to start ends, to be restarted again."""


class Controller:
    """One per cluster. Whoever creates it makes it a Ray actor.

    All state is touched on the event loop only. What happened is told to the scheduling core; one
    task lets it decide, at most once a tick, and sends each peer one message with its share.

    Ray starts it again when its process dies. It then asks the replicas, which go on meanwhile,
    what they run; clients notice by its number and submit what they have outstanding. Whatever is
    called first begins this (`start`), and the rest waits for its end.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config: ClusterConfig = parse_config(config)
        self._journal = open_journal(self._config)
        open_requests = OpenRequests()
        self._state = ControllerState(
            config=self._config,
            number=time.time_ns(),
            scheduler=self._scheduler(),
            open=open_requests,
            clients=Clients(self._config.client_timeout_s),
            statistics=self._statistics(),
            forecasting=Forecasting(
                self._config,
                self._forecasts_arrived,
                open_requests.__contains__,
                lambda: self._state.faults.count(Fault.PREDICTOR_RESTARTED),
            ),
        )
        self._row_files = self._open_row_files()
        self._telemetry = Telemetry(self._config)
        self._state.statistics.on_row.append(self._telemetry.ended)
        self._watch = FleetWatch(self._config)
        self._intake = Intake(self._state)
        self._desk = ReplicaDesk(self._state, self._watch)
        self._snapshots = SnapshotTaker(self._state, self._desk, self._status)
        self._explainer = RequestExplainer(self._state)
        self._replicas: ReplicaSet | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _scheduler(self) -> ClusterScheduler | JournaledScheduler:
        core = ClusterScheduler(
            self._config.build_policy(),
            limits=QueueLimits(**self._config.queue.model_dump(exclude={"replacement_s"})),
            fair_share=self._config.policy.fair_share,
        )
        return JournaledScheduler(core, self._journal) if self._journal else core

    def _statistics(self) -> Statistics:
        options = self._config.statistics
        return Statistics(
            self._config.build_policy().name,
            rows_kept=options.kept,
            tenants=options.tenants,
            away_s=self._config.client_timeout_s,
        )

    def _open_row_files(self) -> RowFiles | None:
        if self._config.statistics.rows is None:
            return None
        state = self._state
        files = RowFiles(
            Path(self._config.statistics.rows),
            state.number,
            lambda rows: state.faults.count(Fault.ROWS_DROPPED, rows),
        )
        state.statistics.on_row.append(files.add)
        return files

    async def start(self) -> None:
        """Bring up the predictor and the replicas; returns once they are being started."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        if not self._starting.done():
            await asyncio.shield(self._starting)
        self._starting.result()

    async def _start(self) -> None:
        context = ray.get_runtime_context()
        try:
            await self._bring_up(context.current_actor, context.was_current_actor_reconstructed)
        except Exception:
            if not context.was_current_actor_reconstructed:
                raise
            # Nobody is there to whom it could be told; another try may succeed.
            logger.exception("the restarted controller failed, so this process ends")
            await asyncio.sleep(RESTART_PAUSE_S)
            os._exit(1)

    async def _bring_up(self, me: Any, is_restarted: bool) -> None:
        self._replicas = replicas = ReplicaSet(self._config, me, self._desk, self._state.number)
        # While the replicas load or tell what they run, what the core calls is compiled.
        compiled = asyncio.create_task(asyncio.to_thread(rehearse, self._config.build_policy()))
        if is_restarted:
            logger.warning("the controller was restarted: asking the replicas what they run")
            load_faults(self._state.faults)
            self._state.faults.count(Fault.CONTROLLER_RESTARTED)
            save_faults(self._state.faults)
            for member, adoption in await replicas.adopt():
                self._desk.replica_ready(member)
                await self._desk.take_over(member, adoption.held, adoption.energy)
        else:
            forget_faults()
            await replicas.clear()
        replicas.start()
        self._state.forecasting.start()
        await compiled
        freeze_heap()
        upkeep = Upkeep(self._state, self._intake, self._desk, self._watch, replicas)
        self._spawn(self._snapshots.record_forever())
        self._spawn(
            self._telemetry.forever(
                self._snapshots.take,
                faults=self._state.faults.inherited,
                is_restarted=is_restarted,
            )
        )
        for work in (self._decide_forever(), upkeep.forever(), upkeep.tell_load_forever()):
            self._spawn(work)
        if self._row_files is not None:
            self._spawn(self._row_files.forever())

    async def settled(self) -> ClusterStatus:
        """The status once every replica and every predictor is ready or has failed."""
        await self.start()
        assert self._replicas is not None
        await self._replicas.settled()
        await self._state.forecasting.settled()
        return await self.status()

    def config(self) -> dict[str, Any]:
        """The configuration this cluster was started with."""
        return self._config.model_dump(mode="json")

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    async def watch(self) -> None:
        """Never returns: whoever awaits it learns when this process ends."""
        await self.start()
        await asyncio.Event().wait()

    # What clients call.

    async def submit(self, client_id: str, submissions: list[Submission]) -> int:
        """Queue generations; answers come as events (see `take`). Idempotent by request id.

        Returns:
            This controller's number.
        """
        await self.start()
        self._intake.submit(client_id, submissions)
        return self._state.number

    async def cancel(self, client_id: str, request_ids: list[str]) -> None:
        """Forget requests, wherever they are."""
        await self.start()
        await self._cancel(client_id, request_ids)

    async def take(
        self, client_id: str, received: int, number: int, follows_load: bool = False
    ) -> tuple[int, list[Event], int]:
        """Long poll: the next batch of a client's events.

        Answered at once when the client does not know this controller yet, so that it submits what
        has to go on.

        Args:
            client_id: Whose.
            received: Number of the last batch that it received (see `Outbox.take`).
            number: The controller's from which it was; 0: it has heard of none.
            follows_load: Whether the client wants to be told the load.

        Returns:
            The batch's number, its events, and this controller's number.
        """
        await self.start()
        if number != self._state.number:
            self._state.clients.meet(client_id)
            return 0, [], self._state.number
        batch, events = await self._state.clients.take(
            client_id, received, follows_load=follows_load
        )
        return batch, events, self._state.number

    async def leave(self, client_id: str, abandoned: list[str]) -> None:
        """A client says goodbye; what it abandons is cancelled.

        The rest is finished as far as it knows, whether or not the replica's report is here yet.
        """
        await self.start()
        self._state.clients.leave(client_id)
        await self._cancel(client_id, abandoned)

    async def _cancel(self, client_id: str, request_ids: list[str]) -> None:
        """Cancel, and hear others in between: it may be a million."""
        for start in range(0, len(request_ids), CANCEL_BATCH):
            self._intake.cancel(client_id, request_ids[start : start + CANCEL_BATCH])
            await asyncio.sleep(0)

    # What replicas call.

    async def report(self, report: ReplicaReport) -> None:
        """A replica's counts, what waits in its engine and what ended there."""
        await self.start()
        self._desk.report(report)

    async def engine_died(self, replica_id: str) -> None:
        """A replica's engine died, and its process is about to end."""
        await self.start()
        assert self._replicas is not None
        self._replicas.note_engine_died(replica_id)

    # What people ask.

    async def scale(self, count: int) -> None:
        """Have so many replicas from now on; those that leave finish their requests first.

        Raises:
            ValueError: The number is negative, or follows the work by configuration.
        """
        await self.start()
        assert self._replicas is not None
        if count < 0:
            raise ValueError(f"count is {count}, must be at least 0")
        if self._watch.scales:
            raise ValueError(
                f"the number of replicas follows the work, between autoscale.min "
                f"{self._config.autoscale.min} and autoscale.max {self._config.autoscale.max}: "
                "set autoscale.max to null to give it yourself"
            )
        self._replicas.scale(count)
        self._state.wake.set()

    async def status(self) -> ClusterStatus:
        """What the controller knows now; its totals are since its process started."""
        await self.start()
        return self._status()

    async def snapshot(self) -> ClusterSnapshot:
        """What dashboards show; at most a second old."""
        await self.start()
        return self._snapshots.take(time.monotonic())

    async def explain(self, request_id: str, tenant: str | None = None) -> Explanation | None:
        """Everything that is known of a request (see `RequestExplainer.explain`).

        Returns:
            None when nobody knows it: it never came, or ended long ago.
        """
        await self.start()
        return self._explainer.explain(request_id, time.monotonic(), tenant)

    def _status(self) -> ClusterStatus:
        state, counters = self._state, self._state.counters
        members = self._replicas.members if self._replicas is not None else []
        return ClusterStatus(
            policy=state.scheduler.policy.name,
            model=self._config.model,
            waiting=state.scheduler.waiting,
            running=state.scheduler.running,
            finished=counters.finished,
            refused=counters.refused,
            preemptions=counters.preemptions,
            recomputed_tokens=counters.recomputed_tokens,
            clients=len(state.clients),
            replicas=[self._desk.status(member) for member in members],
            predictor=state.forecasting.state,
            journal=self._journal.state if self._journal else "",
            predictors=state.forecasting.stats,
            recalls=counters.recalls,
            dispatched=counters.dispatched,
            rows=self._row_files.state if self._row_files else "",
        )

    def memory_bytes(self) -> int:
        """Resident memory of this process."""
        resident: int = psutil.Process().memory_info().rss
        return resident

    async def shutdown(self) -> None:
        """Stop replicas and predictor; the caller then ends this actor."""
        for task in self._tasks:
            task.cancel()
        if self._replicas is not None:
            await self._replicas.stop()
            forget_faults()
        await self._state.forecasting.stop()
        if self._row_files is not None:
            self._state.statistics.sweep(math.inf)
            await self._row_files.write(time.monotonic())
        if self._journal is not None:
            self._journal.close()
        await self._telemetry.close()

    # Decisions.

    async def _decide_forever(self) -> None:
        try:
            await self._decide_each_tick()
        except Exception:
            # Without decisions everybody would wait for ever; a dead controller is noticed.
            logger.exception("the scheduling core failed, so this process ends")
            os._exit(1)

    async def _decide_each_tick(self) -> None:
        wake = self._state.wake
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK_S):
                    await wake.wait()
            wake.clear()
            self._carry_out(self._state.scheduler.decide(time.monotonic()))
            await asyncio.sleep(TICK_S)

    def _carry_out(self, actions: list[Dispatch | Recall]) -> None:
        state = self._state
        orders: dict[str, Orders] = defaultdict(Orders)
        events: dict[str, list[Event]] = defaultdict(list)
        now = time.monotonic()
        for action in actions:
            if isinstance(action, Recall):
                self._recall(action, orders[action.replica_id])
                continue
            submission = state.open[action.request.request_id]
            orders[action.replica_id].start(submission, action, self._telemetry.trace(submission))
            events[submission.generation.client_id].append(_dispatched(action))
            state.forecasting.dispatched(action.request.request_id)
            state.statistics.dispatched(action, now)
            state.counters.dispatched += 1
        for replica_id, order in orders.items():
            self._spawn(self._desk.act(replica_id, order))
            if order.starts:
                self._watch.dispatched(replica_id, now)
        for client_id, batch in events.items():
            state.clients.tell(client_id, batch)

    def _recall(self, recall: Recall, orders: Orders) -> None:
        if not recall.hand_back:
            orders.aborts.append(recall.request_id)
            return
        self._state.counters.recalls += 1
        generation = self._state.open[recall.request_id].generation
        self._state.statistics.recalled(
            recall.request_id, recall.replica_id, recall.to, time.monotonic()
        )
        orders.recalls[recall.request_id] = generation.attempt

    def _forecasts_arrived(self, forecasts: dict[str, Forecast]) -> None:
        now = time.monotonic()
        for request_id, forecast in forecasts.items():
            self._state.scheduler.forecast(request_id, forecast, now)
            self._state.statistics.forecast_arrived(request_id, forecast, now)
        self._state.wake.set()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the controller failed", exc_info=error)


def _dispatched(dispatch: Dispatch) -> Dispatched:
    return Dispatched(
        request_id=dispatch.request.request_id,
        attempt=dispatch.attempt,
        replica_id=dispatch.replica_id,
        queued_s=dispatch.queued_s,
        forecast=dispatch.forecast,
    )
