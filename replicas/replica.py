"""The replica actor: one engine, the outboxes of its clients and its reports to the controller."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray

from replicas.detect_meter import detect_meter
from replicas.energy import EnergyMeter, NullMeter
from replicas.engines import EngineSpec, make_engine
from replicas.outbox import Outbox
from replicas.protocol import (
    Delta,
    Engine,
    EngineDeadError,
    EngineInfo,
    EngineLoad,
    Finished,
    Generation,
    PromptSlice,
    ReplicaReport,
)

logger = logging.getLogger(__name__)

INTERACTIVE_COALESCE_S = 0.05
"""Longest time that tokens other than a first or a last one wait for company while somebody reads
along."""

OFFLINE_COALESCE_S = 0.5
"""The same while nobody does: the work that the loss of this process can cost."""

END_COALESCE_S = 0.02
"""How long the end of a request waits for other ends while nobody reads along."""

REPORT_INTERVAL_S = 0.25
"""How often progress is reported."""

LONG_POLL_S = 10.0
"""How long a client's call waits for tokens before it is answered with none."""

CLIENT_LOST_S = 60.0
"""A client that has not asked for this long is gone, and its requests are aborted."""


class Place(msgspec.Struct, frozen=True):
    """Where a replica's process runs.

    Attributes:
        node_id: Ray's id of the node.
        host: Host name.
        cores: CPU cores the process may use.
        gpus: Accelerator ids Ray gave it.
    """

    node_id: str
    host: str
    cores: list[int]
    gpus: list[str]


class _Request:
    """What the replica keeps of a request while it runs."""

    __slots__ = ("attempt", "client_id", "interactive", "output_tokens")

    def __init__(self, generation: Generation) -> None:
        self.attempt = generation.attempt
        self.client_id = generation.client_id
        self.interactive = generation.interactive
        self.output_tokens = generation.generated_tokens


