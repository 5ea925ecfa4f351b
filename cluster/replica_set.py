"""The replica actors of a cluster: started, placed, pinned, watched and replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import ray

from cluster.config import ClusterConfig
from cluster.messages import NAMESPACE
from replicas.embedded_model import resolve_model
from replicas.engines import EngineSpec
from replicas.protocol import EngineInfo
from replicas.replica import Place, ReplicaActor

logger = logging.getLogger(__name__)

GIB = 1 << 30

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before a replica is given up."""


class Member(msgspec.Struct):
    """One replica and what is known of it.

    Attributes:
        index: Its place in the set, kept when it is replaced.
        replica_id: Name of the actor; a replacement has another.
        state: `placing`, `loading`, `ready`, `lost` or `failed`.
        handle: The actor.
        place: Where it runs.
        info: What its engine can hold.
        cores: Cores a CPU engine is pinned to.
        error: Why it failed.
    """

    index: int
    replica_id: str
    state: str = "placing"
    handle: Any = None
    place: Place | None = None
    info: EngineInfo | None = None
    cores: list[int] = []
    error: str = ""


class ReplicaSet:
    """Keeps `config.replicas.count` replicas alive.

    `on_ready(member)` and `on_lost(member)` are called on the event loop. A replica that cannot
    start is tried again with a growing delay, then given up with its error.
    """

    def __init__(
        self,
        config: ClusterConfig,
        controller: Any,
        on_ready: Callable[[Member], None],
        on_lost: Callable[[Member], None],
    ) -> None:
        self._config = config
        self._controller = controller
        self._on_ready = on_ready
        self._on_lost = on_lost
        self.members = [Member(i, f"replica-{i}") for i in range(config.replicas.count)]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Begin to bring all replicas up."""
        on_gpu = uses_gpus(self._config)
        self._tasks = [
            asyncio.create_task(self._keep_alive(member, on_gpu)) for member in self.members
        ]

    async def settled(self) -> None:
        """Wait until every replica is ready or given up."""
        while any(m.state not in ("ready", "failed") for m in self.members):
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Shut all replicas down."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        live = [m.handle for m in self.members if m.handle is not None]
        await asyncio.gather(*(_stop(handle) for handle in live))

    async def _keep_alive(self, member: Member, on_gpu: bool) -> None:
        failures = 0
        incarnation = 0
        while not self._stopping:
            try:
                await self._bring_up(member, on_gpu)
            except Exception as error:  # whatever a start can raise is the replica's state
                failures += 1
                member.error = _reason(error)
                logger.error("%s did not start: %s", member.replica_id, member.error)
                await _kill(member.handle)
                if failures >= MAX_FAILED_STARTS or not _may_pass(error):
                    self._set(member, "failed")
                    return
                await asyncio.sleep(2.0**failures)
            else:
                failures = 0
                self._set(member, "ready")
                self._on_ready(member)
                member.error = await _death(member.handle)
                if self._stopping:
                    return
                logger.error("%s was lost: %s", member.replica_id, member.error)
                self._set(member, "lost")
                self._on_lost(member)
            incarnation += 1
            member.replica_id = f"replica-{member.index}.{incarnation}"

    async def _bring_up(self, member: Member, on_gpu: bool) -> None:
        self._set(member, "placing")
        member.place = member.info = None
        member.cores = []
        replicas = self._config.replicas
        actor = ray.remote(ReplicaActor).options(
            name=member.replica_id,
            namespace=NAMESPACE,
            num_cpus=0 if on_gpu or replicas.engine == "simulated" else replicas.cpus_per_replica,
            num_gpus=replicas.tensor_parallel_size if on_gpu else 0,
            resources=replicas.resources or None,
            max_concurrency=10_000,
        )
        spec = engine_spec(self._config, on_gpu)
        member.handle = actor.remote(member.replica_id, spec, self._controller)
        try:
            async with asyncio.timeout(replicas.placement_timeout_s):
                member.place = await member.handle.place.remote()
        except TimeoutError:
            raise PlacementError(
                f"Ray found no node with room for a replica within "
                f"{replicas.placement_timeout_s:.0f} s: "
                f"it needs {_needs(self._config, on_gpu)}, the cluster has in all "
                f"{_totals(ray.cluster_resources())}, free {_totals(ray.available_resources())}"
            ) from None
        self._set(member, "loading")
        pin = not on_gpu and replicas.engine == "vllm"
        member.cores = self._cores(member) if pin else []
        try:
            async with asyncio.timeout(replicas.start_timeout_s):
                member.info = await member.handle.start.remote(member.cores)
        except TimeoutError:
            raise PlacementError(
                f"the engine was not ready within {replicas.start_timeout_s:.0f} s: "
                "raise replicas.start_timeout_s if the model is large"
            ) from None

    def _cores(self, member: Member) -> list[int]:
        """Cores of the member's node that no other replica is pinned to, while there are any."""
        assert member.place is not None
        taken = {
            core
            for other in self.members
            if other.place is not None and other.place.node_id == member.place.node_id
            for core in other.cores
        }
        free = [core for core in member.place.cores if core not in taken]
        return (free or member.place.cores)[: self._config.replicas.cpus_per_replica]

    def _set(self, member: Member, state: str) -> None:
        member.state = state
        self._changed.set()


