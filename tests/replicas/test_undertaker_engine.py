"""A replica with a real vLLM engine that is suspended whole, killed and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.cluster.replica_owner import Keeper, Reports
from tests.local_ray import local_ray

pytestmark = [pytest.mark.engine, pytest.mark.faults]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_no_process_of_a_frozen_engine_is_left() -> None:
    kept = Keeper(
        Reports.remote(),
        engine="vllm",
        device="cpu",
        count=1,
        max_model_len=256,
        kv_cache_gib=0.1,
    )
    try:
        kept.set.start()
        await kept.set.settled()
        assert kept.states() == {"replica-0": "ready"}, kept.set.members[0].error
        actor = psutil.Process(kept.pid("replica-0"))
        engine = actor.children(recursive=True)
        assert len(engine) > 1, "an engine core and what it needs"
        for process in [actor, *engine]:
            with contextlib.suppress(ProcessLookupError):  # a helper may just have ended
                os.kill(process.pid, signal.SIGSTOP)
        kept.set.kill("replica-0")
        await kept.until(lambda: not any(map(lives, [actor, *engine])))
        async with asyncio.timeout(180):  # a whole engine starts
            while kept.states() != {"replica-0.1": "ready"}:
                await asyncio.sleep(0.1)
        second = psutil.Process(kept.pid("replica-0.1")).children(recursive=True)
        assert second
    finally:
        await kept.set.stop()
    await kept.until(lambda: not any(map(lives, second)))
