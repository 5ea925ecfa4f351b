"""Replicas as Ray actors: found, created, placed, started, ended."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from cluster.config import ClusterConfig
from cluster.membership.engine_choice import engine_spec, uses_gpus
from cluster.membership.roster import parse_replica_name
from cluster.messages import NAMESPACE
from cluster.telemetry.engine_traces import engine_environment
from replicas.protocol import EngineInfo
from replicas.replica import Place, ReplicaActor

STOP_TIMEOUT_S = 15.0
"""How long an engine may take to shut down before its process is killed."""

END_TIMEOUT_S = 30.0
"""How long Ray may take to say that a process that it was to end is dead."""

UNREACHABLE_RETRY_S = 0.5
"""Pause before a replica that is out of reach is asked again."""


class PlacementError(RuntimeError):
    """A replica found no place or no time to start."""


class ReplicaActors:
    """Creates the actors of one cluster.

    They are detached: a controller that dies leaves them running, for its successor to adopt.

    Args:
        config: What they run.
        controller: Whom they report to.
        number: The controller's; those that were started by an older one obey the newest.
    """

    def __init__(self, config: ClusterConfig, controller: Any, number: int) -> None:
        self._config = config
        self._controller = controller
        self._number = number
        self._on_gpu = uses_gpus(config)

    @property
    def pinned(self) -> bool:
        """Whether each replica is pinned to cores of its own."""
        return not self._on_gpu and self._config.replicas.engine == "vllm"

    def create(self, replica_id: str) -> Any:
        """The handle of a new actor, which Ray has yet to place."""
        replicas = self._config.replicas
        environment = engine_environment(self._config.telemetry, replica_id)
        actor: Any = ray.remote(ReplicaActor)
        return actor.options(
            name=replica_id,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            resources=replicas.resources or None,
            runtime_env={"env_vars": environment} if environment else None,
            max_concurrency=10_000,
        ).remote(
            replica_id,
            engine_spec(self._config, self._on_gpu),
            self._controller,
            self._config.client_timeout_s,
        )

    async def place(self, handle: Any) -> Place:
        """Wait until Ray has found room for it.

        Raises:
            PlacementError: It found none in time; the actor goes on waiting for some.
        """
        timeout_s = self._config.replicas.placement_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                place: Place = await handle.place.remote()
                return place
        except TimeoutError:
            raise PlacementError(
                f"Ray found no node with room for a replica within {timeout_s:.0f} s: "
                f"it needs {self._needs()}, the cluster has in all "
                f"{_totals(ray.cluster_resources())}, free {_totals(ray.available_resources())}"
            ) from None

    async def start(self, handle: Any, cores: list[int]) -> EngineInfo:
        """Bring its engine up.

        Raises:
            PlacementError: It was not ready in time.
            EngineStartError: The engine cannot run there.
            RayActorError: The process died.
        """
        timeout_s = self._config.replicas.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                info: EngineInfo = await handle.start.remote(self._number, cores)
                return info
        except TimeoutError:
            raise PlacementError(
                f"the engine was not ready within {timeout_s:.0f} s: "
                "raise replicas.start_timeout_s if the model is large"
            ) from None

    async def adopt(self, handle: Any, timeout_s: float) -> Any:
        """What it runs, and its obedience; None when it has not loaded or does not answer."""
        try:
            async with asyncio.timeout(timeout_s):
                return await handle.adopt.remote(self._number)
        except (TimeoutError, ray.exceptions.RayError):
            return None

    @property
    def _cpus(self) -> int:
        """CPU cores that Ray reserves for each; a simulated engine computes nothing."""
        replicas = self._config.replicas
        simulated = replicas.engine == "simulated"
        return 0 if self._on_gpu or simulated else replicas.cpus_per_replica

    @property
    def _gpus(self) -> int:
        return self._config.replicas.tensor_parallel_size if self._on_gpu else 0

    def _needs(self) -> str:
        needs = {"GPU": self._gpus, "CPU": self._cpus, **self._config.replicas.resources}
        return ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)


def find_replicas() -> dict[tuple[int, int], Any]:
    """Handles of all replicas' actors in this Ray cluster, whoever created them.

    Returns:
        By index and incarnation, the latest incarnation of an index first.
    """
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = parse_replica_name(actor["name"])
        if actor["namespace"] == NAMESPACE and name is not None:
            try:
                found[name] = ray.get_actor(actor["name"], namespace=NAMESPACE)
            except ValueError:  # it has ended since
                continue
    return dict(sorted(found.items(), reverse=True))


async def death(handle: Any) -> str:
    """Wait until the actor's process ends and say why.

    One that is merely out of reach lives: it is not replaced while it may run.
    """
    while True:
        try:
            await handle.watch.remote()
        except ray.exceptions.ActorUnavailableError:
            await asyncio.sleep(UNREACHABLE_RETRY_S)
        except ray.exceptions.RayError as error:
            return reason(error)


async def kill(handle: Any) -> None:
    """End the actor's process at once, and wait until Ray counts it among the dead.

    A suspended one is then still there for as long as 5 s, so that a replacement may find its
    memory taken. What a process leaves behind, its undertaker ends (see `replicas.undertaker`).
    """
    ray.kill(handle)
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await death(handle)
    except TimeoutError:
        return  # its node does not answer: nothing more can be done from here


async def stop(handle: Any) -> None:
    """Let the engine shut down, then end the process."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await handle.stop.remote()
    except (TimeoutError, ray.exceptions.RayError):
        pass
    await kill(handle)


async def node_died(node_id: str) -> bool:
    """Whether Ray counts the node among the dead."""
    nodes = await asyncio.to_thread(ray.nodes)
    return not any(node["NodeID"] == node_id and node["Alive"] for node in nodes)


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = getattr(error, "cause", None)
    lines = str(cause if cause is not None else error).strip().splitlines()
    # Ray names the actor first, then what happened to it, then what often is the cause.
    telling = [line for line in lines if line.startswith("The actor") and " because " in line]
    return (telling or lines or [type(error).__name__])[0].partition(" Some common causes")[0]


def _totals(resources: dict[str, float]) -> str:
    shown = {k: v for k, v in resources.items() if ":" not in k and "memory" not in k}
    return ", ".join(f"{v:g} {k}" for k, v in sorted(shown.items())) or "nothing"
