"""The client: the only way into the cluster, for jobs and for the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import ray

from cluster.call import Call, Completion, GenerationRequest
from cluster.messages import (
    CONTROLLER,
    NAMESPACE,
    ClusterStatus,
    Dispatched,
    Orphaned,
    Refused,
    Submission,
)
from policies.request import RequestClass
from replicas.protocol import Delta, Generation, PromptSlice, pack_tokens

logger = logging.getLogger(__name__)

INLINE_PROMPT_BYTES = 1024
"""Prompts up to this size travel inside the submission; longer ones by object reference."""

CHUNK_BYTES = 512 * 1024
"""Long prompts that are submitted together share objects of about this size."""

SUBMIT_BATCH = 1024
"""Most submissions of one message to the controller."""

UNAVAILABLE_RETRY_S = 0.5
"""Pause before an actor that is out of reach is asked again."""


class NoClusterError(RuntimeError):
    """No Tiebreak cluster runs where one was looked for."""


class ClusterLostError(NoClusterError):
    """The controller is gone; what was in flight has no result and may be submitted again."""


class ClusterClient:
    """Submits requests, receives their tokens, and keeps every request alive until it has ended.

    Tokens come straight from the replicas, one long poll per replica that runs something of ours;
    decisions and losses come from the controller, by one long poll. Use it on one event loop.

    Example:
        async with ClusterClient(connect_controller()) as client:
            completion = await client.complete(request)
    """

    def __init__(self, controller: Any) -> None:
        self.client_id = f"client-{uuid.uuid4().hex[:12]}"
        self._controller = controller
        self._lost = ""
        self._calls: dict[str, Call] = {}
        self._unsent: list[Call] = []
        self._abandoned: list[str] = []
        self._unsent_filled = asyncio.Event()
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> ClusterClient:
        self._tasks = [
            asyncio.create_task(self._until_it_fails(self._submit_forever())),
            asyncio.create_task(self._until_it_fails(self._follow_controller())),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in [*self._tasks, *self._readers.values()]:
            task.cancel()
        abandoned = [*self._abandoned, *(i for i, c in self._calls.items() if not c.done)]
        with contextlib.suppress(ray.exceptions.RayError):
            await self._controller.leave.remote(self.client_id, abandoned)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Run a request and yield its output as it comes; the last delta has a `finish_reason`.

        Closing the iterator early aborts the request.

        Raises:
            ValueError: A request with this id is in flight.
            ClusterLostError: The controller is gone.
        """
        call = self._begin(request)
        try:
            while True:
                delta = await call.deltas()
                self._check_not_lost()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._forget(call)

    async def complete(self, request: GenerationRequest) -> Completion:
        """Run a request to its end. An error is in the completion, not raised.

        Raises:
            ValueError: A request with this id is in flight.
            ClusterLostError: The controller is gone.
        """
        call = self._begin(request)
        try:
            while not call.done:
                await call.deltas()
                self._check_not_lost()
            return call.completion()
        finally:
            self._forget(call)

    async def status(self) -> ClusterStatus:
        """What the controller knows now."""
        status: ClusterStatus = await self._controller.status.remote()
        return status

    def _check_not_lost(self) -> None:
        if self._lost:
            raise ClusterLostError(self._lost)

    def _begin(self, request: GenerationRequest) -> Call:
        self._check_not_lost()
        if request.request_id in self._calls:
            raise ValueError(f"request id {request.request_id!r} is in flight already")
        if not request.prompt_token_ids or request.max_tokens < 1:
            raise ValueError(
                f"request {request.request_id!r} has {len(request.prompt_token_ids)} prompt tokens "
                f"and max_tokens {request.max_tokens}: both must be at least 1"
            )
        call = Call(request)
        self._calls[request.request_id] = call
        self._send(call)
        return call

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.request.request_id, None)
        if not call.done:
            call.done = True
            self._abandoned.append(call.request.request_id)
            self._unsent_filled.set()

    # To the controller.

    def _send(self, call: Call) -> None:
        self._unsent.append(call)
        self._unsent_filled.set()

    async def _submit_forever(self) -> None:
        while True:
            await self._unsent_filled.wait()
            batch, self._unsent = self._unsent[:SUBMIT_BATCH], self._unsent[SUBMIT_BATCH:]
            abandoned, self._abandoned = self._abandoned, []
            if not self._unsent:
                self._unsent_filled.clear()
            submissions = self._submissions([call for call in batch if not call.done])
            if submissions:
                await _answer(self._controller.submit, self.client_id, submissions)
            if abandoned:
                await _answer(self._controller.cancel, self.client_id, abandoned)

    def _submissions(self, calls: list[Call]) -> list[Submission]:
        received = [call.received_tokens for call in calls]
        prompts = pack_prompts(
            [
                call.request.prompt_token_ids + tokens
                for call, tokens in zip(calls, received, strict=True)
            ]
        )
        return [
            self._submission(call, prompt, len(tokens))
            for call, prompt, tokens in zip(calls, prompts, received, strict=True)
        ]

    def _submission(
        self, call: Call, prompt: bytes | PromptSlice, generated_tokens: int
    ) -> Submission:
        request = call.request
        return Submission(
            generation=Generation(
                request_id=request.request_id,
                client_id=self.client_id,
                prompt=prompt,
                generated_tokens=generated_tokens,
                sampling={**request.sampling, "max_tokens": request.max_tokens},
                attempt=call.attempt,
                interactive=request.request_class is RequestClass.ONLINE,
            ),
            prompt_tokens=len(request.prompt_token_ids),
            max_tokens=request.max_tokens,
            request_class=request.request_class,
            tenant=request.tenant,
        )

    # From the controller.

    async def _follow_controller(self) -> None:
        received = 0
        while True:
            received, events = await _answer(self._controller.take, self.client_id, received)
            for event in events:
                self._handle(event)

    def _handle(self, event: Dispatched | Refused | Orphaned) -> None:
        match event:
            case Dispatched():
                call = self._calls.get(event.request_id)
                if call is not None and call.attempt == event.attempt:
                    call.dispatched(event.replica_id, event.forecast)
                    self._read(event.replica_id)
            case Refused():
                if (call := self._calls.get(event.request_id)) is not None:
                    call.fail(event.error)
            case Orphaned():
                self._resubmit(event.replica_id, event.request_ids)

    def _resubmit(self, replica_id: str, request_ids: list[str]) -> None:
        """Continue requests elsewhere after their replica was lost."""
        for request_id in request_ids:
            call = self._calls.get(request_id)
            # The replica's own connection may have told of the loss before the controller did.
            if call is None or call.done or call.replica_id not in ("", replica_id):
                continue
            if call.restart():
                self._send(call)

    async def _until_it_fails(self, work: Coroutine[Any, Any, None]) -> None:
        """Whatever ends the talk with the controller ends the calls: nobody waits in vain."""
        try:
            await work
        except ray.exceptions.RayActorError as error:
            first_line = str(error).strip().splitlines()[0]
            self._lost = f"the controller is gone, submit again once it is back: {first_line}"
        except Exception as error:
            logger.exception("the client failed")
            self._lost = f"the client failed: {error!r}"
        for call in self._calls.values():
            call.fail(self._lost)

    # From the replicas.

    def _read(self, replica_id: str) -> None:
        if replica_id not in self._readers:
            self._readers[replica_id] = asyncio.create_task(self._follow_replica(replica_id))

    async def _follow_replica(self, replica_id: str) -> None:
        received = 0
        try:
            replica = ray.get_actor(replica_id, namespace=NAMESPACE)
            while True:
                received, deltas = await _answer(replica.take, self.client_id, received)
                for delta in deltas:
                    call = self._calls.get(delta.request_id)
                    if call is not None:
                        call.receive(delta)
        except (ray.exceptions.RayActorError, ValueError) as error:
            # The controller sends an `Orphaned` for every request that was lost there.
            logger.info("replica %s is gone: %s", replica_id, error)
            self._readers.pop(replica_id, None)


