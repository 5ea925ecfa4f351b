"""Replicas and the nodes that they run on: a node dies, another one joins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from cluster.messages import NAMESPACE
from tests.cluster.replica_owner import Keeper, Reports

pytestmark = pytest.mark.faults

ROOM = {"room": 1}
"""What a node has for one replica."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    started = RayCluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(address=started.address, namespace=NAMESPACE, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


async def test_replicas_of_a_dead_node_wait_for_room_and_are_replaced_there(
    nodes: RayCluster,
) -> None:
    stays, dies = (nodes.add_node(num_cpus=1, resources=ROOM) for _ in range(2))
    # Replicas end with their controller, so that must not be on the node that dies.
    reports = Reports.options(resources={"node:__internal_head__": 0.01}).remote()
    kept = Keeper(reports, count=2, resources=ROOM)
    try:
        kept.set.start()
        await kept.set.settled()
        places = {member.place.node_id: member for member in kept.set.members if member.place}
        assert set(places) == {stays.node_id, dies.node_id}
        lost = places[dies.node_id]
        # The first ones may take as long as they need; the next is to complain soon.
        whole = kept.set._actors._config
        hasty = whole.replicas.model_copy(update={"placement_timeout_s": 5.0})
        kept.set._actors._config = whole.model_copy(update={"replicas": hasty})
        name = lost.replica_id
        nodes.remove_node(dies, allow_graceful=False)
        await kept.until(lambda: bool(kept.owner.lost))
        assert kept.owner.lost == [(name, "node")]
        assert "its node has died" in lost.error
        await kept.until(lambda: "Ray found no node with room" in lost.error)
        assert lost.state == "placing"
        async with asyncio.timeout(60):
            await kept.set.settled()
        joins = nodes.add_node(num_cpus=1, resources=ROOM)
        await kept.until(lambda: lost.state == "ready")
        assert lost.place is not None
        assert lost.place.node_id == joins.node_id
        assert not lost.error
        assert len(kept.owner.lost) == 1
    finally:
        await kept.set.stop()
