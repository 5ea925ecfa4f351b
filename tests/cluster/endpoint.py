"""An endpoint to talk HTTP to: Ray, a cluster and a gateway process, for a module's tests."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

from cluster.config import ClusterConfig, parse_config
from cluster.endpoint.model_options import APPLICATION
from cluster.gateway import application
from cluster.messages import ClusterStatus
from tests.local_ray import cluster_of

MODEL = "smollm2-135m-instruct"

SIMULATED = {"engine": "simulated", "count": 1, "max_num_seqs": 16, "max_model_len": 2048}

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}]}


@dataclass(frozen=True)
class Endpoint:
    """Where a gateway listens and what is behind it."""

    url: str
    controller: Any
    config: ClusterConfig

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of it."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def status(self) -> ClusterStatus:
        """What the controller knows."""
        status: ClusterStatus = ray.get(self.controller.status.remote())
        return status

    def quiet(self) -> ClusterStatus:
        """The status once nothing waits or runs, by our ledgers and the engines' account (I3)."""
        for _ in range(1200):
            status = self.status()
            loads = [r.engine_load.running + r.engine_load.waiting for r in status.replicas]
            if not (status.waiting or status.running or any(loads)):
                return status
            time.sleep(0.05)
        raise AssertionError(f"work is left: {status}")


@contextlib.contextmanager
def endpoint(
    replicas: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
    *,
    ray_dashboard: bool = False,
    **sections: Any,
) -> Iterator[Endpoint]:
    """A cluster with a gateway that listens itself at a free port, as `tiebreak serve` makes it."""
    held = _held_port()
    port = held.getsockname()[1]
    config = parse_config(
        {
            "predictor": {"network": "none"},
            "replicas": {**SIMULATED, **(replicas or {})},
            "gateway": {"port": port, **(gateway or {})},
            **sections,
        }
    )
    with held, cluster_of(config, include_dashboard=ray_dashboard) as controller:
        serve.start(proxy_location="Disabled")
        node = ray.util.get_node_ip_address()
        serve.run(application(config.gateway, node), name=APPLICATION)
        try:
            yield Endpoint(f"http://127.0.0.1:{port}", controller, config)
        finally:
            serve.shutdown()


def _held_port() -> socket.socket:
    """A port that nobody is given by chance while a slow cluster starts; a gateway may bind it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held


def keys_file(folder: Path, **keys: str) -> str:
    """A file of API keys by tenant."""
    path = folder / "keys.txt"
    path.write_text("".join(f"{tenant}: {key}\n" for tenant, key in keys.items()))
    return str(path)
