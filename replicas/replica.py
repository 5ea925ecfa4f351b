"""The replica actor: one engine, what its clients get and what the controller is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray

from replicas import undertaker
from replicas.deliveries import Deliveries
from replicas.delivery_pace import DeliveryPace
from replicas.detect_meter import meter_of
from replicas.energy import EnergyMeter
from replicas.engines import EngineSpec, make_engine
from replicas.metering import Metering
from replicas.process_heap import freeze_heap
from replicas.protocol import (
    Delta,
    EnergyTotals,
    Engine,
    EngineDeadError,
    EngineInfo,
    Generation,
    Held,
    PromptSlice,
)
from replicas.reports import Reports
from replicas.running_attempt import RunningAttempt
from replicas.supervision import supervise

logger = logging.getLogger(__name__)

STALLS_APART_S = 0.05
"""Least time between two reports of who waits inside the engine."""

IDLE_LOOK_S = 1.0
"""How often a replica without requests looks whether its engine still lives: else the next request
would find out, and be suspected of having killed it."""

CONTROLLER_RETRY_S = 0.25
"""Pause before a controller that is being restarted is looked for again."""

REMEMBERED_ORDERS = 64
"""Orders that are known when they come again because their answer was lost."""


class Place(msgspec.Struct, frozen=True):
    """Where a replica's process runs.

    Attributes:
        node_id: Ray's id of the node.
        host: Host name.
        cores: CPU cores the process may use.
        gpus: Accelerator ids Ray gave it.
        pid: Process id there.
    """

    node_id: str
    host: str
    cores: list[int]
    gpus: list[str]
    pid: int = 0


class Adoption(msgspec.Struct, frozen=True):
    """What a replica tells a controller that was started after it.

    Attributes:
        place: Where it runs.
        info: What its engine can hold.
        cores: Cores a CPU engine is pinned to.
        held: The requests that it runs.
        energy: What was metered until now, which earlier controllers may have told.
    """

    place: Place
    info: EngineInfo
    cores: list[int]
    held: list[Held]
    energy: EnergyTotals


class ReplicaActor:
    """Runs one engine. Whoever creates it makes it a Ray actor.

    Tokens go to clients through outboxes that they long-poll; counts go to the controller in
    reports, one call at a time. When the engine dies the process exits: Ray then tells everybody.
    It outlives a controller that dies and is started again, takes no more orders of the old one
    once the new one has asked for what it runs (`adopt`), and ends when there will be no new one.
    """

    def __init__(
        self, replica_id: str, spec: EngineSpec, controller: Any, client_timeout_s: float
    ) -> None:
        self._replica_id = replica_id
        self._spec = spec
        self._controller = controller
        self._client_timeout_s = client_timeout_s
        self._number = 0
        self._orders: deque[tuple[int, int]] = deque(maxlen=REMEMBERED_ORDERS)
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._cores: list[int] = []
        self._metering: Metering | None = None
        self._requests: dict[str, RunningAttempt] = {}
        self._chunks: OrderedDict[Any, bytes] = OrderedDict()
        self._work = asyncio.Event()
        self._reports: Reports | None = None
        self._deliveries: Deliveries | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def place(self) -> Place:
        """Where this process runs, which from now on ends with the controller.

        And whatever it starts ends with it.
        """
        if not self._tasks:
            self._run(self._end_with_controller)
            undertaker.watch()
        return self._place()

    def _place(self) -> Place:
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(
            node_id=context.get_node_id(),
            host=os.uname().nodename,
            cores=sorted(os.sched_getaffinity(0)),
            gpus=[str(gpu) for gpu in gpus],
            pid=os.getpid(),
        )

    async def start(self, number: int, cpu_cores: list[int]) -> EngineInfo:
        """Bring the engine up.

        Args:
            number: The controller's; later ones have larger numbers.
            cpu_cores: Cores to run on; empty: no pinning.

        Raises:
            EngineStartError: The engine cannot run here.
        """
        self._number, self._cores = number, cpu_cores
        self._engine = make_engine(self._spec, cpu_cores)
        self._info = await self._engine.start()
        self._metering = Metering(self._meter(), self._engine, self._spec.energy.idle_w)
        self._reports = Reports(
            self._replica_id, self._controller, self._engine, self._metering, self._requests
        )
        self._deliveries = Deliveries(
            self._requests, self._metering, self._reports, self._client_timeout_s
        )
        self._run(self._metering.forever)
        self._run(self._pump)
        self._run(self._reports.forever)
        self._run(self._report_stalls)
        freeze_heap()
        return self._info

    async def adopt(self, number: int) -> Adoption:
        """Obey this controller from now on, and no older one; tell it what runs here.

        Raises:
            EngineDeadError: The engine has not been started yet.
        """
        if self._info is None or self._reports is None or self._metering is None:
            raise EngineDeadError(f"replica {self._replica_id} has not been started")
        self._number = number
        self._reports.begin_again()
        held = [request.held() for request in self._requests.values()]
        return Adoption(self._place(), self._info, self._cores, held, self._metering.totals)

    async def act(
        self,
        number: int,
        order: int,
        aborts: list[str],
        recalls: dict[str, int],
        generations: list[Generation],
    ) -> None:
        """Carry out one tick's decisions, in this order.

        Args:
            number: The controller's. What an earlier one than the latest says comes too late: its
                successor does not count with it.
            order: Number of these decisions. Those that come again have been carried out.
            aborts: Requests that nobody wants any more.
            recalls: Requests to hand back to their clients, so that they go on elsewhere, with the
                attempt that is meant. One that has ended meanwhile keeps its end.
            generations: Requests to start.
        """
        if number < self._number or (number, order) in self._orders:
            return
        self._orders.append((number, order))
        engine = self._started
        for request_id in aborts:
            if (unwanted := self._requests.get(request_id)) is not None:
                self._ready_deliveries.end(request_id, unwanted.given_up(request_id))
        returned = self._hand_back(engine, recalls)
        replaced = [g.request_id for g in generations if self._replaces(g)]
        if unwanted_ids := [*aborts, *returned, *replaced]:
            await engine.abort(unwanted_ids)
        for generation in generations:
            self._begin(generation)
        self._work.set()
        ready = await asyncio.gather(*(self._resolve(g) for g in generations))
        for resolved in ready:
            # A request may have been aborted while its prompt was on the way.
            if resolved is not None and self._current(resolved):
                await self._submit(engine, resolved)

    async def take(self, client_id: str, received: int) -> tuple[int, list[Delta]]:
        """Long poll: the next batch of a client's deltas (see `Outbox.take`)."""
        return await self._ready_deliveries.take(client_id, received)

    async def steps(self) -> NDArray[np.float64]:
        """The engine's latest steps (see `Engine.steps`)."""
        return self._started.steps()

    async def watch(self) -> None:
        """Never returns: whoever awaits it learns when this process ends."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Shut the engine down and end the process, once clients have read what is theirs."""
        if self._deliveries is not None:
            await self._deliveries.until_read()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if self._engine is not None:
            await self._engine.stop()
        if self._metering is not None:
            self._metering.close()

    @property
    def _started(self) -> Engine:
        if self._engine is None:
            raise EngineDeadError(f"replica {self._replica_id} has not been started")
        return self._engine

    @property
    def _ready_reports(self) -> Reports:
        assert self._reports is not None, "what ran has been started"
        return self._reports

    @property
    def _ready_deliveries(self) -> Deliveries:
        assert self._deliveries is not None, "what runs has been started"
        return self._deliveries

    def _run(self, part: Callable[[], Awaitable[None]]) -> None:
        """Start a part of this replica that runs until it ends."""
        task = asyncio.create_task(supervise(part, self._replica_id, self._controller))
        self._tasks.append(task)

    def _current(self, generation: Generation) -> bool:
        request = self._requests.get(generation.request_id)
        return request is not None and request.attempt == generation.attempt

    def _replaces(self, generation: Generation) -> bool:
        """Whether another attempt of the same request runs here."""
        earlier = self._requests.get(generation.request_id)
        return earlier is not None and earlier.attempt != generation.attempt

    def _meter(self) -> EnergyMeter:
        place = self._place()
        meter = meter_of(
            self._spec.energy,
            simulated=self._spec.kind == "simulated",
            gpus=place.gpus,
            cores=len(self._cores or place.cores),
        )
        if meter.reason:
            logger.info("replica %s: energy is not measured: %s", self._replica_id, meter.reason)
        return meter

    def _begin(self, generation: Generation) -> None:
        request_id = generation.request_id
        if self._replaces(generation):
            self._ready_deliveries.end(request_id, self._requests[request_id].given_up(request_id))
        self._ready_deliveries.begin(generation)

    async def _submit(self, engine: Engine, generation: Generation) -> None:
        """Give a request to the engine; one that it cannot take ends, and the others go on."""
        try:
            await engine.submit([generation])
        except EngineDeadError:
            raise
        except Exception as error:
            logger.exception("replica %s could not submit a request", self._replica_id)
            self._fail(generation, error)
        # It may also have been aborted meanwhile, when the engine did not know it yet.
        if generation.request_id not in self._requests:
            await engine.abort([generation.request_id])

    def _fail(self, generation: Generation, error: Exception) -> None:
        if self._current(generation):
            why = str(error) or type(error).__name__
            self._ready_deliveries.deliver(
                [Delta(generation.request_id, finish_reason="error", error=why)]
            )

    async def _resolve(self, generation: Generation) -> Generation | None:
        """The generation with its prompt at hand; None when its owner is gone."""
        prompt = generation.prompt
        if not isinstance(prompt, PromptSlice):
            return generation
        try:
            chunk = self._chunks.get(prompt.chunk) or await prompt.chunk
        except Exception as error:
            self._fail(generation, error)
            return None
        self._chunks[prompt.chunk] = chunk
        self._chunks.move_to_end(prompt.chunk)
        if len(self._chunks) > 4:
            self._chunks.popitem(last=False)
        return msgspec.structs.replace(generation, prompt=chunk[prompt.start : prompt.stop])

    def _hand_back(self, engine: Engine, recalls: dict[str, int]) -> list[str]:
        """Give clients all tokens of these attempts and their end; the ids that had not ended.

        What the engine still produces until it has stopped them is nobody's: the next attempt
        begins with the tokens that were delivered.
        """
        if not recalls:
            return []
        self._ready_deliveries.deliver(engine.drain())
        self._ready_reports.stalled()
        returned = {
            request_id: request
            for request_id, attempt in recalls.items()
            if (request := self._requests.get(request_id)) and request.attempt == attempt
        }
        self._ready_deliveries.deliver([request.given_up(i) for i, request in returned.items()])
        return list(returned)

    async def _pump(self) -> None:
        """Move output from the engine to the outboxes."""
        engine = self._started
        pace = DeliveryPace(engine)
        while True:
            if not self._requests:
                await self._idle()
                engine.check()
                await self._abort_lost_clients(engine)
                continue
            read_along = any(request.interactive for request in self._requests.values())
            everything = await pace.due(len(self._requests), read_along=read_along)
            engine.check()
            self._ready_deliveries.deliver(engine.drain(finished_only=not everything))
            await self._abort_lost_clients(engine)

    async def _idle(self) -> None:
        """Wait for a request, or until it is time to look after other things."""
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_LOOK_S):
                await self._work.wait()

    async def _abort_lost_clients(self, engine: Engine) -> None:
        if lost := self._ready_deliveries.end_lost():
            await engine.abort(lost)

    async def _end_with_controller(self) -> None:
        """End this process when the controller is dead for good; a restarted one is waited for."""
        while True:
            try:
                await self._controller.watch.remote()
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.RayTaskError):
                await asyncio.sleep(CONTROLLER_RETRY_S)
            except ray.exceptions.RayActorError:
                logger.warning("replica %s: the controller is gone", self._replica_id)
                await self.stop()
                os._exit(0)

    async def _report_stalls(self) -> None:
        """A request that waits inside the engine may go on at once elsewhere.

        Whether it will go on here is seen from what the others hold, so their counts go with it.
        """
        engine, reports = self._started, self._ready_reports
        while True:
            await engine.stall_changed.wait()
            engine.stall_changed.clear()
            self._ready_deliveries.deliver(engine.drain())
            reports.progressed()
            await asyncio.sleep(STALLS_APART_S)
