"""A cluster of its own, with or without the OpenAI endpoint, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from cluster.config import ClusterConfig, parse_config
from cluster.lifecycle import running_cluster
from cluster.messages import NAMESPACE
from jobs.errors import InputError
from jobs.serve import deploy, withdraw

PROCESSES = {
    "controller": "ray::Controller",
    "gateway": "ray::ServeReplica",
    "replica": "ray::ReplicaActor",
    "predictor": "ray::PredictorActor",
    "proxy": "ray::ProxyActor",
}
"""How the titles of a cluster's processes begin."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where it listens and what is behind it.

    Attributes:
        url: Of the endpoint, without `/v1`.
        model: Name that requests must give.
        controller: Of the cluster.
    """

    url: str
    model: str
    controller: Any


@contextlib.contextmanager
def own_ray() -> Iterator[None]:
    """A Ray on this machine for the block."""
    ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def own_cluster(config: ClusterConfig) -> Iterator[Any]:
    """The controller of a cluster that is brought up for the block, in a Ray of its own.

    Raises:
        InputError: A Ray address is configured and a cluster runs there.
    """
    ray_here = own_ray() if config.ray.address is None else contextlib.nullcontext()
    with ray_here, running_cluster(config) as (controller, joined):
        if joined:
            raise InputError("a cluster is running already: take it down with `tiebreak down`")
        yield controller


@contextlib.contextmanager
def endpoint(config: ClusterConfig) -> Iterator[Endpoint]:
    """A cluster of its own, and its endpoint at a free port.

    Raises:
        InputError: See `own_cluster`.
    """
    with own_cluster(config) as controller, gateway_of(config) as url:
        yield Endpoint(url, config.gateway.served_model_name or config.model, controller)


@contextlib.contextmanager
def gateway_of(config: ClusterConfig) -> Iterator[str]:
    """Gateway processes on the cluster that is up, at a free port; their address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gateway = config.gateway.model_copy(update={"host": "127.0.0.1", "port": port})
    deploy(gateway, config.model)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        withdraw()


def configured(
    config: ClusterConfig, replicas: Mapping[str, Any], **sections: Mapping[str, Any]
) -> ClusterConfig:
    """The configuration with these fields of its sections, and forecasts by the prior."""
    values = config.model_dump(mode="json", exclude_unset=True)
    for name, fields in {
        "replicas": replicas,
        "predictor": {"network": "none"},
        **sections,
    }.items():
        values[name] = {**values.get(name, {}), **fields}
    return parse_config(values)


def processes(kinds: Sequence[str] = tuple(PROCESSES)) -> dict[str, list[psutil.Process]]:
    """Processes of the cluster that was brought up here, by kind."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in kinds}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            for kind in kinds:
                if title.startswith(PROCESSES[kind]):
                    found[kind].append(process)
    return found
