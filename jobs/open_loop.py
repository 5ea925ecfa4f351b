"""Requests sent to a cluster at given times, whatever has become of the earlier ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.call import GenerationError, GenerationRequest
from cluster.client import ClusterClient


class RequestFailedError(RuntimeError):
    """A request of a measurement did not run to its end; the message has its error."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the sender of one request saw, in seconds from the start of the run.

    Attributes:
        request_id: Which.
        due_s: When it was meant to be sent: latencies count from here.
        first_token_s: When its first token came.
        finished_s: When its last token came.
        output_tokens: Length of its answer.
    """

    request_id: str
    due_s: float
    first_token_s: float
    finished_s: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class OpenLoopRun:
    """All requests of a run.

    Attributes:
        start_s: When it started, on this machine's monotonic clock.
        observed: In the order of the requests.
    """

    start_s: float
    observed: list[Observed]


async def run_open_loop(
    controller: Any, requests: Sequence[GenerationRequest], due_s: Sequence[float]
) -> OpenLoopRun:
    """Send each request when it is due and wait for all.

    Args:
        controller: Of the cluster.
        requests: What to send.
        due_s: When, in seconds from the start.

    Raises:
        RequestFailedError: A request ended with an error.
    """
    async with ClusterClient(controller) as client:
        await client.status()  # the connection to the controller stands before the first is due
        start_s = time.monotonic()
        waits = (
            _observe(client, request, start_s, due)
            for request, due in zip(requests, due_s, strict=True)
        )
        return OpenLoopRun(start_s, await asyncio.gather(*waits))


async def _observe(
    client: ClusterClient, request: GenerationRequest, start_s: float, due_s: float
) -> Observed:
    await asyncio.sleep(start_s + due_s - time.monotonic())
    first_token_s = 0.0
    output_tokens = 0
    try:
        async for delta in client.generate(request):
            if delta.token_ids and not output_tokens:
                first_token_s = time.monotonic() - start_s
            output_tokens += len(delta.token_ids)
    except GenerationError as error:
        raise RequestFailedError(f"request {request.request_id!r} failed: {error}") from error
    finished_s = time.monotonic() - start_s
    return Observed(request.request_id, due_s, first_token_s, finished_s, output_tokens)
