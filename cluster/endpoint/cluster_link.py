"""The gateway's connection to a cluster, made again when one went down and another came up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import ray

from cluster.client import ClusterClient, NoClusterError, connect_controller
from cluster.config import ClusterConfig
from cluster.messages import ClusterLoad
from cluster.snapshot import ClusterSnapshot, Explanation

logger = logging.getLogger(__name__)

RECONNECT_S = 0.5
"""Pause before a cluster is looked for again."""

FIRST_CONNECTION_S = 30.0
"""Longest time that a gateway which has just seen the cluster waits for its first connection."""


class OtherModelError(RuntimeError):
    """The cluster that came up serves another model than the one before."""


class ClusterLink:
    """Keeps a client of the cluster that runs in this process's Ray cluster.

    A controller that is restarted keeps its clients; this is for a cluster that was taken down.

    Args:
        model: What the gateway renders prompts for: model and longest request.
    """

    def __init__(self, model: tuple[str, int | None]) -> None:
        self._model = model
        self._client: ClusterClient | None = None
        self._broken: Exception | None = None
        self._known = asyncio.Event()

    def client(self) -> ClusterClient:
        """See `engine_client.Link`."""
        if self._client is None:
            raise NoClusterError("no Tiebreak cluster runs here: bring it up with `tiebreak up`")
        return self._client

    @property
    def load(self) -> ClusterLoad | None:
        """See `engine_client.Link`."""
        return None if self._client is None else self._client.load

    async def snapshot(self) -> ClusterSnapshot:
        """See `dashboard.Insight`."""
        return await self.client().snapshot()

    async def explain(self, request_id: str, tenant: str | None) -> Explanation | None:
        """See `dashboard.Insight`."""
        return await self.client().explain(request_id, tenant)

    def check(self) -> None:
        """Raise when this gateway cannot serve the cluster that there is now.

        Raises:
            OtherModelError: It serves another model: the gateway has to be built anew.
            Exception: What else ended the search for a cluster, which only a new process takes up.
        """
        if self._broken is not None:
            raise self._broken

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Stay connected for the block, which begins with a client if one can be had soon."""
        task = asyncio.create_task(self._stay_connected())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_CONNECTION_S):
                    await self._known.wait()
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _stay_connected(self) -> None:
        while True:
            try:
                controller = await asyncio.to_thread(connect_controller)
                self._check_model(await config_of(controller))
                async with ClusterClient(controller, follows_load=True) as client:
                    self._client = client
                    self._known.set()
                    reason = await client.lost()
                logger.warning("the cluster is gone, looking for another: %s", reason)
            except (NoClusterError, ray.exceptions.RayError) as error:
                logger.info("no cluster to connect to: %s", error)
            except Exception as error:
                logger.exception("this gateway cannot be connected any more")
                self._broken = error
                self._known.set()
                return
            finally:
                self._client = None
            await asyncio.sleep(RECONNECT_S)

    def _check_model(self, config: ClusterConfig) -> None:
        found = model_of(config)
        if found != self._model:
            raise OtherModelError(f"the cluster serves {found}, this gateway {self._model}")


def model_of(config: ClusterConfig) -> tuple[str, int | None]:
    """What prompts are rendered for."""
    return config.model, config.replicas.max_model_len


async def config_of(controller: Any) -> ClusterConfig:
    """The configuration that a cluster was started with."""
    return ClusterConfig(**await controller.config.remote())