async def _answer(method: Any, *args: Any) -> Any:
    """The actor's answer, asked for again while its process is alive but out of reach.

    Every call of ours may be repeated: submissions by request id, polls by batch number.

    Raises:
        RayActorError: The actor has died.
    """
    while True:
        try:
            return await method.remote(*args)
        except ray.exceptions.ActorUnavailableError:
            await asyncio.sleep(UNAVAILABLE_RETRY_S)


def connect_controller() -> Any:
    """The controller of the Ray cluster this process is connected to.

    Raises:
        NoClusterError: None runs there.
    """
    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        raise NoClusterError(
            f"no Tiebreak controller runs in the Ray cluster at "
            f"{ray.get_runtime_context().gcs_address}: start one with `tiebreak up`"
        ) from None


def pack_prompts(prompts: list[list[int]]) -> list[bytes | PromptSlice]:
    """Prompts as they travel: short ones as bytes, long ones as slices of shared objects."""
    packed = [pack_tokens(tokens) for tokens in prompts]
    travelling: list[bytes | PromptSlice] = list(packed)
    chunk: list[int] = []
    size = 0
    for index, prompt in enumerate(packed):
        if len(prompt) > INLINE_PROMPT_BYTES:
            chunk.append(index)
            size += len(prompt)
        if chunk and (size >= CHUNK_BYTES or index == len(packed) - 1):
            parts = [packed[i] for i in chunk]
            for i, part in zip(chunk, _shared(parts), strict=True):
                travelling[i] = part
            chunk, size = [], 0
    return travelling


def _shared(parts: list[bytes]) -> list[PromptSlice]:
    """Slices of one new object that holds all the parts."""
    reference = ray.put(b"".join(parts))
    stops = list(itertools.accumulate(map(len, parts)))
    return [
        PromptSlice(reference, stop - len(p), stop) for p, stop in zip(parts, stops, strict=True)
    ]
