"""Ray's object store and the disk behind it are full: requests wait for room and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from jobs.streams import Streams
from tests.faults.aftermath import assert_nothing_left
from tests.faults.clusters import STEP_TIME, load, local_cluster, play, simulated

pytestmark = pytest.mark.faults

REPLICAS, SLOTS = 2, 8
STORE_BYTES = 80 << 20
"""About the least that Ray takes."""

SMALLEST = 200 << 10
"""Bytes of an object that Ray does not keep in its owner's memory."""

FULL_DISK = {"local_fs_capacity_threshold": 1e-6}
"""From this share of its bytes in use on, Ray takes a disk for full."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    quick = {"engine_args": {"step_time": {**STEP_TIME, "per_prefill_token_s": 1e-5}}}
    config = simulated(REPLICAS, SLOTS, quick, client_timeout_s=20.0)
    with local_cluster(
        config, object_store_memory=STORE_BYTES, _system_config=FULL_DISK
    ) as controller:
        yield controller


def fill() -> list[Any]:
    """Take all room in the object store and on disk, for as long as the list is kept.

    It ends only when Ray has refused objects of each size.
    """
    held = []
    size = STORE_BYTES // 4
    while size > SMALLEST:
        try:
            held.append(ray.put(np.zeros(size, np.uint8)))
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
            size //= 2
    return held


def test_nothing_is_lost_while_the_store_is_full(cluster: Any) -> None:
    async def scenario(streams: Streams) -> None:
        streams.start(load("running", SLOTS, tokens=300, prompt_tokens=500))
        await streams.all_have(5)
        held = await asyncio.to_thread(fill)
        short = streams.start(load("short", SLOTS, tokens=30))
        await streams.until(lambda: all(s.ended for s in short))
        large = streams.start(load("long", SLOTS, tokens=30, prompt_tokens=5000))
        large += streams.start(load("many", 400, tokens=3, prompt_tokens=200))
        await asyncio.sleep(1.0)
        assert not any(s.error for s in large)
        held.clear()

    play(cluster, scenario)
    assert_nothing_left(cluster, REPLICAS)
