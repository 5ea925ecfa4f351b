"""Where replicas go on several nodes with GPUs: Ray's logical resources, simulated engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from cluster.config import parse_config
from cluster.lifecycle import StartError, running_cluster
from cluster.messages import NAMESPACE
from replicas.replica import Place


@pytest.fixture(scope="module", autouse=True)
def two_gpu_nodes() -> Iterator[None]:
    nodes = RayCluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 4, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=1, num_gpus=4, resources={"fast": 2})
    ray.init(address=nodes.address, namespace=NAMESPACE, log_to_driver=False)
    yield
    ray.shutdown()
    nodes.shutdown()


def places(**replicas: object) -> list[Place]:
    config = parse_config({"replicas": {"engine": "simulated", "device": "gpu", **replicas}})
    with running_cluster(config) as (controller, _):
        status = ray.get(controller.status.remote())
        handles = [ray.get_actor(r.replica_id, namespace=NAMESPACE) for r in status.replicas]
        return list(ray.get([handle.place.remote() for handle in handles]))


def test_each_replica_has_its_own_gpus_on_one_node() -> None:
    found = places(count=4, tensor_parallel_size=2)
    by_node: dict[str, list[str]] = {}
    for place in found:
        assert len(place.gpus) == 2
        by_node.setdefault(place.node_id, []).extend(place.gpus)
    assert [sorted(gpus) for gpus in by_node.values()] == [["0", "1", "2", "3"]] * 2


def test_extra_resources_steer_the_placement() -> None:
    found = places(count=2, tensor_parallel_size=1, resources={"fast": 1})
    assert len({place.node_id for place in found}) == 1


def test_a_replica_that_fits_on_no_node_fails_with_what_is_missing() -> None:
    with pytest.raises(StartError, match=r"within 3 s: it needs 8 GPU, .* in all .*8 GPU"):
        places(count=1, tensor_parallel_size=8, placement_timeout_s=3)
