"""The OpenAI endpoint: vLLM's own server over the cluster, as a Ray Serve deployment.

    serve run cluster.gateway:app
    serve run cluster.gateway:app replicas=2 api_keys=keys.txt

The arguments are the fields of the configuration's section `gateway`; what is not given is taken
from the configuration of the cluster that runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from starlette.types import ASGIApp

from cluster.client import connect_controller
from cluster.config import ClusterConfig, parse_config
from cluster.config_sections import GatewayConfig
from cluster.endpoint.api_keys import read_api_keys
from cluster.endpoint.cluster_link import ClusterLink, config_of, model_of
from cluster.endpoint.dashboard import Dashboard
from cluster.endpoint.front_door import FrontDoor
from cluster.endpoint.listener import DRAIN_S, listening
from cluster.endpoint.model_options import (
    merged,
    server_options,
    vllm_config_of,
    without_accelerator,
)
from cluster.endpoint.routes import keep_served

HEALTH_PERIOD_S = 5.0
"""How often Serve asks a gateway process whether it is well."""

MOST_ONGOING = 100_000
"""Requests in one gateway process: the cluster's queue is what bounds them."""


class Gateway:
    """One gateway process.

    Args:
        given: Fields of the section `gateway` that stand over the cluster's own.
        listens: Whether it listens at the section's address itself, besides what Serve does.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, given: Mapping[str, Any], listens: bool = False
    ) -> None:
        self._exit = contextlib.AsyncExitStack()
        config = await config_of(connect_controller())
        gateway = merged(config, given)
        self._link = ClusterLink(model_of(config))
        await self._exit.enter_async_context(self._link.connected())
        server = await build_server(config, gateway, self._link)
        await self._exit.enter_async_context(server.router.lifespan_context(server))
        dashboard = Dashboard(server, self._link, gateway.operators)
        self._app = FrontDoor(
            dashboard,
            read_api_keys(gateway.api_keys),
            gateway.max_body_bytes,
            gateway.body_timeout_s,
            gateway.request_timeout_s,
            on_shutdown=self._exit.aclose,
        )
        if listens:
            await self._exit.enter_async_context(listening(self._app, gateway.host, gateway.port))
        # First of all to end: an open page would hold up whoever waits for answers that have begun.
        self._exit.callback(dashboard.close)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve puts behind its address."""
        return self._app

    def check_health(self) -> None:
        """Asked by Serve, which replaces a gateway that raises."""
        self._link.check()


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application for `serve run` and `serve deploy`, behind Serve's own address.

    Raises:
        ConfigError: A field of the section `gateway` is unknown or out of range.
    """
    return application(parse_config({"gateway": dict(arguments)}).gateway)


def application(gateway: GatewayConfig, node: str | None = None) -> serve.Application:
    """The gateway processes.

    Args:
        gateway: Its section of the configuration; what was not set there is the cluster's.
        node: Address of the Ray node where they listen themselves; None: Serve listens for them.

    Raises:
        ConfigError: The API keys cannot be read.
    """
    read_api_keys(gateway.api_keys)
    fields = gateway.model_dump(exclude_unset=True, mode="json")
    resources = {f"node:{node}": 0.001} if node is not None else {}
    deployment: Any = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        num_replicas=gateway.replicas,
        max_ongoing_requests=MOST_ONGOING,
        ray_actor_options={"num_cpus": 0, "resources": resources},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=DRAIN_S + 5.0,
    )
    bound: serve.Application = deployment.bind(fields, listens=node is not None)
    return bound


async def build_server(config: ClusterConfig, gateway: GatewayConfig, link: ClusterLink) -> FastAPI:
    """VLLM's server over the cluster.

    Raises:
        ConfigError: VLLM refuses the model or an option.
    """
    without_accelerator()
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.renderers import renderer_from_config

    from cluster.engine_client import TASKS, ClusterEngineClient

    options = server_options(config, gateway)
    vllm_config = vllm_config_of(options)
    engine = ClusterEngineClient(
        vllm_config,
        renderer_from_config(vllm_config),
        link,
        traces=config.telemetry.otlp_endpoint is not None,
    )
    server = build_app(options, TASKS, vllm_config.model_config)
    keep_served(server)
    await init_app_state(engine, server.state, options, TASKS)
    return server
