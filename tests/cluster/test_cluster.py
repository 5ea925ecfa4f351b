"""Controller, replicas and clients together: real Ray, simulated engines."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import ray

from cluster.api import Cluster
from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient, ClusterLostError
from cluster.config import ClusterConfig, parse_config
from cluster.lifecycle import StartError, running_cluster
from cluster.messages import NAMESPACE, ClusterStatus
from policies.request import RequestClass

pytestmark = pytest.mark.usefixtures("ray_here")


def simulated(count: int = 2, **replicas: Any) -> ClusterConfig:
    return parse_config(
        {"replicas": {"engine": "simulated", "count": count, "max_num_seqs": 8, **replicas}}
    )


def prompt(number: int, length: int = 20) -> list[int]:
    return [(number * 31 + k) % 4000 for k in range(length)]


def generation(
    number: int, tokens: int = 40, length: int = 20, cap: int = 400
) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"r{number}",
        prompt_token_ids=prompt(number, length),
        max_tokens=cap,
        sampling={"extra_args": {"simulated_output_tokens": tokens}},
        request_class=RequestClass.OFFLINE,
    )


async def complete_all(controller: Any, requests: list[GenerationRequest]) -> list[Completion]:
    async with ClusterClient(controller) as client:
        return list(await asyncio.gather(*(client.complete(r) for r in requests)))


def quiet(controller: Any) -> ClusterStatus:
    """The status once nothing waits or runs, by our ledgers and the engines' account (I3)."""
    for _ in range(1200):
        status: ClusterStatus = ray.get(controller.status.remote())
        engines = [r.engine_load.running + r.engine_load.waiting for r in status.replicas]
        if not (status.waiting or status.running or any(engines)):
            return status
        time.sleep(0.05)
    raise AssertionError(f"work is left: {status}")


def test_every_request_completes_and_the_ledgers_are_empty_afterwards() -> None:
    with running_cluster(simulated()) as (controller, joined):
        assert not joined
        requests = [generation(i, tokens=1 + 7 * i) for i in range(40)]
        completions = asyncio.run(complete_all(controller, requests))
        status = quiet(controller)
    assert [len(c.token_ids) for c in completions] == [1 + 7 * i for i in range(40)]
    assert {c.finish_reason for c in completions} == {"stop"}
    assert {c.replica_id for c in completions} == {"replica-0", "replica-1"}
    assert status.finished == 40
    assert [r.used_blocks for r in status.replicas] == [0, 0]
    assert [r.engine_load.kv_usage for r in status.replicas] == [0.0, 0.0]


def test_long_prompts_travel_by_reference_and_arrive_whole() -> None:
    with running_cluster(simulated(count=1)) as (controller, _):
        short = [generation(i, tokens=5, length=10) for i in range(3)]
        long = [generation(10 + i, tokens=5, length=900 + i) for i in range(3)]
        completions = asyncio.run(complete_all(controller, [*short, *long]))
    assert [c.prompt_tokens for c in completions] == [10, 10, 10, 900, 901, 902]
    # A simulated answer is a function of its prompt, so equal answers mean that prompts were mixed.
    assert len({tuple(c.token_ids) for c in completions}) == 6


def test_a_killed_replica_costs_time_but_no_token() -> None:
    requests = [generation(i, tokens=390) for i in range(12)]
    with running_cluster(simulated()) as (controller, _):
        undisturbed = asyncio.run(complete_all(controller, requests))

    async def disturbed(controller: Any) -> list[Completion]:
        async with ClusterClient(controller) as client:
            tasks = [asyncio.create_task(client.complete(r)) for r in requests]
            async with asyncio.timeout(60):
                while not any(
                    call.replica_id == "replica-0" and call.received_tokens
                    for call in client._calls.values()
                ):
                    await asyncio.sleep(0.01)
            ray.kill(ray.get_actor("replica-0", namespace=NAMESPACE))
            return list(await asyncio.gather(*tasks))

    with running_cluster(simulated()) as (controller, _):
        completions = asyncio.run(disturbed(controller))
        status = quiet(controller)
        for _ in range(600):
            if all(r.state == "ready" for r in status.replicas):
                break
            time.sleep(0.1)
            status = ray.get(controller.status.remote())
    assert any(c.attempts == 2 for c in completions), "the kill came too late to matter"
    assert [c.text for c in completions] == [c.text for c in undisturbed]
    assert [c.token_ids for c in completions] == [c.token_ids for c in undisturbed]
    assert sorted(r.replica_id for r in status.replicas) == ["replica-0.1", "replica-1"]
    assert all(r.state == "ready" for r in status.replicas), "the lost replica was replaced"


