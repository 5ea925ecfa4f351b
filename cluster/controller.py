"""The controller actor: carries the scheduling core's decisions to replicas and clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import defaultdict
from typing import Any

import msgspec
import psutil
import ray

from cluster.config import ClusterConfig, parse_config
from cluster.forecasting import Forecasting
from cluster.journaled_scheduler import JournaledScheduler, open_journal
from cluster.ledger import Replica
from cluster.messages import (
    ClusterStatus,
    Dispatched,
    Orphaned,
    Refused,
    ReplicaStatus,
    Submission,
)
from cluster.rehearsal import rehearse
from cluster.replica_set import Member, ReplicaSet
from cluster.scheduler import ClusterScheduler, Dispatch, ImpossibleRequestError, Recall
from policies.request import Request
from replicas.outbox import Outbox
from replicas.protocol import EngineLoad, Finished, Generation, ReplicaReport

logger = logging.getLogger(__name__)

TICK_S = 0.001
"""Shortest time between two rounds of decisions: events of a burst are decided together."""

IDLE_TICK_S = 1.0
"""Decisions are also due without an event, because a guard band lapses with time."""

LONG_POLL_S = 10.0
"""How long a client's call waits for events before it is answered with none."""

CLIENT_LOST_S = 60.0
"""A client that has not asked for this long is gone, and its requests are cancelled."""

Event = Dispatched | Refused | Orphaned


class _Counters(msgspec.Struct):
    """Totals since the controller started."""

    finished: int = 0
    refused: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0


