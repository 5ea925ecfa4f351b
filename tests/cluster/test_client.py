"""The client while the controller, one that a test plays, never answers or has died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import ray

from cluster.call import GenerationError, GenerationRequest
from cluster.client import ClusterClient, ClusterLostError
from cluster.messages import Cause


class Method:
    """One of an actor's methods."""

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self.remote = answer


class SilentController:
    """Accepts everything and never says what becomes of it.

    Attributes:
        left: What clients that have left gave up.
    """

    def __init__(self) -> None:
        self.left: list[str] = []
        self.submit = Method(self._submit)
        self.take = Method(self._take)
        self.leave = Method(self._leave)

    async def _submit(self, client_id: str, submissions: Any) -> int:
        return 1

    async def _take(self, *args: Any) -> Any:
        await asyncio.Event().wait()

    async def _leave(self, client_id: str, abandoned: list[str]) -> None:
        self.left += abandoned


class DeadController:
    """Every question to it ends with Ray's word that it died."""

    def __getattr__(self, name: str) -> Method:
        return Method(self._died)

    async def _died(self, *args: Any) -> Any:
        raise ray.exceptions.RayActorError


async def test_who_waits_in_another_task_when_a_client_is_left_is_told() -> None:
    controller = SilentController()
    client = ClusterClient(controller)

    async def follow() -> None:
        async for _ in client.generate(GenerationRequest("streamed", [1], 4)):
            pass

    async with client:
        completed = asyncio.create_task(client.complete(GenerationRequest("whole", [1], 4)))
        streamed = asyncio.create_task(follow())
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        completion = await completed
        with pytest.raises(GenerationError, match="client was left") as raised:
            await streamed
    assert (completion.finish_reason, completion.cause) == ("error", Cause.UNAVAILABLE)
    assert raised.value.cause is Cause.UNAVAILABLE
    assert sorted(controller.left) == ["streamed", "whole"]


async def test_a_client_that_was_left_takes_nothing_more() -> None:
    async with ClusterClient(SilentController()) as client:
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="outside of `async with client`"):
            await client.complete(GenerationRequest("r", [1], 4))


@pytest.mark.parametrize(
    "ask",
    [ClusterClient.status, ClusterClient.snapshot, lambda client: client.explain("r")],
    ids=["status", "snapshot", "explain"],
)
async def test_a_question_to_a_controller_that_died_says_so(
    ask: Callable[[ClusterClient], Awaitable[Any]],
) -> None:
    with pytest.raises(ClusterLostError, match="controller is gone"):
        await ask(ClusterClient(DeadController()))


async def test_requests_to_a_controller_that_died_say_so() -> None:
    async with asyncio.timeout(10), ClusterClient(DeadController()) as client:
        with pytest.raises(ClusterLostError, match=r"controller is gone.*submit again"):
            await client.complete(GenerationRequest("r", [1], 4))
