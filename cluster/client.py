"""The client: the only way into the cluster, for jobs and for the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

import ray

from cluster.asking import ask
from cluster.call import Call, Completion, GenerationError, GenerationRequest
from cluster.messages import (
    CONTROLLER,
    NAMESPACE,
    Cause,
    ClusterLoad,
    ClusterStatus,
    Dispatched,
    Dropped,
    Orphaned,
    Refused,
)
from cluster.replica_outputs import ReplicaOutputs
from cluster.snapshot import ClusterSnapshot, Explanation
from cluster.submissions import submissions_of
from replicas.protocol import Delta

logger = logging.getLogger(__name__)

SUBMIT_BATCH = 1024
"""Most submissions of one message to the controller."""

LEAVE_WITHIN_S = 10.0
"""Longest that a client which leaves waits for a controller that is being restarted."""

LONGEST_PATIENCE_S = 10.0
"""Longest pause before a patient request is submitted again to a full queue."""


class NoClusterError(RuntimeError):
    """No Tiebreak cluster runs where one was looked for."""


class ClusterLostError(NoClusterError):
    """The controller is gone; what was in flight has no result and may be submitted again."""


class ClusterClient:
    """Submits requests, receives their tokens, and keeps every request alive until it has ended.

    Tokens come straight from the replicas, one long poll per replica that runs something of ours;
    decisions and losses come from the controller, by one long poll. Use it on one event loop.

    A controller that died is restarted by Ray and knows only what replicas run: the client submits
    everything again that this one has not accepted, and tokens keep coming meanwhile.

    Example:
        async with ClusterClient(connect_controller()) as client:
            completion = await client.complete(request)

    Attributes:
        load: What the controller said last of its queue, if this client follows it.
    """

    def __init__(self, controller: Any, *, follows_load: bool = False) -> None:
        """Prepare a client.

        Args:
            controller: The controller's handle.
            follows_load: Whether `load` is kept up to date.
        """
        self.client_id = f"client-{uuid.uuid4().hex[:12]}"
        self.load: ClusterLoad | None = None
        self._controller = controller
        self._follows_load = follows_load
        self._controller_number = 0
        self._lost = ""
        self._is_lost = asyncio.Event()
        self._calls: dict[str, Call] = {}
        self._unsent: list[Call] = []
        self._abandoned: list[str] = []
        self._unsent_filled = asyncio.Event()
        self._outputs = ReplicaOutputs(self.client_id, self._calls, self._go_on)
        self._tasks: list[asyncio.Task[None]] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def __aenter__(self) -> ClusterClient:
        self._tasks = [
            asyncio.create_task(self._until_it_fails(self._submit_forever())),
            asyncio.create_task(self._until_it_fails(self._follow_controller())),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        self._outputs.close()
        for timer in self._timers.values():
            timer.cancel()
        self._tasks = []
        left = [call for call in self._calls.values() if not call.done]
        for call in left:
            call.fail("its client was left before it had ended", Cause.UNAVAILABLE)
        abandoned = [*self._abandoned, *(call.request.request_id for call in left)]
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN_S):
                await ask(self._controller.leave, self.client_id, abandoned)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Run a request and yield its output as it comes; the last delta has a `finish_reason`.

        Closing the iterator early aborts the request.

        Raises:
            RuntimeError: The client has not been entered.
            ValueError: A request with this id is in flight.
            GenerationError: It ended with an error.
            ClusterLostError: The controller is gone.
        """
        call = self._begin(request)
        try:
            while True:
                delta = await self._deltas(call)
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._forget(call)

    async def complete(self, request: GenerationRequest) -> Completion:
        """Run a request to its end. An error is in the completion, not raised.

        Raises:
            RuntimeError: The client has not been entered.
            ValueError: A request with this id is in flight.
            ClusterLostError: The controller is gone.
        """
        call = self._begin(request)
        try:
            with contextlib.suppress(GenerationError):
                while not call.done:
                    await self._deltas(call)
            return call.completion()
        finally:
            self._forget(call)

    async def _deltas(self, call: Call) -> Delta:
        try:
            return await call.deltas()
        except GenerationError:
            self._check_not_lost()
            raise

    async def lost(self) -> str:
        """Wait until this client can do nothing any more; returns why: the controller is gone."""
        await self._is_lost.wait()
        return self._lost

    def waits(self, request_id: str) -> bool:
        """Whether no replica has begun a request of this client, as far as is known here."""
        call = self._calls.get(request_id)
        return call is not None and call.attempt == 1 and not (call.done or call.replica_id)

    async def status(self) -> ClusterStatus:
        """What the controller knows now.

        Raises:
            ClusterLostError: The controller is gone.
        """
        status: ClusterStatus = await _told(self._controller.status)
        return status

    async def snapshot(self) -> ClusterSnapshot:
        """What the dashboards show.

        Raises:
            ClusterLostError: The controller is gone.
        """
        snapshot: ClusterSnapshot = await _told(self._controller.snapshot)
        return snapshot

    async def explain(self, request_id: str, tenant: str | None = None) -> Explanation | None:
        """Everything that is known of a request; None: nothing is.

        Args:
            request_id: Its id, or the part of it that an HTTP client knows.
            tenant: Whose requests may be meant; None: everybody's.

        Raises:
            ClusterLostError: The controller is gone.
        """
        explanation: Explanation | None = await _told(self._controller.explain, request_id, tenant)
        return explanation

    def _check_not_lost(self) -> None:
        if self._lost:
            raise ClusterLostError(self._lost)

    def _begin(self, request: GenerationRequest) -> Call:
        self._check_not_lost()
        if not self._tasks:
            raise RuntimeError(
                f"request {request.request_id!r} would wait for ever: nobody submits it outside of "
                "`async with client`"
            )
        if request.request_id in self._calls:
            raise ValueError(f"request id {request.request_id!r} is in flight already")
        if not request.prompt_token_ids or request.max_tokens < 1:
            raise ValueError(
                f"request {request.request_id!r} has {len(request.prompt_token_ids)} prompt tokens "
                f"and max_tokens {request.max_tokens}: both must be at least 1"
            )
        if request.timeout_s is not None and request.timeout_s <= 0:
            raise ValueError(
                f"request {request.request_id!r} has timeout_s {request.timeout_s}: must be above 0"
            )
        call = Call(request)
        self._calls[request.request_id] = call
        self._send(call)
        if request.timeout_s is not None:
            self._timers[request.request_id] = asyncio.get_running_loop().call_later(
                request.timeout_s, self._expire, call
            )
        return call

    def _expire(self, call: Call) -> None:
        if not call.done:
            request = call.request
            call.fail(
                f"request {request.request_id!r} was not finished within its {request.timeout_s:g} "
                "s: allow it more time or ask for fewer tokens",
                Cause.EXPIRED,
            )
            self._abandon(request.request_id)

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.request.request_id, None)
        if (timer := self._timers.pop(call.request.request_id, None)) is not None:
            timer.cancel()
        if not call.done or call.resubmitted:
            call.done = True
            self._abandon(call.request.request_id)

    def _abandon(self, request_id: str) -> None:
        self._abandoned.append(request_id)
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
            # First, so that an id can be used again at once.
            if abandoned:
                await ask(self._controller.cancel, self.client_id, abandoned)
            calls = [call for call in batch if not call.done]
            if calls:
                await self._submit(calls)

    async def _submit(self, calls: list[Call]) -> None:
        attempts = [call.attempt for call in calls]
        submissions = submissions_of(self.client_id, calls)
        number = await ask(self._controller.submit, self.client_id, submissions)
        for call, attempt in zip(calls, attempts, strict=True):
            if call.attempt == attempt:
                call.known_to = number
        if number < self._controller_number:
            # The one that has accepted them is dead already.
            self._submit_again(calls)

    def _submit_again(self, calls: Iterable[Call]) -> None:
        """Submit those that the current controller has not accepted and that are not on the way."""
        for call in calls:
            if not call.done and 0 < call.known_to < self._controller_number:
                call.known_to = 0
                call.resubmitted = True
                self._send(call)

    # From the controller.

    async def _follow_controller(self) -> None:
        received = 0
        while True:
            received, events, number = await ask(
                self._controller.take,
                self.client_id,
                received,
                self._controller_number,
                self._follows_load,
            )
            if number > self._controller_number:
                self._controller_number = number
                self._submit_again(self._calls.values())
            for event in events:
                self._handle(event)

    def _handle(self, event: Dispatched | Refused | Orphaned | Dropped | ClusterLoad) -> None:
        match event:
            case Dispatched():
                self._dispatched(event)
            case Refused():
                self._refused(event)
            case Orphaned():
                for request_id, strikes in event.strikes.items():
                    if (call := self._calls.get(request_id)) is not None:
                        call.strikes = max(call.strikes, strikes)
                self._go_on_all(event.attempts)
            case Dropped():
                self._go_on_all(event.attempts)
            case ClusterLoad():
                self.load = event

    def _dispatched(self, event: Dispatched) -> None:
        call = self._calls.get(event.request_id)
        if call is None or call.done or call.attempt != event.attempt:
            return
        if call.dispatched(event.replica_id, event.forecast):
            self._outputs.read(event.replica_id)
        else:
            self._go_on_all({event.request_id: event.attempt})

    def _refused(self, event: Refused) -> None:
        call = self._calls.get(event.request_id)
        if call is None or call.done or event.attempt not in (0, call.attempt):
            return
        if event.cause in (Cause.OVERLOADED, Cause.UNAVAILABLE) and call.request.patient:
            pause_s = min(max(event.retry_after_s, 1.0), LONGEST_PATIENCE_S)
            pause_s *= random.uniform(0.8, 1.2)
            call.known_to = 0
            asyncio.get_running_loop().call_later(pause_s, self._send, call)
        else:
            call.fail(event.error, event.cause, event.retry_after_s)

    def _go_on_all(self, attempts: dict[str, int]) -> None:
        for request_id, attempt in attempts.items():
            self._go_on(Delta(request_id, finish_reason="abort", attempt=attempt))

    def _go_on(self, end: Delta) -> None:
        """Continue a request whose attempt ended early, unless that was known already.

        Its replica was lost or handed it back, or gave it up because this client was silent.
        """
        call = self._calls.get(end.request_id)
        if call is None or call.done or call.attempt != end.attempt:
            return
        if call.restart(end):
            self._send(call)
        else:
            # The controller may wait for the next attempt.
            self._abandon(end.request_id)

    async def _until_it_fails(self, work: Coroutine[Any, Any, None]) -> None:
        """Whatever ends the talk with the controller ends the calls: nobody waits in vain."""
        try:
            await work
        except ray.exceptions.RayActorError as error:
            self._lost = f"{_gone(error)}; submit again once it is back"
        except Exception as error:
            logger.exception("the client failed")
            self._lost = f"the client failed: {error!r}"
        self._is_lost.set()
        for call in self._calls.values():
            call.fail(self._lost, Cause.UNAVAILABLE)


async def _told(method: Any, *args: Any) -> Any:
    """The controller's answer.

    Raises:
        ClusterLostError: The controller is gone.
    """
    try:
        return await ask(method, *args)
    except ray.exceptions.RayActorError as error:
        raise ClusterLostError(_gone(error)) from error


def _gone(error: ray.exceptions.RayActorError) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"the controller is gone: {first_line}"


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
