"""What clients ask of the controller: requests come in, are refused, are cancelled."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

import msgspec

from cluster.control.controller_state import ControllerState
from cluster.core.decisions import ImpossibleRequestError
from cluster.core.queue_limits import QueueFullError
from cluster.core.suspects import PoisonedRequestError
from cluster.messages import Cause, Dispatched, Refused, Submission
from cluster.statistics.faults import Fault
from policies.request import Request

logger = logging.getLogger(__name__)


class NotServedError(ValueError):
    """No replica has come in time."""


class Intake:
    """Takes requests in.

    Args:
        state: The controller's.
    """

    def __init__(self, state: ControllerState) -> None:
        self._state = state

    def submit(self, client_id: str, submissions: Sequence[Submission]) -> None:
        """Queue generations; answers come as events. Idempotent by request id."""
        now, unix_s = time.monotonic(), time.time()
        self._state.clients.meet(client_id)
        fresh: list[tuple[Submission, Request]] = []
        for submission in submissions:
            if not self._is_new(submission):
                self._repeat(submission)
                continue
            try:
                fresh.append((submission, request_of(submission, now)))
            except ValueError as error:
                self.refuse(submission, error)
        forecasts = self._state.forecasting.prior([request for _, request in fresh])
        unforecast = []
        for (submission, request), prior in zip(fresh, forecasts, strict=True):
            generation = submission.generation
            forecast = submission.forecast or prior
            goes_on = self._state.scheduler.state(generation.request_id) == "recalled"
            try:
                is_taken = self._state.scheduler.submit(
                    request,
                    forecast,
                    now,
                    attempt=generation.attempt,
                    strikes=submission.strikes,
                    accepted=submission.accepted,
                )
            except (ImpossibleRequestError, QueueFullError, PoisonedRequestError) as error:
                self.refuse(submission, error)
                continue
            if not is_taken:  # the same list had it before
                self._repeat(submission)
                continue
            self._state.open.add(msgspec.structs.replace(submission, text=""), now)
            self._state.statistics.submitted(submission, now, unix_s)
            if not goes_on:
                unforecast += [submission] if submission.forecast is None else []
            elif generation.generated_tokens:
                known_tokens = submission.prompt_tokens + generation.generated_tokens
                self._state.counters.recomputed_tokens += known_tokens
        self._state.forecasting.ask(unforecast)
        self._state.wake.set()

    def cancel(self, client_id: str, request_ids: Iterable[str]) -> None:
        """Forget requests of a client, wherever they are."""
        now = time.monotonic()
        for request_id in request_ids:
            submission = self._state.open.get(request_id)
            if submission is not None and submission.generation.client_id == client_id:
                self._state.scheduler.cancel(request_id, now)
                self._state.open.discard(request_id)
                self._state.statistics.cancelled(submission, now)
                self._state.forecasting.forget(request_id)
        self._state.wake.set()

    def refuse(self, submission: Submission, error: Exception) -> None:
        """Forget a request and tell its client why it will not run."""
        generation = submission.generation
        self._state.counters.refused += 1
        self._state.statistics.refused(
            submission,
            error,
            time.monotonic(),
            time.time(),
            may_return=isinstance(error, QueueFullError | NotServedError),
        )
        if self._state.open.discard(generation.request_id) is not None:
            self._state.scheduler.cancel(generation.request_id, time.monotonic())
        self._state.forecasting.forget(generation.request_id)
        retry_after_s = 0.0
        cause = Cause.IMPOSSIBLE
        if isinstance(error, QueueFullError):
            cause, retry_after_s = Cause.OVERLOADED, error.retry_after_s
        elif isinstance(error, PoisonedRequestError):
            cause = Cause.POISON
            self._state.faults.count(Fault.REQUEST_POISONED)
            logger.error("%s", error)
        elif isinstance(error, NotServedError):
            cause = Cause.UNAVAILABLE
        refused = Refused(
            generation.request_id, str(error), cause, retry_after_s, generation.attempt
        )
        self._state.clients.tell(generation.client_id, [refused])

    def _repeat(self, submission: Submission) -> None:
        """A client that submits again may not know where its request runs."""
        generation = submission.generation
        request_id = generation.request_id
        placed = self._state.scheduler.placement(request_id)
        if placed is None or self._state.open[request_id].generation.attempt != generation.attempt:
            return
        replica_id, forecast = placed
        event = Dispatched(request_id, generation.attempt, replica_id, 0.0, forecast)
        self._state.clients.tell(generation.client_id, [event])

    def _is_new(self, submission: Submission) -> bool:
        """Whether it is not the repetition of one that waits or runs.

        Another client with the same id takes the request over: the one that asked first was killed,
        and its successor starts from the beginning.
        """
        generation = submission.generation
        known = self._state.open.get(generation.request_id)
        if known is not None and known.generation.client_id != generation.client_id:
            self._state.scheduler.cancel(generation.request_id, time.monotonic())
            self._state.statistics.cancelled(known, time.monotonic())
            return True
        return known is None or known.generation.attempt < generation.attempt


def request_of(submission: Submission, now: float) -> Request:
    """The request as the scheduler sees it.

    Raises:
        ValueError: A size is out of range.
    """
    generation = submission.generation
    return Request(
        request_id=generation.request_id,
        prompt_tokens=submission.prompt_tokens,
        max_tokens=submission.max_tokens,
        arrival_s=now,
        request_class=submission.request_class,
        tenant=submission.tenant,
        generated_tokens=generation.generated_tokens,
    )