class ReplicaActor:
    """Runs one engine. Whoever creates it makes it a Ray actor.

    Tokens go to clients through outboxes that they long-poll; counts go to the controller in
    reports, one call at a time. When the engine dies the process exits: Ray then tells everybody.
    """

    def __init__(self, replica_id: str, spec: EngineSpec, controller: Any) -> None:
        self._replica_id = replica_id
        self._spec = spec
        self._controller = controller
        self._engine: Engine | None = None
        self._meter: EnergyMeter | None = None
        self._requests: dict[str, _Request] = {}
        self._outboxes: dict[str, Outbox[Delta]] = {}
        self._finished: list[Finished] = []
        self._chunks: OrderedDict[Any, bytes] = OrderedDict()
        self._work = asyncio.Event()
        self._report_due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def place(self) -> Place:
        """Where this process runs."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(
            node_id=context.get_node_id(),
            host=os.uname().nodename,
            cores=sorted(os.sched_getaffinity(0)),
            gpus=[str(gpu) for gpu in gpus],
        )

    async def start(self, cpu_cores: list[int]) -> EngineInfo:
        """Bring the engine up on these cores (empty: no pinning).

        Raises:
            EngineStartError: The engine cannot run here.
        """
        self._meter = meter_of(self._spec, self.place().gpus)
        self._engine = make_engine(self._spec, cpu_cores)
        info = await self._engine.start()
        self._tasks = [
            asyncio.create_task(self._pump(self._engine)),
            asyncio.create_task(self._report_loop(self._engine)),
        ]
        return info

    async def act(self, aborts: list[str], generations: list[Generation]) -> None:
        """Carry out one tick's decisions: first the aborts, then the starts."""
        engine = self._started
        for request_id in aborts:
            self._requests.pop(request_id, None)
        if aborts:
            await engine.abort(aborts)
        for generation in generations:
            self._requests[generation.request_id] = _Request(generation)
        ready = await asyncio.gather(*(self._resolve(g) for g in generations))
        # A request may have been aborted while its prompt was on the way.
        ready_now = [g for g in ready if g is not None and self._current(g)]
        await engine.submit(ready_now)
        self._work.set()

    async def take(self, client_id: str, received: int) -> tuple[int, list[Delta]]:
        """Long poll: the next batch of a client's deltas (see `Outbox.take`)."""
        return await self._outbox(client_id).take(received, LONG_POLL_S)

    async def steps(self) -> NDArray[np.float64]:
        """The engine's latest steps (see `Engine.steps`)."""
        return self._started.steps()

    async def watch(self) -> None:
        """Never returns: whoever awaits it learns when this process ends."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Shut the engine down and end the process."""
        for task in self._tasks:
            task.cancel()
        if self._engine is not None:
            await self._engine.stop()
        if self._meter is not None:
            self._meter.close()

    @property
    def _started(self) -> Engine:
        if self._engine is None:
            raise EngineDeadError(f"replica {self._replica_id} has not been started")
        return self._engine

    def _outbox(self, client_id: str) -> Outbox[Delta]:
        return self._outboxes.setdefault(client_id, Outbox())

    def _current(self, generation: Generation) -> bool:
        request = self._requests.get(generation.request_id)
        return request is not None and request.attempt == generation.attempt

    async def _resolve(self, generation: Generation) -> Generation | None:
        """The generation with its prompt at hand; None when its owner is gone."""
        prompt = generation.prompt
        if not isinstance(prompt, PromptSlice):
            return generation
        try:
            chunk = self._chunks.get(prompt.chunk) or await prompt.chunk
        except ray.exceptions.RayError as error:
            self._deliver([Delta(generation.request_id, finish_reason="error", error=str(error))])
            return None
        self._chunks[prompt.chunk] = chunk
        self._chunks.move_to_end(prompt.chunk)
        if len(self._chunks) > 4:
            self._chunks.popitem(last=False)
        return msgspec.structs.replace(generation, prompt=chunk[prompt.start : prompt.stop])

    async def _pump(self, engine: Engine) -> None:
        """Move output from the engine to the outboxes.

        While anybody reads along, a first or last token goes at once and others soon. While nobody
        does, only what has ended goes, and the rest once in a while: on a machine whose cores
        decode, every message costs tokens.
        """
        delivered_s = 0.0
        try:
            while True:
                if not self._requests:
                    self._work.clear()
                    await self._work.wait()
                interactive = any(request.interactive for request in self._requests.values())
                pause_s = INTERACTIVE_COALESCE_S if interactive else OFFLINE_COALESCE_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await engine.output_ready.wait()
                        if not interactive:
                            await asyncio.sleep(END_COALESCE_S)
                engine.check()
                everything = interactive or time.monotonic() - delivered_s >= pause_s
                self._deliver(engine.drain(finished_only=not everything))
                if everything:
                    delivered_s = time.monotonic()
                self._abort_lost_clients(engine)
        except EngineDeadError:
            logger.exception("replica %s: the engine died, so this process ends", self._replica_id)
            os._exit(1)

    def _deliver(self, deltas: list[Delta]) -> None:
        by_client: dict[str, list[Delta]] = {}
        for delta in deltas:
            request = self._requests.get(delta.request_id)
            if request is None:
                continue
            delta.attempt = request.attempt
            request.output_tokens += len(delta.token_ids)
            by_client.setdefault(request.client_id, []).append(delta)
            if delta.finish_reason is not None:
                self._end(delta.request_id, delta)
        for client_id, batch in by_client.items():
            self._outbox(client_id).put(batch)

    def _end(self, request_id: str, delta: Delta) -> None:
        request = self._requests.pop(request_id)
        self._finished.append(
            Finished(
                request_id=request_id,
                client_id=request.client_id,
                attempt=request.attempt,
                output_tokens=request.output_tokens,
                finish_reason=delta.finish_reason or "abort",
                preemptions=delta.preemptions,
                recomputed_tokens=delta.recomputed_tokens,
            )
        )
        self._report_due.set()

    def _abort_lost_clients(self, engine: Engine) -> None:
        for client_id, outbox in list(self._outboxes.items()):
            if outbox.idle_s() < CLIENT_LOST_S:
                continue
            del self._outboxes[client_id]
            ids = [i for i, r in self._requests.items() if r.client_id == client_id]
            for request_id in ids:
                self._end(request_id, Delta(request_id, finish_reason="abort"))
            if ids:
                logger.warning("client %s is gone: aborting its %d requests", client_id, len(ids))
                self._tasks.append(asyncio.create_task(engine.abort(ids)))

    async def _report_loop(self, engine: Engine) -> None:
        """Report to the controller; what it has not received is sent again."""
        reported: tuple[dict[str, int], EngineLoad] = {}, EngineLoad()
        reported_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._report_due.wait()
            self._report_due.clear()
            progress: dict[str, int] = {}
            if time.monotonic() - reported_s >= REPORT_INTERVAL_S:
                progress = {i: r.output_tokens for i, r in self._requests.items()}
            state = progress, engine.load()
            if not self._finished and state == reported:
                continue
            finished, self._finished = self._finished, []
            try:
                await self._controller.report.remote(self._report(engine, progress, finished))
                reported = state
                if progress:
                    reported_s = time.monotonic()
            except ray.exceptions.RayError:
                # The controller is away or being restarted.
                self._finished = finished + self._finished
                await asyncio.sleep(REPORT_INTERVAL_S)
                self._report_due.set()

    def _report(
        self, engine: Engine, progress: dict[str, int], finished: list[Finished]
    ) -> ReplicaReport:
        assert self._meter is not None
        return ReplicaReport(
            replica_id=self._replica_id,
            progress=progress,
            finished=finished,
            load=engine.load(),
            total_joules=self._meter.total_joules(),
            energy_source=self._meter.source,
            sent_s=time.time(),
        )


def meter_of(spec: EngineSpec, gpus: Sequence[str]) -> EnergyMeter:
    """The energy meter of a replica with these accelerators; never another device's."""
    if spec.kind == "simulated":
        return NullMeter("a simulated engine uses no energy worth metering")
    indices = [int(gpu) for gpu in gpus if gpu.isdigit()]
    if len(indices) < len(gpus):
        return NullMeter(f"GPUs {', '.join(gpus)} are not named by their index on the node")
    return detect_meter(indices)