class Controller:
    """One per cluster. Whoever creates it makes it a Ray actor.

    All state is touched on the event loop only. What happened is told to the scheduling core; one
    task lets it decide, at most once a tick, and sends each peer one message with its share.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config: ClusterConfig = parse_config(config)
        self._journal = open_journal(self._config)
        core = ClusterScheduler(self._config.build_policy())
        self._scheduler = JournaledScheduler(core, self._journal) if self._journal else core
        self._submissions: dict[str, Submission] = {}
        self._outboxes: dict[str, Outbox[Event]] = {}
        self._handles: dict[str, Any] = {}
        self._reports: dict[str, ReplicaReport] = {}
        self._counters = _Counters()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._replicas: ReplicaSet | None = None
        self._forecasting = Forecasting(self._config, self._forecasts_arrived)

    async def start(self) -> None:
        """Bring up the predictor and the replicas; returns once they are being started."""
        me = ray.get_runtime_context().current_actor
        self._forecasting.start()
        self._replicas = ReplicaSet(self._config, me, self._replica_ready, self._replica_lost)
        self._replicas.start()
        # While the replicas load, what the core calls is compiled.
        await asyncio.to_thread(rehearse, self._config.build_policy())
        self._spawn(self._decide_forever())

    async def settled(self) -> ClusterStatus:
        """The status once every replica is ready or has failed."""
        assert self._replicas is not None, "start() comes first"
        await self._replicas.settled()
        return self.status()

    def config(self) -> dict[str, Any]:
        """The configuration this cluster was started with."""
        return self._config.model_dump(mode="json")

    # What clients call.

    async def submit(self, client_id: str, submissions: list[Submission]) -> None:
        """Queue generations; answers come as events (see `take`). Idempotent by request id."""
        now = time.monotonic()
        self._outbox(client_id)
        fresh: list[tuple[Submission, Request]] = []
        for submission in submissions:
            if self._is_new(submission):
                try:
                    fresh.append((submission, _request(submission, now)))
                except ValueError as error:
                    self._refuse(submission, error)
        forecasts = self._forecasting.prior([request for _, request in fresh])
        accepted = []
        for (submission, request), forecast in zip(fresh, forecasts, strict=True):
            generation = submission.generation
            try:
                self._scheduler.submit(request, forecast, now, attempt=generation.attempt)
            except ImpossibleRequestError as error:
                self._refuse(submission, error)
                continue
            self._submissions[generation.request_id] = submission
            accepted.append(request)
        self._forecasting.ask(accepted)
        self._wake.set()

    def _refuse(self, submission: Submission, error: ValueError) -> None:
        generation = submission.generation
        self._counters.refused += 1
        self._submissions.pop(generation.request_id, None)
        self._outbox(generation.client_id).put([Refused(generation.request_id, str(error))])

    async def cancel(self, client_id: str, request_ids: list[str]) -> None:
        """Forget requests, wherever they are."""
        now = time.monotonic()
        for request_id in request_ids:
            submission = self._submissions.get(request_id)
            if submission is not None and submission.generation.client_id == client_id:
                self._scheduler.cancel(request_id, now)
                del self._submissions[request_id]
        self._wake.set()

    async def take(self, client_id: str, received: int) -> tuple[int, list[Event]]:
        """Long poll: the next batch of a client's events (see `Outbox.take`)."""
        return await self._outbox(client_id).take(received, LONG_POLL_S)

    async def leave(self, client_id: str, abandoned: list[str]) -> None:
        """A client says goodbye; what it abandons is cancelled.

        The rest is finished as far as it knows, whether or not the replica's report is here yet.
        """
        self._outboxes.pop(client_id, None)
        await self.cancel(client_id, abandoned)

    # What replicas call.

    async def report(self, report: ReplicaReport) -> None:
        """A replica's counts and what ended there."""
        now = time.monotonic()
        self._reports[report.replica_id] = report
        self._scheduler.progressed(report.replica_id, report.progress, now)
        for ended in report.finished:
            submission = self._submissions.get(ended.request_id)
            if submission is None or not _is_of(ended, submission.generation):
                continue
            if not self._scheduler.finished(
                report.replica_id, ended.request_id, ended.output_tokens, now
            ):
                continue
            del self._submissions[ended.request_id]
            self._counters.finished += 1
            self._counters.preemptions += ended.preemptions
            self._counters.recomputed_tokens += ended.recomputed_tokens
            self._forecasting.observe(submission, ended)
        self._wake.set()

    # What people ask.

    def status(self) -> ClusterStatus:
        """What the controller knows now."""
        members = self._replicas.members if self._replicas is not None else []
        return ClusterStatus(
            policy=self._scheduler.policy.name,
            model=self._config.model,
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            finished=self._counters.finished,
            refused=self._counters.refused,
            preemptions=self._counters.preemptions,
            recomputed_tokens=self._counters.recomputed_tokens,
            clients=len(self._outboxes),
            replicas=[self._replica_status(member) for member in members],
            predictor=self._forecasting.state,
            journal=self._journal.state if self._journal else "",
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
        await self._forecasting.stop()
        if self._journal is not None:
            self._journal.close()

    # Decisions.

    async def _decide_forever(self) -> None:
        try:
            await self._decide_each_tick()
        except Exception:
            # Without decisions everybody would wait for ever; a dead controller is noticed.
            logger.exception("the scheduling core failed, so this process ends")
            os._exit(1)

    async def _decide_each_tick(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            self._drop_lost_clients()
            self._carry_out(self._scheduler.decide(time.monotonic()))
            await asyncio.sleep(TICK_S)

    def _carry_out(self, actions: list[Dispatch | Recall]) -> None:
        aborts: dict[str, list[str]] = defaultdict(list)
        starts: dict[str, list[Generation]] = defaultdict(list)
        events: dict[str, list[Event]] = defaultdict(list)
        for action in actions:
            if isinstance(action, Recall):
                aborts[action.replica_id].append(action.request_id)
                continue
            generation = self._submissions[action.request.request_id].generation
            starts[action.replica_id].append(_ranked(generation, action))
            events[generation.client_id].append(_dispatched(action))
        for replica_id in {*aborts, *starts}:
            self._spawn(self._act(replica_id, aborts[replica_id], starts[replica_id]))
        for client_id, batch in events.items():
            self._outbox(client_id).put(batch)

    async def _act(self, replica_id: str, aborts: list[str], starts: list[Generation]) -> None:
        handle = self._handles.get(replica_id)
        if handle is None:
            return
        # A replica that dies on this call is noticed by the replica set, which tells everybody.
        with contextlib.suppress(ray.exceptions.RayError):
            await handle.act.remote(aborts, starts)

    def _forecasts_arrived(self, forecasts: dict[str, Any]) -> None:
        now = time.monotonic()
        for request_id, forecast in forecasts.items():
            self._scheduler.forecast(request_id, forecast, now)
        self._wake.set()

    # Replicas and clients come and go.

    def _replica_ready(self, member: Member) -> None:
        assert member.info is not None
        info = member.info
        replica = Replica(
            replica_id=member.replica_id,
            kv_blocks=info.kv_blocks,
            block_size=info.block_size,
            slots=info.max_num_seqs + self._config.replicas.look_ahead,
            max_model_len=info.max_model_len,
        )
        self._handles[member.replica_id] = member.handle
        self._scheduler.replica_joined(replica, time.monotonic())
        self._wake.set()

    def _replica_lost(self, member: Member) -> None:
        self._reports.pop(member.replica_id, None)
        del self._handles[member.replica_id]
        orphans = self._scheduler.replica_lost(member.replica_id, time.monotonic())
        by_client: dict[str, list[str]] = defaultdict(list)
        for request_id in orphans:
            submission = self._submissions.pop(request_id)
            by_client[submission.generation.client_id].append(request_id)
        for client_id, request_ids in by_client.items():
            self._outbox(client_id).put([Orphaned(member.replica_id, request_ids)])
        self._wake.set()

    def _drop_lost_clients(self) -> None:
        lost = [c for c, outbox in self._outboxes.items() if outbox.idle_s() > CLIENT_LOST_S]
        for client_id in lost:
            logger.warning("client %s is gone: cancelling its requests", client_id)
            mine = [i for i, s in self._submissions.items() if s.generation.client_id == client_id]
            self._spawn(self.leave(client_id, mine))

    def _is_new(self, submission: Submission) -> bool:
        """Whether it is not the repetition of one that waits or runs.

        Another client with the same id takes the request over: the one that asked first was killed,
        and its successor starts from the beginning.
        """
        generation = submission.generation
        known = self._submissions.get(generation.request_id)
        if known is not None and known.generation.client_id != generation.client_id:
            self._scheduler.cancel(generation.request_id, time.monotonic())
            return True
        return known is None or known.generation.attempt < generation.attempt

    def _replica_status(self, member: Member) -> ReplicaStatus:
        replica_id = member.replica_id
        ledger = self._scheduler.fleet.get(replica_id)
        report = self._reports.get(replica_id)
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
            total_joules=report.total_joules if report else None,
            energy_source=report.energy_source if report else "",
            error=member.error,
        )

    def _outbox(self, client_id: str) -> Outbox[Event]:
        return self._outboxes.setdefault(client_id, Outbox())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_of(ended: Finished, generation: Generation) -> bool:
    """Whether it is the end of this dispatch, not of an earlier one."""
    return (ended.client_id, ended.attempt) == (generation.client_id, generation.attempt)


def _request(submission: Submission, now: float) -> Request:
    generation = submission.generation
    return Request(
        request_id=generation.request_id,
        prompt_tokens=submission.prompt_tokens,
        max_tokens=submission.max_tokens,
        arrival_s=now,
        request_class=submission.request_class,
        tenant=submission.tenant,
        generated_tokens=generation.generated_tokens,
    )


def _ranked(generation: Generation, dispatch: Dispatch) -> Generation:
    """The generation with its place in the order as vLLM's integer priority.

    Microseconds, or millionths of the log score; when memory runs out the engine preempts the last.
    """
    rank = int(dispatch.key * 1e6) + (int(dispatch.request.request_class) << 52)
    return msgspec.structs.replace(generation, priority=rank)


def _dispatched(dispatch: Dispatch) -> Dispatched:
    return Dispatched(
        request_id=dispatch.request.request_id,
        attempt=dispatch.attempt,
        replica_id=dispatch.replica_id,
        queued_s=dispatch.queued_s,
        forecast=dispatch.forecast,
    )
