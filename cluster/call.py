"""One request from the client's side: what was asked, what has come, how it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from cluster.messages import Cause
from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.protocol import Delta


class GenerationError(RuntimeError):
    """A request ended with an error.

    Attributes:
        cause: Why.
        retry_after_s: When it may be asked again, for `Cause.OVERLOADED`.
    """

    def __init__(self, message: str, cause: Cause = Cause.FAILED, retry_after_s: float = 0.0):
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s


class GenerationRequest(msgspec.Struct, frozen=True):
    """What a client wants generated.

    Attributes:
        request_id: Unique among the requests that are alive in the cluster; submitting one again
            under the same id continues it instead of running it twice.
        prompt_token_ids: The prompt, at least one token.
        max_tokens: Most output tokens, at least 1.
        sampling: Further keyword arguments of `vllm.SamplingParams`.
        request_class: Online or offline.
        tenant: Whom the work is accounted to.
        text: What the predictor may read of the prompt, made by `predictor.excerpt`; empty: the
            answer's length is forecast by the prior.
        forecast: Of the answer's length, from whoever knows better than the cluster's predictor,
            which is then not asked; None: the cluster makes one.
        timeout_s: Seconds from submission after which it ends with an error wherever it is; None:
            never.
        patient: Whether it is submitted again, instead of failing, when the queue is full or no
            replica has come in time.
        trace: `traceparent` of W3C's Trace Context that its spans belong under; empty: they begin
            a trace of their own.
        job: The offline job that it belongs to, for reports; empty: none.
    """

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: dict[str, Any] = {}
    request_class: RequestClass = RequestClass.ONLINE
    tenant: str = "default"
    text: str = ""
    forecast: Forecast | None = None
    timeout_s: float | None = None
    patient: bool = False
    trace: str = ""
    job: str = ""


class Completion(msgspec.Struct, frozen=True):
    """A finished request.

    Attributes:
        request_id: Which.
        text: The answer.
        token_ids: The answer's tokens.
        finish_reason: `stop`, `length` or `error`.
        error: What went wrong; empty otherwise.
        cause: Why it went wrong; None otherwise.
        prompt_tokens: Length of the prompt.
        queue_s: Seconds from submission until a replica was chosen.
        ttft_s: Seconds from submission to the first token, as the engine that made it measured;
            None: no token.
        latency_s: Seconds from submission to the last token as the client saw it.
        replica_id: Where it finished.
        attempts: Dispatches it took.
        preemptions: Times an engine preempted it, over all attempts.
        recomputed_tokens: Tokens whose KV was computed again: after a preemption, or on another
            replica after the first one's death or a recall.
        forecast: The forecast it was scheduled with; None when it was never scheduled.
        energy_joules: Energy attributed to it, over all attempts that told; None: not measured.
        wasted_joules: The part of it that computed tokens again.
    """

    request_id: str
    text: str
    token_ids: list[int]
    finish_reason: str
    error: str
    prompt_tokens: int
    queue_s: float
    ttft_s: float | None
    latency_s: float
    replica_id: str
    attempts: int
    preemptions: int
    recomputed_tokens: int
    forecast: Forecast | None
    energy_joules: float | None
    cause: Cause | None = None
    wasted_joules: float | None = None


STATEFUL_SAMPLING: Mapping[str, Any] = {
    "bad_words": [],
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_detection": None,
    "repetition_penalty": 1,
    "seed": None,
    "stop": [],
    "structured_outputs": None,
    "thinking_token_budget": None,
}
"""Parameters whose effect depends on what was generated before, so that a request that has them
cannot be continued from its tokens alone; with the value that has no effect."""


def must_restart(sampling: Mapping[str, Any]) -> bool:
    """Whether a request with these parameters can only be run again from its start."""
    return any(sampling.get(name) not in (None, idle) for name, idle in STATEFUL_SAMPLING.items())


class Call:
    """A request in flight.

    Deltas of the current attempt only are accepted, and those of one replica only. After the loss
    of a replica, or when a replica hands it back, the request goes on from the tokens that came.
    Where sampling depends on the earlier output (`STATEFUL_SAMPLING`) it is run again from the
    start instead, and what was delivered already is skipped: the text of a seeded or greedy request
    then stays the same.

    Attributes:
        request: What was asked.
        attempt: Number of the current attempt, from 1.
        replica_id: Where it runs, as far as is known here; empty: it waits.
        done: Whether it has ended.
        known_to: Number of the controller that has accepted the current attempt; 0: none yet.
        resubmitted: Whether a restarted controller was asked to run this attempt, which may end
            without it.
        strikes: See `cluster.messages.Submission`.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.attempt = 1
        self.replica_id = ""
        self.done = False
        self.known_to = 0
        self.resubmitted = False
        self.strikes = 0.0
        self._source = ""
        self._failure: GenerationError | None = None
        self._has_prompt_logprobs = False
        self._forecast: Forecast | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._skip_tokens = 0
        self._skip_characters = 0
        self._finish_reason = ""
        self._preemptions = 0
        self._recomputed_tokens = 0
        self._earlier_preemptions = 0
        self._earlier_recomputed = 0
        self._energy_joules: float | None = None
        self._wasted_joules: float | None = None
        self._submitted_s = time.monotonic()
        self._queue_s = 0.0
        self._chosen_s: float | None = None
        self._ttft_s: float | None = None
        self._last_s = self._submitted_s
        self._fresh: list[Delta] = []
        self._arrived = asyncio.Event()

    @property
    def received_tokens(self) -> list[int]:
        """Output tokens to continue from; empty for a request that must start again."""
        return [] if self._must_restart else list(self._token_ids)

    @property
    def evictions(self) -> int:
        """Times an engine evicted it, as far as is known here."""
        return self._preemptions

    @property
    def _must_restart(self) -> bool:
        return must_restart(self.request.sampling)

    def dispatched(self, replica_id: str, forecast: Forecast) -> bool:
        """The controller has chosen a replica.

        Returns:
            False when the attempt's output comes from another one already, which a controller that
            died had chosen: this one runs it in vain.
        """
        if self._source not in ("", replica_id):
            return False
        if not self.replica_id:
            self._chosen_s = time.monotonic() - self._submitted_s
            if self.attempt == 1:
                self._queue_s = self._chosen_s
        self.replica_id = replica_id
        self._forecast = forecast
        return True

    def accepts(self, delta: Delta, replica_id: str) -> bool:
        """Whether a delta from this replica belongs to the current attempt."""
        if self.done or delta.attempt != self.attempt:
            return False
        self._source = self._source or replica_id
        return self._source == replica_id

    def receive(self, delta: Delta, replica_id: str) -> None:
        """Take a delta in; one that is not accepted changes nothing."""
        if self.accepts(delta, replica_id):
            self._take_in(delta)

    def _take_in(self, delta: Delta) -> None:
        self._last_s = time.monotonic()
        self._count(delta)
        tokens, text = self._skipped(delta)
        if self._ttft_s is None and delta.first_token_s is not None:
            self._ttft_s = self._until_first_token_s(delta.first_token_s)
        self._token_ids += tokens
        self._texts.append(text)
        if delta.finish_reason == "error":
            self.fail(delta.error or "the engine gave no reason", Cause.IMPOSSIBLE)
            return
        if delta.finish_reason is not None:
            self._end(delta.finish_reason)
        if tokens or text or self.done:
            self._fresh.append(
                Delta(
                    delta.request_id,
                    tokens,
                    text,
                    delta.finish_reason,
                    attempt=self.attempt,
                    stop_reason=delta.stop_reason,
                    logprobs=delta.logprobs[-len(tokens) :] if delta.logprobs and tokens else None,
                    prompt_logprobs=self._first_prompt_logprobs(delta),
                    cached_tokens=delta.cached_tokens,
                )
            )
            self._arrived.set()

    def fail(self, error: str, cause: Cause = Cause.FAILED, retry_after_s: float = 0.0) -> None:
        """End the request with an error."""
        if not self.done:
            self._failure = GenerationError(error, cause, retry_after_s)
            self._end("error")
            self._arrived.set()

    def restart(self, end: Delta) -> bool:
        """Begin the next attempt after the current one ended early.

        Args:
            end: The end of the current attempt, with what the replica counted if it could tell.

        Returns:
            False when nothing is left to do: every token had come, only the end was lost.
        """
        self._count(end)
        if len(self._token_ids) >= self.request.max_tokens and not self._must_restart:
            self._take_in(Delta(end.request_id, finish_reason="length", attempt=self.attempt))
            return False
        self.attempt += 1
        self.known_to = 0
        self.replica_id = self._source = ""
        self._chosen_s = None
        self._earlier_preemptions = self._preemptions
        self._earlier_recomputed = self._recomputed_tokens
        if self._token_ids:
            self._earlier_recomputed += len(self.request.prompt_token_ids) + len(self._token_ids)
        if self._must_restart:
            self._skip_tokens = len(self._token_ids)
            self._skip_characters = sum(map(len, self._texts))
        return True

    async def deltas(self) -> Delta:
        """Wait for news and return all of it as one delta.

        Raises:
            GenerationError: It ended with an error, and what came before has been returned.
        """
        await self._arrived.wait()
        fresh, self._fresh = self._fresh, []
        if not fresh:
            assert self._failure is not None, "it has arrived"
            raise self._failure
        if self._failure is None:
            self._arrived.clear()
        if len(fresh) == 1:
            return fresh[0]
        last = fresh[-1]
        logprobs = [entry for delta in fresh for entry in delta.logprobs or ()]
        return Delta(
            request_id=self.request.request_id,
            token_ids=[token for delta in fresh for token in delta.token_ids],
            text="".join(delta.text for delta in fresh),
            finish_reason=last.finish_reason,
            attempt=last.attempt,
            stop_reason=last.stop_reason,
            logprobs=logprobs or None,
            prompt_logprobs=fresh[0].prompt_logprobs,
            cached_tokens=last.cached_tokens,
        )

    def completion(self) -> Completion:
        """The result, once `done`."""
        return Completion(
            request_id=self.request.request_id,
            text="".join(self._texts),
            token_ids=self._token_ids,
            finish_reason=self._finish_reason,
            error=str(self._failure or ""),
            cause=self._failure.cause if self._failure else None,
            prompt_tokens=len(self.request.prompt_token_ids),
            queue_s=self._queue_s,
            ttft_s=self._ttft_s,
            latency_s=self._last_s - self._submitted_s,
            replica_id=self.replica_id,
            attempts=self.attempt,
            preemptions=self._preemptions,
            recomputed_tokens=self._recomputed_tokens,
            forecast=self._forecast,
            energy_joules=self._energy_joules,
            wasted_joules=self._wasted_joules,
        )

    def _until_first_token_s(self, in_engine_s: float) -> float:
        """Seconds from submission to the first token, which this attempt's engine took so long for.

        The token may overtake the controller's word of the attempt: then its arrival counts.
        """
        if self._chosen_s is None:
            return self._last_s - self._submitted_s
        return self._chosen_s + in_engine_s

    def _count(self, delta: Delta) -> None:
        """Take over the attempt's own counts, which only grow; energy is told once, at its end."""
        if delta.energy_joules is not None:
            self._energy_joules = (self._energy_joules or 0.0) + delta.energy_joules
            self._wasted_joules = (self._wasted_joules or 0.0) + (delta.wasted_joules or 0.0)
        preemptions = self._earlier_preemptions + delta.preemptions
        recomputed = self._earlier_recomputed + delta.recomputed_tokens
        self._preemptions = max(self._preemptions, preemptions)
        self._recomputed_tokens = max(self._recomputed_tokens, recomputed)

    def _skipped(self, delta: Delta) -> tuple[list[int], str]:
        """What of a restarted request's delta has not been delivered before."""
        tokens = delta.token_ids[self._skip_tokens :]
        text = delta.text[self._skip_characters :]
        self._skip_tokens -= min(self._skip_tokens, len(delta.token_ids))
        self._skip_characters -= min(self._skip_characters, len(delta.text))
        return tokens, text

    def _first_prompt_logprobs(self, delta: Delta) -> list[Any] | None:
        """Those of the first attempt that gave any: later ones repeat them."""
        if delta.prompt_logprobs is None or self._has_prompt_logprobs:
            return None
        self._has_prompt_logprobs = True
        return delta.prompt_logprobs[: len(self.request.prompt_token_ids)]

    def _end(self, finish_reason: str) -> None:
        self.done = True
        self._finish_reason = finish_reason
        self._last_s = time.monotonic()
