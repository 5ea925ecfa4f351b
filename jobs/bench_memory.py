"""What the controller's memory is: with a long queue, and after many finished requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import psutil
import ray
import typer
from rich.console import Console
from rich.table import Table

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig
from cluster.controller import Controller
from cluster.lifecycle import connect_ray, create_controller, stop_controller
from cluster.membership.member import Member
from cluster.messages import Submission
from jobs.errors import InputError
from policies.request import RequestClass
from replicas.protocol import (
    EnergyTotals,
    EngineInfo,
    EngineLoad,
    Finished,
    Generation,
    ReplicaReport,
)

console = Console()

MIB = 1 << 20

_CLIENT = "bench"
_AT_ONCE = 1000
_TENANTS = 1000
_ENGINE = EngineInfo(
    "bench",
    kv_blocks=1 << 20,
    block_size=16,
    max_num_seqs=4096,
    max_model_len=4096,
    kind="simulated",
)


def memory_command(
    config: ClusterConfig,
    queued: Annotated[int, typer.Option(min=1, help="Requests to queue.")] = 100_000,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 2000,
    finished: Annotated[
        int, typer.Option(min=0, help="Requests to play from arrival to end; 0: none.")
    ] = 1_000_000,
) -> None:
    """Measure the controller's memory: a long queue of long prompts, and many finished requests."""
    _queue(config, queued, prompt_tokens)
    if finished:
        console.print(asyncio.run(_play(config, finished)))


def _queue(config: ClusterConfig, queued: int, prompt_tokens: int) -> None:
    started_ray = connect_ray(config.ray.address)
    settings = config.model_copy(
        update={"replicas": config.replicas.model_copy(update={"count": 0})}
    )
    controller = create_controller(settings, detached=False)
    try:
        before = ray.get(controller.memory_bytes.remote())
        after = asyncio.run(fill(controller, queued, prompt_tokens))
    finally:
        stop_controller(controller)
        if started_ray:
            ray.shutdown()
    console.print(
        f"controller with {queued:,} queued prompts of {prompt_tokens:,} tokens: "
        f"{after / MIB:,.0f} MiB resident, {before / MIB:,.0f} MiB when empty; "
        f"this client: {_resident() / MIB:,.0f} MiB"
    )


async def fill(controller: Any, queued: int, prompt_tokens: int) -> int:
    """Queue prompts that no replica takes, and withdraw them once all of them wait.

    Args:
        controller: The handle of one without replicas.
        queued: Prompts.
        prompt_tokens: Tokens of each.

    Returns:
        The controller's resident memory in bytes while all of them waited.

    Raises:
        InputError: It did not let all of them wait.
        ClusterLostError: The controller is gone.
    """
    async with ClusterClient(controller) as client:
        prompt = list(range(prompt_tokens))
        # Offline, because of online requests fewer may wait than this is to queue.
        calls = [
            asyncio.create_task(
                client.complete(
                    GenerationRequest(
                        f"memory/{i}",
                        prompt,
                        max_tokens=256,
                        request_class=RequestClass.OFFLINE,
                    )
                )
            )
            for i in range(queued)
        ]
        while (await client.status()).waiting < queued:
            # Without replicas none ends but by an error, and then never do so many wait.
            if (ended := next((call for call in calls if call.done()), None)) is not None:
                raise InputError(
                    f"--queued is {queued:,}, more than may wait: lower it or raise the limit "
                    f"({ended.result().error})"
                )
            await asyncio.sleep(0.5)
        resident: int = await controller.memory_bytes.remote()
        for call in calls:
            call.cancel()
        return resident


class PlayedController(Controller):
    """A controller in this process with one replica, whose requests end when the bench says so."""

    async def start(self) -> None:
        """Nothing is to be brought up."""

    def join(self) -> None:
        """The replica is ready."""
        self._received = 0
        member = Member(0, "replica-0")
        member.info, member.handle = _ENGINE, _Nowhere()
        self._desk.replica_ready(member)

    async def play(self, submissions: list[Submission], lengths: list[int]) -> None:
        """Take requests in, dispatch them and end each with so many output tokens."""
        await self.submit(_CLIENT, submissions)
        self._carry_out(self._state.scheduler.decide(time.monotonic()))
        await asyncio.gather(*self._tasks)
        ended = [
            Finished(s.generation.request_id, _CLIENT, 1, tokens, "stop", energy_joules=1.0)
            for s, tokens in zip(submissions, lengths, strict=True)
        ]
        books = EnergyTotals("model:bench", request_joules=1.0)
        await self.report(ReplicaReport("replica-0", {}, ended, EngineLoad(), books, 0.0))
        self._received, _ = await self._state.clients.take(
            _CLIENT, self._received, follows_load=False
        )

    @property
    def rows(self) -> int:
        """Requests that have ended so far."""
        return self._state.counters.finished


class _Nowhere:
    """Stands where a replica's handle does and takes its orders."""

    def __init__(self) -> None:
        self.act = self

    async def remote(self, *orders: object) -> None:
        """Nothing runs here."""


async def _play(config: ClusterConfig, finished: int) -> Table:
    # Nothing fetches what the metrics gather: the task that does needs Ray.
    quiet = config.telemetry.model_copy(update={"metrics_interval_s": None})
    settings = config.model_copy(update={"telemetry": quiet})
    controller = PlayedController(settings.model_dump(mode="json"))
    controller.join()
    table = Table(
        title=f"controller after finished requests, of {_TENANTS:,} tenants",
        title_justify="left",
    )
    for column in ("finished", "MiB resident", "us per request"):
        table.add_column(column, justify="right")
    begun_s = time.perf_counter()
    for mark in _marks(finished):
        while controller.rows < mark:
            await controller.play(
                *requests_of(controller.rows, min(_AT_ONCE, mark - controller.rows))
            )
        spent_us = 1e6 * (time.perf_counter() - begun_s) / controller.rows
        table.add_row(f"{controller.rows:,}", f"{_resident() / MIB:,.0f}", f"{spent_us:,.0f}")
    return table


def _marks(finished: int) -> Iterator[int]:
    """Numbers of requests at which to look, ten times as many each time."""
    for power in range(4, math.ceil(math.log10(finished))):
        yield 10**power
    yield finished


def requests_of(first: int, count: int) -> tuple[list[Submission], list[int]]:
    """So many submissions with consecutive numbers, and the length of each one's answer."""
    rng = np.random.default_rng(first)
    lengths = rng.integers(1, 500, count).tolist()
    tenants = rng.integers(0, _TENANTS, count).tolist()
    submissions = [
        Submission(
            Generation(f"played/{number}", _CLIENT, b""),
            prompt_tokens=100,
            max_tokens=500,
            request_class=RequestClass(number % 2),
            tenant=f"tenant-{tenant}",
        )
        for number, tenant in enumerate(tenants, first)
    ]
    return submissions, lengths


def _resident() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident
