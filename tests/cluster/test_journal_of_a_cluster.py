"""A journal of a cluster that runs: it replays to the same decisions, and nobody needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.client import ClusterClient
from cluster.journal_events import Decided, Submitted
from cluster.journal_reader import JournalReader
from cluster.lifecycle import running_cluster
from cluster.messages import NAMESPACE, ClusterStatus
from jobs.replay import replay
from tests.cluster.prometheus_server import until as until_holds
from tests.cluster.test_cluster import generation, simulated
from tests.cluster.test_scale import until


def works(status: ClusterStatus, replica_id: str) -> bool:
    return any(r.running for r in status.replicas if r.replica_id == replica_id)


async def disturb(controller: Any) -> None:
    """Requests of which some are abandoned, on replicas of which one is killed."""
    async with ClusterClient(controller) as client:
        tasks = [
            asyncio.create_task(client.complete(generation(i, tokens=100 + 9 * i)))
            for i in range(30)
        ]
        # All have arrived, and the replicas are full of requests that will take a while yet.
        await until(client, lambda s: s.waiting + s.running + s.finished == 30 and s.running > 12)
        for task in tasks[12:24]:
            task.cancel()
        await until(client, lambda s: s.waiting + s.running <= 18 and works(s, "replica-0"))
        ray.kill(ray.get_actor("replica-0", namespace=NAMESPACE))
        await asyncio.gather(*tasks[:12], *tasks[24:])


@pytest.mark.usefixtures("ray_here")
def test_a_real_run_replays_to_the_same_decisions(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal"
    config = simulated().model_copy(update={"journal": str(path)})
    with running_cluster(config) as (controller, _):
        asyncio.run(disturb(controller))
        status: ClusterStatus = ray.get(controller.status.remote())
    assert status.journal == str(path)
    outcome = replay(path)
    assert outcome.difference is None
    assert (outcome.sessions, outcome.torn) == (1, 0)
    entries = list(JournalReader(path))
    assert {"Lost", "Cancelled", "Progressed"} <= {type(e).__name__ for e in entries}
    attempts = [a.attempt for e in entries if isinstance(e, Decided) for a in e.actions]
    assert 0 in attempts, "a running request was recalled"
    assert 2 in attempts, "a request went on after its replica was killed"
    assert outcome.decisions == len(attempts)
    submitted = [e for e in entries if isinstance(e, Submitted)]
    assert {e.request_id for e in submitted} == {f"r{i}" for i in range(30)}


@pytest.mark.usefixtures("ray_here")
def test_a_controller_lives_without_its_journal() -> None:
    config = simulated(count=1).model_copy(update={"journal": "/dev/full"})
    with running_cluster(config) as (controller, _):

        def journal() -> str:
            status: ClusterStatus = ray.get(controller.status.remote())
            return status.journal

        until_holds(lambda: "recording ended: No space left" in journal(), "it is still recorded")

        async def run() -> int:
            async with ClusterClient(controller) as client:
                return len((await client.complete(generation(1, tokens=25))).token_ids)

        assert asyncio.run(run()) == 25
