"""A Ray, and a cluster, of a test's own, of which nothing stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray

from cluster.config import ClusterConfig
from cluster.lifecycle import (
    create_controller,
    running_cluster,
    stop_controller,
    wait_for_replicas,
)
from cluster.messages import NAMESPACE


@contextlib.contextmanager
def local_ray(**options: Any) -> Iterator[Any]:
    """Ray on this machine, whatever other runs here; gives what `ray.init` told.

    Args:
        options: Of `ray.init`, over those of tests: four CPUs, no dashboard, a quiet driver.
    """
    defaults = {"num_cpus": 4, "include_dashboard": False, "log_to_driver": False}
    try:
        yield ray.init(address="local", namespace=NAMESPACE, **{**defaults, **options})
    finally:
        ray.shutdown()


@contextlib.contextmanager
def cluster_of(config: ClusterConfig, **ray_options: Any) -> Iterator[Any]:
    """The controller of a cluster in a Ray of its own."""
    with local_ray(**ray_options), running_cluster(config) as (controller, joined):
        assert not joined
        yield controller


@contextlib.contextmanager
def joinable_cluster(config: ClusterConfig, **ray_options: Any) -> Iterator[Any]:
    """The controller of a cluster that commands join instead of bringing up their own."""
    with local_ray(**ray_options):
        controller = create_controller(config, detached=True)
        try:
            wait_for_replicas(controller)
            yield controller
        finally:
            stop_controller(controller)
