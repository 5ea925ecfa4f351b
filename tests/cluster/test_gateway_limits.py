"""The endpoint of a cluster that has too much to do, or that is not there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from cluster.lifecycle import running_cluster, stop_controller
from tests.cluster.endpoint import CHAT, Endpoint, endpoint

LIMIT = 4


@pytest.fixture(scope="module")
def served() -> Iterator[Endpoint]:
    engine_args = {"output_median_tokens": 2000.0, "output_log_sigma": 0.0}
    replicas = {"max_num_seqs": 1, "engine_args": engine_args}
    with endpoint(replicas, queue={"online_requests": LIMIT}) as running:
        yield running


async def ask_at_once(served: Endpoint, count: int, stream: bool) -> list[httpx.Response]:
    # Long answers, so that few leave the queue while a slow machine is still asking.
    body = {**CHAT, "ignore_eos": True, "max_tokens": 200, "stream": stream}
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
        requests = (http.post("/v1/chat/completions", json=body) for _ in range(count))
        return list(await asyncio.gather(*requests))


@pytest.mark.parametrize("stream", [False, True])
def test_more_than_may_wait_is_refused_for_now(served: Endpoint, stream: bool) -> None:
    answers = asyncio.run(ask_at_once(served, 40, stream))
    refused = [a for a in answers if a.status_code == 429]
    assert {a.status_code for a in answers} == {200, 429}
    # Besides the queue: the engine's slot and what is sent ahead of it, or left meanwhile.
    assert len(refused) >= 20
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["code"] == 429
    assert all("w" in a.text for a in answers if a.status_code == 200)
    served.quiet()


def test_offline_requests_have_a_queue_of_their_own(served: Endpoint) -> None:
    async def run() -> list[int]:
        body = {**CHAT, "max_tokens": 2, "request_class": "offline"}
        async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
            requests = (http.post("/v1/chat/completions", json=body) for _ in range(20))
            return [a.status_code for a in await asyncio.gather(*requests)]

    assert asyncio.run(run()) == [200] * 20
    served.quiet()


def test_a_stream_of_messages_that_runs_out_of_time_says_so(served: Endpoint) -> None:
    body = {**CHAT, "max_tokens": 1500, "stream": True}
    with served.client() as http:
        cut = http.post("/v1/messages", json=body, headers={"x-request-timeout": "4"})
    assert cut.status_code == 200
    begun, _, told = cut.text.partition("event: error\ndata: ")
    assert "content_block_delta" in begun
    assert "was not finished within its 4 s" in json.loads(told)["error"]["message"]
    served.quiet()


def test_a_cluster_that_went_down_and_came_up_is_found_again(served: Endpoint) -> None:
    with served.client() as http:
        stop_controller(served.controller)
        _wait_for(http, 503)
        gone = http.post("/v1/chat/completions", json=CHAT)
        assert gone.status_code == 503
        assert "no Tiebreak cluster runs" in gone.json()["error"]["message"]
        with running_cluster(served.config) as (controller, joined):
            assert not joined
            _wait_for(http, 200)
            answer = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2})
            assert answer.status_code == 200
            # The answer comes from the replica, whose report may come later.
            assert replace(served, controller=controller).quiet().finished == 1


def _wait_for(http: httpx.Client, status: int) -> None:
    for _ in range(600):
        if http.get("/health").status_code == status:
            return
        time.sleep(0.1)
    raise AssertionError(f"/health never answered {status}")