class PlacementError(RuntimeError):
    """A replica found no place or no time to start."""


def uses_gpus(config: ClusterConfig) -> bool:
    """Whether replicas take GPUs of this Ray cluster; simulated ones only when told to."""
    if config.replicas.device == "auto" and config.replicas.engine == "vllm":
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return config.replicas.device == "gpu"


def engine_spec(config: ClusterConfig, on_gpu: bool) -> EngineSpec:
    """What each replica runs."""
    replicas = config.replicas
    shared: dict[str, Any] = {
        "max_num_seqs": replicas.max_num_seqs,
        "block_size": replicas.block_size,
    }
    if replicas.max_model_len is not None:
        shared["max_model_len"] = replicas.max_model_len
    if replicas.engine == "simulated":
        return EngineSpec("simulated", config.model, shared | replicas.engine_args)
    vllm_args = shared | {"tensor_parallel_size": replicas.tensor_parallel_size}
    # The controller's order must also be the engine's order of preemption.
    vllm_args["scheduling_policy"] = "priority"
    if not on_gpu:
        vllm_args |= {
            "dtype": "bfloat16",
            # Compiling takes over a minute of every start; long jobs may want it all the same:
            # replicas.engine_args {enforce_eager: false}.
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(replicas.kv_cache_gib * GIB),
            # vLLM's CPU build ends its engine when a seeded request is prefilled in chunks.
            "enable_chunked_prefill": False,
        }
        if replicas.max_model_len is not None:
            vllm_args["max_num_batched_tokens"] = max(2048, replicas.max_model_len)
    return EngineSpec("vllm", resolve_model(config.model), vllm_args | replicas.engine_args)


def _needs(config: ClusterConfig, on_gpu: bool) -> str:
    replicas = config.replicas
    unit = f"{replicas.tensor_parallel_size} GPU" if on_gpu else f"{replicas.cpus_per_replica} CPU"
    extra = "".join(f", {amount:g} {name}" for name, amount in replicas.resources.items())
    return f"{unit}{extra}"


def _totals(resources: dict[str, float]) -> str:
    shown = {k: v for k, v in resources.items() if ":" not in k and "memory" not in k}
    return ", ".join(f"{v:g} {k}" for k, v in sorted(shown.items())) or "nothing"


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    lines = str(cause if cause is not None else error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _may_pass(error: BaseException) -> bool:
    """Whether the same start can succeed another time: the process died, rather than refused."""
    return isinstance(error, ray.exceptions.RayActorError)


async def _death(handle: Any) -> str:
    """Wait until the actor's process ends and say why."""
    try:
        await handle.watch.remote()
    except ray.exceptions.RayError as error:
        return _reason(error)
    return "the actor ended"


async def _kill(handle: Any) -> None:
    if handle is not None:
        ray.kill(handle)


async def _stop(handle: Any) -> None:
    try:
        async with asyncio.timeout(15.0):
            await handle.stop.remote()
    except (TimeoutError, ray.exceptions.RayError):
        pass
    ray.kill(handle)