def test_a_seeded_request_runs_again_from_the_start_and_its_text_stays_whole() -> None:
    seeded = generation(1, tokens=120)
    seeded.sampling["seed"] = 7

    async def run(controller: Any, kill: bool) -> str:
        text = ""
        async with ClusterClient(controller) as client:
            killed = not kill
            async for delta in client.generate(seeded):
                text += delta.text
                if not killed and len(text) > 20:
                    killed = True
                    ray.kill(ray.get_actor("replica-0", namespace=NAMESPACE))
        return text

    with running_cluster(simulated(count=1)) as (controller, _):
        whole = asyncio.run(run(controller, kill=False))
        assert asyncio.run(run(controller, kill=True)) == whole


def test_an_abandoned_stream_frees_the_replica() -> None:
    async def abandon(controller: Any) -> None:
        async with ClusterClient(controller) as client:
            stream = client.generate(generation(1, tokens=1900, cap=2000))
            async for _ in stream:
                break
            await stream.aclose()
            for _ in range(1200):
                status = await client.status()
                if not status.running:
                    assert not status.finished, "it ran to its end"
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("the request still runs")

    with running_cluster(simulated(count=1)) as (controller, _):
        asyncio.run(abandon(controller))


def test_an_impossible_request_fails_alone_and_names_the_limit() -> None:
    with running_cluster(simulated(count=1, max_model_len=256)) as (controller, _):
        good, bad = asyncio.run(
            complete_all(controller, [generation(1, cap=100), generation(2, cap=5000)])
        )
    assert good.finish_reason == "stop"
    assert bad.finish_reason == "error"
    assert "needs 5020 tokens" in bad.error
    assert "hold 256" in bad.error


def test_a_lost_controller_is_an_error_of_the_cluster_and_not_of_the_requests() -> None:
    async def lose(controller: Any) -> None:
        async with ClusterClient(controller) as client:
            # What has all its tokens before the loss is told has ended well: it takes long.
            endless = generation(1, tokens=1900, cap=2000)
            call = asyncio.create_task(client.complete(endless))
            await asyncio.sleep(0.3)
            ray.kill(controller)
            with pytest.raises(ClusterLostError, match="controller is gone"):
                await call
            with pytest.raises(ClusterLostError):
                await client.complete(generation(2))

    with running_cluster(simulated(count=1)) as (controller, _):
        asyncio.run(lose(controller))


def test_another_client_with_the_same_id_takes_the_request_over() -> None:
    async def run(controller: Any) -> Completion:
        first = ClusterClient(controller)
        await first.__aenter__()
        wanted = generation(1, tokens=800, cap=1000)
        abandoned = asyncio.create_task(first.complete(wanted))
        async with asyncio.timeout(60):
            while not (await first.status()).running:
                await asyncio.sleep(0.02)
        async with ClusterClient(controller) as second:
            completion = await second.complete(wanted)
        abandoned.cancel()
        await first.__aexit__()
        return completion

    with running_cluster(simulated(count=1)) as (controller, _):
        completion = asyncio.run(run(controller))
        status = quiet(controller)
    assert len(completion.token_ids) == 800
    assert status.finished == 1


def test_a_cluster_that_cannot_start_says_why_in_one_line() -> None:
    config = simulated(count=2, engine_args={"no_such_option": 1})
    with pytest.raises(StartError, match=r"none of 2 replicas could be started.*no_such_option"):
        running_cluster(config).__enter__()


def test_the_python_api_yields_completions_by_ordinal() -> None:
    config = simulated()
    with Cluster(config) as cluster:
        prompts = [f"Say {n}." for n in range(10)]
        completions = list(cluster.generate(prompts, max_tokens=30))
        assert quiet(cluster._controller).finished == 10
    assert sorted(int(c.request_id) for c in completions) == list(range(10))
    assert all(1 <= len(c.token_ids) <= 30 for c in completions)
