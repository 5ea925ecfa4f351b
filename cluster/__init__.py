"""What exists once per cluster: the scheduling core, the controller, the client.

From Python:

    from cluster import Cluster

    with Cluster() as cluster:
        for completion in cluster.generate(["What is a tie-break?"], max_tokens=64):
            print(completion.text)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.api import Cluster
    from cluster.call import Completion, GenerationRequest
    from cluster.client import ClusterClient
    from cluster.config import ClusterConfig, load_config

_PLACES = {
    "Cluster": "cluster.api",
    "ClusterClient": "cluster.client",
    "ClusterConfig": "cluster.config",
    "Completion": "cluster.call",
    "GenerationRequest": "cluster.call",
    "load_config": "cluster.config",
}

__all__ = [
    "Cluster",
    "ClusterClient",
    "ClusterConfig",
    "Completion",
    "GenerationRequest",
    "load_config",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: the scheduling core must be importable without Ray.
    import importlib

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
