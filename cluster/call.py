"""One request from the client's side: what was asked, what has come, how it goes on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.protocol import Delta


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
    """

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: dict[str, Any] = {}
    request_class: RequestClass = RequestClass.ONLINE
    tenant: str = "default"


class Completion(msgspec.Struct, frozen=True):
    """A finished request.

    Attributes:
        request_id: Which.
        text: The answer.
        token_ids: The answer's tokens.
        finish_reason: `stop`, `length` or `error`.
        error: What went wrong; empty otherwise.
        prompt_tokens: Length of the prompt.
        queue_s: Seconds from submission until a replica was chosen.
        ttft_s: Seconds from submission to the first token, as the engine that made it measured;
            None: no token.
        latency_s: Seconds from submission to the last token as the client saw it.
        replica_id: Where it finished.
        attempts: Dispatches it took.
        preemptions: Times an engine preempted it.
        recomputed_tokens: Tokens whose KV was computed again: after a preemption, or on another
            replica after the first one's death.
        forecast: The forecast it was scheduled with; None when it was never scheduled.
        energy_joules: Energy attributed to it; None: not measured.
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


STATEFUL_SAMPLING = (
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "structured_outputs",
)
"""Parameters whose effect depends on what was generated before, so that a request that has them
cannot be continued from its tokens alone."""


class Call:
    """A request in flight.

    Deltas of the current attempt only are accepted. After the loss of a replica the request goes
    on from the tokens that came. Where sampling depends on the earlier output (`STATEFUL_SAMPLING`)
    it is run again from the start instead, and what was delivered already is skipped: the text of a
    seeded or greedy request then stays the same.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.attempt = 1
        self.replica_id = ""
        self.done = False
        self._forecast: Forecast | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._skip_tokens = 0
        self._skip_characters = 0
        self._finish_reason = ""
        self._error = ""
        self._preemptions = 0
        self._recomputed_tokens = 0
        self._earlier_preemptions = 0
        self._earlier_recomputed = 0
        self._energy_joules: float | None = None
        self._submitted_s = time.monotonic()
        self._queue_s = 0.0
        self._ttft_s: float | None = None
        self._last_s = self._submitted_s
        self._fresh: list[Delta] = []
        self._arrived = asyncio.Event()

    @property
    def received_tokens(self) -> list[int]:
        """Output tokens to continue from; empty for a request that must start again."""
        return [] if self._must_restart else list(self._token_ids)

    @property
    def _must_restart(self) -> bool:
        sampling = self.request.sampling
        return any(sampling.get(name) not in (None, 0, 0.0) for name in STATEFUL_SAMPLING)

    def dispatched(self, replica_id: str, forecast: Forecast) -> None:
        """The controller has chosen a replica."""
        self.replica_id = replica_id
        self._forecast = forecast
        if self.attempt == 1:
            self._queue_s = time.monotonic() - self._submitted_s

    def receive(self, delta: Delta) -> None:
        """Take a delta in; one of an earlier attempt changes nothing."""
        if self.done or delta.attempt != self.attempt:
            return
        self._last_s = time.monotonic()
        self._preemptions = self._earlier_preemptions + delta.preemptions
        self._recomputed_tokens = self._earlier_recomputed + delta.recomputed_tokens
        if delta.energy_joules is not None:
            self._energy_joules = (self._energy_joules or 0.0) + delta.energy_joules
        tokens, text = self._skipped(delta)
        if self._ttft_s is None and delta.first_token_s is not None:
            self._ttft_s = self._queue_s + delta.first_token_s
        self._token_ids += tokens
        self._texts.append(text)
        if delta.finish_reason is not None:
            self._end(delta.finish_reason, delta.error or "")
        if tokens or text or self.done:
            self._fresh.append(Delta(delta.request_id, tokens, text, delta.finish_reason))
            self._arrived.set()

    def fail(self, error: str) -> None:
        """End the request with an error."""
        if not self.done:
            self._end("error", error)
            self._fresh.append(Delta(self.request.request_id, finish_reason="error", error=error))
            self._arrived.set()

    def restart(self) -> bool:
        """Begin the next attempt after the loss of a replica.

        Returns:
            False when nothing is left to do: every token had come, only the end was lost.
        """
        if len(self._token_ids) >= self.request.max_tokens and not self._must_restart:
            self.receive(
                Delta(self.request.request_id, finish_reason="length", attempt=self.attempt)
            )
            return False
        self.attempt += 1
        self.replica_id = ""
        self._earlier_preemptions = self._preemptions
        self._earlier_recomputed = self._recomputed_tokens
        if self._token_ids:
            self._earlier_recomputed += len(self.request.prompt_token_ids) + len(self._token_ids)
        if self._must_restart:
            self._skip_tokens = len(self._token_ids)
            self._skip_characters = sum(map(len, self._texts))
        return True

    async def deltas(self) -> Delta:
        """Wait for news and return all of it as one delta."""
        await self._arrived.wait()
        self._arrived.clear()
        fresh, self._fresh = self._fresh, []
        last = fresh[-1]
        return Delta(
            request_id=self.request.request_id,
            token_ids=[token for delta in fresh for token in delta.token_ids],
            text="".join(delta.text for delta in fresh),
            finish_reason=last.finish_reason,
            error=last.error,
        )

    def completion(self) -> Completion:
        """The result, once `done`."""
        return Completion(
            request_id=self.request.request_id,
            text="".join(self._texts),
            token_ids=self._token_ids,
            finish_reason=self._finish_reason,
            error=self._error,
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
        )

    def _skipped(self, delta: Delta) -> tuple[list[int], str]:
        """What of a restarted request's delta has not been delivered before."""
        tokens = delta.token_ids[self._skip_tokens :]
        text = delta.text[self._skip_characters :]
        self._skip_tokens -= min(self._skip_tokens, len(delta.token_ids))
        self._skip_characters -= min(self._skip_characters, len(delta.text))
        return tokens, text

    def _end(self, finish_reason: str, error: str) -> None:
        self.done = True
        self._finish_reason = finish_reason
        self._error = error
        self._last_s = time.monotonic()
