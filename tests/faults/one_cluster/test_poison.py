"""Requests that kill every engine that runs them are found, and fail alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.messages import Cause
from jobs.known_answers import request_of
from jobs.streams import Streams
from tests.faults.aftermath import assert_all_whole
from tests.faults.clusters import load
from tests.faults.counts import counted
from tests.faults.one_cluster import REPLICAS, SLOTS
from tests.faults.poison import MARK

pytestmark = pytest.mark.faults

COUNT = 2
"""Poisoned requests among the others."""


def poison(name: str, number: int) -> GenerationRequest:
    """A request of which every engine dies as soon as it computes its prompt."""
    request = request_of(name, number, output_tokens=100)
    request.prompt_token_ids[0] = MARK
    return request


async def poisoned(controller: Any) -> None:
    async with ClusterClient(controller) as client:
        streams = Streams(client)
        streams.start(load("before", REPLICAS * SLOTS - COUNT, tokens=400))
        await streams.all_have(5)
        bad = streams.start([poison("poison", number) for number in range(COUNT)])
        streams.start(load("behind", 12, tokens=30))
        await streams.all_ended()
        assert [s.error and s.error.cause for s in bad] == [Cause.POISON] * COUNT
        assert [s.token_ids for s in bad] == [[]] * COUNT
        assert_all_whole([s for s in streams.streams if s not in bad])


def test_each_fails_after_three_engines_and_the_innocent_go_on(whole: Any, deaths: Path) -> None:
    before = len(deaths.read_text().splitlines())
    with counted(whole, request_poisoned=COUNT):
        asyncio.run(poisoned(whole))
    assert 1 <= len(deaths.read_text().splitlines()) - before <= 3 * COUNT
