"""From deltas to vLLM's request outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from replicas.protocol import Delta


class _Answer:
    """One of a request's n answers, as far as it has come."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Any] | None = None
        self._cumulative_logprob: float | None = None

    def add(self, delta: Delta, *, keep: bool) -> None:
        """Take new output in, and keep it if it is to be told again."""
        if delta.logprobs is not None:
            chosen = zip(delta.logprobs, delta.token_ids, strict=True)
            total = sum(row[token].logprob for row, token in chosen if token in row)
            self._cumulative_logprob = (self._cumulative_logprob or 0.0) + total
        if keep:
            self._texts.append(delta.text)
            self._token_ids += delta.token_ids
            if delta.logprobs is not None:
                self._logprobs = [*(self._logprobs or ()), *delta.logprobs]

    def new(self, delta: Delta) -> CompletionOutput:
        """What is new."""
        return self._output(delta, delta.text, delta.token_ids, delta.logprobs)

    def whole(self, delta: Delta) -> CompletionOutput:
        """All that was kept, up to this delta."""
        return self._output(delta, "".join(self._texts), list(self._token_ids), self._logprobs)

    def _output(
        self, delta: Delta, text: str, token_ids: list[int], logprobs: list[Any] | None
    ) -> CompletionOutput:
        return CompletionOutput(
            index=self._index,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=self._cumulative_logprob,
            logprobs=logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )


class Answers:
    """The n answers to one prompt, told as vLLM's engine does.

    Args:
        request_id: The request's.
        prompt: Its text, if there is one.
        prompt_token_ids: Its tokens.
        count: n.
        kind: What an output tells: what is new, everything so far, or everything at the end only.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        count: int,
        kind: RequestOutputKind,
    ) -> None:
        self._request_id = request_id
        self._prompt = prompt
        self._prompt_token_ids = list(prompt_token_ids)
        self._kind = kind
        self._answers = [_Answer(index) for index in range(count)]
        self._finished: dict[int, CompletionOutput] = {}
        self._running = set(range(count))
        self._prompt_logprobs: list[Any] | None = None
        self._cached_tokens: int | None = None

    def add(self, index: int, delta: Delta) -> RequestOutput | None:
        """Take in what is new of one answer; None when there is nothing to tell yet."""
        if self._prompt_logprobs is None:
            self._prompt_logprobs = delta.prompt_logprobs
        if self._cached_tokens is None:
            self._cached_tokens = delta.cached_tokens
        answer = self._answers[index]
        answer.add(delta, keep=self._kind is not RequestOutputKind.DELTA)
        if delta.finish_reason is not None:
            self._running.discard(index)
        if self._kind is RequestOutputKind.DELTA:
            return self._told([answer.new(delta)])
        if self._kind is RequestOutputKind.CUMULATIVE:
            return self._told([answer.whole(delta)])
        if delta.finish_reason is not None:
            self._finished[index] = answer.whole(delta)
        return None if self._running else self._told([o for _, o in sorted(self._finished.items())])

    def _told(self, outputs: list[CompletionOutput]) -> RequestOutput:
        told = RequestOutput(
            request_id=self._request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=outputs,
            finished=not self._running,
            num_cached_tokens=self._cached_tokens,
        )
        if self._kind is RequestOutputKind.DELTA:
            self._prompt_logprobs = None
        return told
