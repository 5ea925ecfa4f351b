"""A client that stops for a while: suspended, starved, or at a breakpoint."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.lifecycle import running_cluster
from policies.request import RequestClass

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_here")]

CLIENT_TIMEOUT_S = 3.0
"""More than a busy machine lets a client wait that nobody stops."""

REPLICAS, SLOTS = 2, 4


def request(number: int) -> GenerationRequest:
    # The first to start end after the client was given up, all but one, so that these are dropped
    # with tokens that the client has (1900 take about 12 s); the others wait.
    long = 0 < number < REPLICAS * SLOTS
    return GenerationRequest(
        request_id=f"r{number}",
        prompt_token_ids=[(number * 31 + k) % 4000 for k in range(20)],
        max_tokens=2000,
        sampling={"extra_args": {"simulated_output_tokens": 1900 if long else 60 + number}},
        request_class=RequestClass.OFFLINE,
    )


async def complete(controller: Any, requests: list[GenerationRequest], stop: bool) -> Any:
    async with ClusterClient(controller) as client:
        tasks = [asyncio.create_task(client.complete(r)) for r in requests]
        if stop:
            while not any(c.received_tokens and not c.done for c in client._calls.values()):
                await asyncio.sleep(0.02)
            time.sleep(3 * CLIENT_TIMEOUT_S)
        async with asyncio.timeout(120):
            completions = list(await asyncio.gather(*tasks))
            # What the replicas aborted reaches the controller with their next reports.
            while (status := await client.status()).running:
                await asyncio.sleep(0.05)
            return completions, status


def test_a_client_that_was_stopped_goes_on_where_it_was() -> None:
    config = parse_config(
        {
            "client_timeout_s": CLIENT_TIMEOUT_S,
            "replicas": {
                "engine": "simulated",
                "count": REPLICAS,
                "max_num_seqs": SLOTS,
                "look_ahead": 0,  # nothing waits inside an engine, so that nothing is recalled
            },
        }
    )
    requests = [request(i) for i in range(32)]
    with running_cluster(config) as (controller, _):
        undisturbed, _ = asyncio.run(complete(controller, requests, stop=False))
        stopped, status = asyncio.run(complete(controller, requests, stop=True))
    assert all(isinstance(c, Completion) and not c.error for c in stopped)
    assert [c.token_ids for c in stopped] == [c.token_ids for c in undisturbed]
    again = [c for c in stopped if c.attempts > 1]
    assert any(c.recomputed_tokens for c in again), "none was dropped while it ran"
    assert any(not c.recomputed_tokens for c in again), "none was dropped while it waited"
    assert all(c.attempts == 1 for c in undisturbed)
    assert not status.waiting
    assert not status.recalls
