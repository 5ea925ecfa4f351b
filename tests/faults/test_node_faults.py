"""A node that goes away with everything on it: what ran there goes on where there is room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from cluster.lifecycle import running_cluster
from cluster.messages import NAMESPACE
from jobs.streams import Streams
from tests.faults.aftermath import assert_nothing_left, status_of, wait_for, wait_until_whole
from tests.faults.clusters import load, play, simulated
from tests.faults.processes import inside, replica

pytestmark = pytest.mark.faults

REPLICAS, SLOTS = 3, 6
ROOM = {"room_for_replicas": 2.0}
"""Of a node: two nodes hold the three replicas, one does not."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Two Ray nodes on this machine, and the cluster on them."""

    ray: RayCluster
    controller: Any

    def away(self) -> Any:
        """The node that this process is not connected to."""
        (node,) = self.ray.worker_nodes
        return node

    def on(self, node: Any) -> list[str]:
        """Replicas of that node."""
        return [
            r.replica_id
            for r in status_of(self.controller).replicas
            if r.state == "ready"
            and inside(replica(r.replica_id), lambda _: _node_id()) == node.node_id
        ]


def _node_id() -> str:
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    ray_cluster = RayCluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "resources": ROOM, "include_dashboard": False},
    )
    try:
        ray_cluster.add_node(num_cpus=2, resources=ROOM)
        ray.init(address=ray_cluster.address, namespace=NAMESPACE, log_to_driver=False)
        config = simulated(
            REPLICAS, SLOTS, {"resources": {"room_for_replicas": 1.0}}, client_timeout_s=20.0
        )
        with running_cluster(config) as (controller, _):
            yield Nodes(ray_cluster, controller)
    finally:
        ray.shutdown()
        ray_cluster.shutdown()


def lose(nodes: Nodes) -> None:
    """Every process of the other node ends at once, as when its power is cut."""
    node = nodes.away()
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    victims = [*raylet.children(recursive=True), raylet]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends idle workers by itself
            victim.kill()
    _, alive = psutil.wait_procs(victims, timeout=60)
    assert not alive, f"SIGKILL did not end {alive}"
    with contextlib.suppress(AssertionError):  # Ray finds nothing left to kill
        nodes.ray.remove_node(node, allow_graceful=False)


def test_what_ran_on_a_lost_node_goes_on_elsewhere(nodes: Nodes) -> None:
    wait_until_whole(nodes.controller, REPLICAS)
    lost = nodes.on(nodes.away())
    assert lost, "a node without replicas is not worth losing"

    async def scenario(streams: Streams) -> None:
        streams.start(load("node", REPLICAS * SLOTS, tokens=400))
        await streams.all_have(10)
        await asyncio.to_thread(lose, nodes)
        streams.start(load("newcomers", 6, tokens=20))

    play(nodes.controller, scenario)
    status = wait_for(
        nodes.controller,
        lambda s: [r.state for r in s.replicas].count("ready") == 2,
        "two replicas on the node that is left",
    )
    assert "failed" not in {r.state for r in status.replicas}, "the third waits for room"
    nodes.ray.add_node(num_cpus=2, resources=ROOM)
    assert_nothing_left(nodes.controller, REPLICAS)
