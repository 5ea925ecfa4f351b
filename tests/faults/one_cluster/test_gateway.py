"""Faults seen over HTTP: streams go on, and a gateway that dies takes only its own along."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import ray

from cluster.call import GenerationRequest
from cluster.config import ClusterConfig
from jobs.bench_cluster import gateway_of, processes
from jobs.http_load import HttpAnswer, HttpLoad
from jobs.known_answers import LENGTH_OPTION, answer_to, tokens_of
from tests.faults.aftermath import status_of, wait_for, wait_until_whole
from tests.faults.clusters import load, pids, ready
from tests.faults.one_cluster import REPLICAS, SLOTS
from tests.faults.processes import kill, pid_of

pytestmark = pytest.mark.faults

GATEWAYS = 2

Answers = list[tuple[GenerationRequest, HttpAnswer]]


@pytest.fixture(scope="module")
def url(cluster: Any) -> Iterator[str]:
    """Of two gateway processes at one address."""
    wait_until_whole(cluster, REPLICAS)
    config = ClusterConfig(**ray.get(cluster.config.remote()))
    gateway = config.gateway.model_copy(update={"replicas": GATEWAYS})
    with gateway_of(config.model_copy(update={"gateway": gateway})) as address:
        yield address


def body(request: GenerationRequest, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": request.prompt_token_ids,
        "max_tokens": request.max_tokens,
        "vllm_xargs": {LENGTH_OPTION: request.sampling["extra_args"][LENGTH_OPTION]},
    }


def play(
    cluster: Any,
    url: str,
    requests: Sequence[GenerationRequest],
    scenario: Callable[[Answers], Awaitable[None]],
) -> Answers:
    """Send the requests at once, play the scenario, and wait for all answers."""
    model = status_of(cluster).model

    async def played() -> Answers:
        answers = [(request, HttpAnswer(0.0)) for request in requests]
        async with HttpLoad(url) as http, asyncio.timeout(100):
            sent = [
                asyncio.create_task(http.send(body(request, model), answer=answer))
                for request, answer in answers
            ]
            await scenario(answers)
            await asyncio.gather(*sent)
        return answers

    answers = asyncio.run(played())
    wait_for(cluster, lambda s: not (s.running or s.waiting), "a cluster without requests")
    return answers


async def streaming(answers: Answers) -> None:
    while not all(answer.arrivals_s for _, answer in answers):
        await asyncio.sleep(0.02)


def assert_whole(answers: Answers) -> None:
    errors = {answer.error for _, answer in answers if answer.error}
    assert not errors
    for request, answer in answers:
        wanted = answer_to(request)
        assert tokens_of(answer.text) == wanted.token_ids, request.request_id
        assert answer.output_tokens == len(wanted.token_ids)
        assert answer.finish_reason == wanted.finish_reason


def test_a_killed_replica_and_a_killed_controller_are_not_noticed(cluster: Any, url: str) -> None:
    names = ready(cluster, REPLICAS)

    async def scenario(answers: Answers) -> None:
        await streaming(answers)
        kill(*pids(names[:1]))
        kill(pid_of(cluster))

    requests = load("http", REPLICAS * SLOTS - 4, tokens=200)
    assert_whole(play(cluster, url, requests, scenario))


def test_a_killed_gateway_takes_only_its_own_streams_along(cluster: Any, url: str) -> None:
    before = {process.pid for process in processes(["gateway"])["gateway"]}
    assert len(before) == GATEWAYS

    async def scenario(answers: Answers) -> None:
        await streaming(answers)
        kill(min(before))

    answers = play(cluster, url, load("gateway", 20, tokens=600), scenario)
    whole = [pair for pair in answers if pair[1].answered]
    assert 0 < len(whole) < len(answers), "both gateways had streams"
    assert_whole(whole)
    for request, answer in answers:
        had = tokens_of(answer.text)
        assert had == answer_to(request).token_ids[: len(had)], "what came before is right"
    assert_whole(play(cluster, url, load("afterwards", 8, tokens=20), streaming))
