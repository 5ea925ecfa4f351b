"""Load on a cluster that is being killed in parts, and what its clients see of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.messages import NAMESPACE
from jobs.bench_cluster import Endpoint, processes
from jobs.http_load import HttpAnswer, HttpLoad
from jobs.known_answers import request_of
from jobs.restarted_job import NO_ROWS, RestartedJob, RowCount
from jobs.streams import Stream, follow

ANSWER_TOKENS = (50, 500)
"""Shortest and longest answer of the streams."""

ROW_TOKENS = 64
"""Most tokens of a row's answer."""

REFUSED_PAUSE_S = 0.2
"""Pause after a connection that nobody answered."""

LOGGED_KILLS = 10
"""Between two lines that tell how far the run is."""

QUIET_S = 60.0
"""How long the cluster may take to be whole and idle after the last kill."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL.

    Attributes:
        victim: What kind of process.
        at_s: When, on this machine's monotonic clock.
    """

    victim: str
    at_s: float


@dataclass(slots=True)
class FaultRun:
    """What came of a run.

    Attributes:
        streams: All that were begun.
        kills: In their order.
        http: Requests that were sent over HTTP, each with what came back.
        rows: Of the offline jobs.
        jobs: Offline jobs that were run.
        left: Requests and KV blocks that the cluster still holds at the end.
        wall_s: Seconds of load.
    """

    streams: list[Stream] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    http: list[tuple[GenerationRequest, HttpAnswer]] = field(default_factory=list)
    rows: RowCount = NO_ROWS
    jobs: int = 0
    left: int = 0
    wall_s: float = 0.0


class FaultLoad:
    """One run: online streams and offline jobs without end, and kills among them.

    Args:
        served: The cluster and its endpoint.
        engines: Replicas that must be there in the end.
        streams: Streams at a time through the cluster's client, and over HTTP.
        rows: Of each offline job.
        folder: Keeps the jobs.
        seed: Of victims, instants and lengths.
        say: Is told now and then how far the run is.
    """

    def __init__(
        self,
        served: Endpoint,
        engines: int,
        streams: tuple[int, int],
        rows: int,
        folder: Path,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._served = served
        self._say = say
        self._controller = served.controller
        self._engines = engines
        self._customers, self._http_customers = streams
        self._rows = rows
        self._folder = folder
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._stopping = False
        self._job: RestartedJob | None = None
        self._run = FaultRun()

    async def run(self, kills: int, gap_s: float, weights: dict[str, float]) -> FaultRun:
        """Kill so many processes, then let all that was begun end."""
        started_s = time.monotonic()
        async with ClusterClient(self._controller) as client, HttpLoad(self._served.url) as http:
            load = [asyncio.create_task(self._customer(client)) for _ in range(self._customers)]
            load += [
                asyncio.create_task(self._http_customer(http)) for _ in range(self._http_customers)
            ]
            load.append(asyncio.create_task(self._jobs()))
            try:
                await self._kill(kills, gap_s, weights, load)
                self._stopping = True
                await asyncio.gather(*load)
            finally:
                for task in load:
                    task.cancel()
        self._run.wall_s = time.monotonic() - started_s
        self._run.left = await self._left()
        return self._run

    async def _customer(self, client: ClusterClient) -> None:
        while not self._stopping:
            number = next(self._numbers)
            tokens = self._random.randint(*ANSWER_TOKENS)
            stream = Stream(request_of("stream", number, output_tokens=tokens), time.monotonic())
            self._run.streams.append(stream)
            await follow(client, stream)

    async def _http_customer(self, http: HttpLoad) -> None:
        while not self._stopping:
            request = request_of(
                "http", next(self._numbers), output_tokens=self._random.randint(*ANSWER_TOKENS)
            )
            answer = await http.send(
                {
                    "model": self._served.model,
                    "prompt": request.prompt_token_ids,
                    "max_tokens": request.max_tokens,
                    "vllm_xargs": request.sampling["extra_args"],
                }
            )
            self._run.http.append((request, answer))
            if not answer.status:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _jobs(self) -> None:
        address = ray.get_runtime_context().gcs_address
        while not self._stopping:
            folder = self._folder / f"job-{self._run.jobs}"
            self._job = RestartedJob(folder, self._rows, ROW_TOKENS, address)
            self._run.jobs += 1
            self._run.rows += await self._job.run()

    async def _kill(
        self,
        kills: int,
        gap_s: float,
        weights: dict[str, float],
        load: Sequence[asyncio.Task[None]],
    ) -> None:
        names = list(weights)
        while len(self._run.kills) < kills:
            await asyncio.sleep(self._random.expovariate(1 / gap_s))
            for task in load:
                if task.done():
                    task.result()  # its error ends the run
            name = self._random.choices(names, list(weights.values()))[0]
            pid = await self._pid(name)
            if pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                self._run.kills.append(Kill(name, time.monotonic()))
                if name == "job" and self._job is not None:
                    self._job.kill()
                else:
                    os.kill(pid, signal.SIGKILL)
            if len(self._run.kills) % LOGGED_KILLS == 0:
                ended = sum(stream.ended for stream in self._run.streams)
                self._say(f"{len(self._run.kills)} of {kills} kills, {ended:,} streams ended")

    async def _pid(self, name: str) -> int | None:
        """A process of this kind that is up; None while there is none."""
        if name == "job":
            return None if self._job is None else self._job.pid
        if name == "gateway":
            up = processes(["gateway"])["gateway"]
            return int(self._random.choice(up).pid) if up else None
        if name == "controller":
            pid: int = await _asked(self._controller.pid)
            return pid
        status = await _asked(self._controller.status)
        ready = [r.replica_id for r in status.replicas if r.state == "ready"]
        if not ready:
            return None
        try:
            actor = ray.get_actor(self._random.choice(ready), namespace=NAMESPACE)
            place = await actor.place.remote()
        except (ValueError, ray.exceptions.RayActorError):
            return None
        return int(place.pid)

    async def _left(self) -> int:
        """Requests and blocks that are still held once there has been time to let go of them."""
        left = -1
        until_s = time.monotonic() + QUIET_S
        while left and time.monotonic() < until_s:
            await asyncio.sleep(0.2)
            status = await _asked(self._controller.status)
            whole = [r.state for r in status.replicas] == ["ready"] * self._engines
            held = [r.running + r.used_blocks + r.engine_load.running for r in status.replicas]
            left = status.waiting + status.running + sum(held) + (0 if whole else 1)
        return left


async def _asked(method: Any) -> Any:
    """The controller's answer, waited for while it is being restarted."""
    while True:
        try:
            return await method.remote()
        except ray.exceptions.RayActorError:
            await asyncio.sleep(0.1)
