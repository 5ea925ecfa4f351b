"""Who decodes in each step of a vLLM engine, and how long their contexts are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.metrics.stats import IterationStats


class Contexts(NamedTuple):
    """What a step did, as its output shows.

    Attributes:
        prefilled: Length and cached tokens of each prompt whose prefill it ended.
        decoding: Requests that decoded.
        tokens: Tokens that these attended to.
    """

    prefilled: list[tuple[int, int]]
    decoding: int
    tokens: int


class VllmContexts:
    """Keeps count of the decoding requests: a step costs what starts and ends in it.

    Who decodes next is known from who decoded, started and ended; each gives out one token, and
    the step must give out as many. Where it does not, because somebody was evicted, aborted or not
    scheduled, and where somebody goes on who was evicted, all requests are looked at.
    """

    def __init__(self, requests: Callable[[], Iterable[RequestState]]) -> None:
        """Start before the first step.

        Args:
            requests: The requests that have not finished, as vLLM's output processor keeps them.
        """
        self._requests = requests
        self._starting: dict[str, RequestState] = {}  # some of those without a first token
        self._decoding = 0  # expected of the next step with output, as are the tokens
        self._tokens = 0
        self._missed = False

    def begin(self, request_id: str, state: RequestState) -> None:
        """A request was given to the engine."""
        if state.is_prefilling:
            self._starting[request_id] = state

    def end(self, request_id: str) -> None:
        """A request has finished, or is to be aborted."""
        self._starting.pop(request_id, None)

    def missed(self) -> None:
        """A step had output that was not observed."""
        self._missed = True

    def observe(self, iteration: IterationStats | None, *, one_each: bool) -> Contexts:
        """What a step did.

        Args:
            iteration: vLLM's statistics of its output; None: it had none.
            one_each: Whether each decoding request was given one token to compute.
        """
        if iteration is None:
            return Contexts([], 0, 0)
        firsts = len(iteration.time_to_first_tokens_iter)
        started = self._take_started(firsts)
        is_known = (
            one_each
            and not self._missed
            and len(started) == firsts
            and iteration.num_generation_tokens == self._decoding + firsts
            and not iteration.num_preempted_reqs
        )
        if is_known:
            prompts = [(state.prompt_len, state.num_cached_tokens) for state in started]
            contexts = Contexts(prompts, self._decoding, self._tokens)
        else:
            contexts = self._look_at_all(iteration)
        self._expect(contexts, iteration)
        return contexts

    def _take_started(self, count: int) -> list[RequestState]:
        """Those that have their first token, `count` of them at most."""
        started: list[str] = []
        for request_id, state in self._starting.items():
            if len(started) == count:
                break
            if not state.is_prefilling:
                started.append(request_id)
        return [self._starting.pop(request_id) for request_id in started]

    def _look_at_all(self, iteration: IterationStats) -> Contexts:
        self._starting = {i: s for i, s in self._starting.items() if s.is_prefilling}
        self._missed = False
        return _count_all(self._requests(), iteration)

    def _expect(self, contexts: Contexts, iteration: IterationStats) -> None:
        """Whoever decoded or started decodes in the next step, unless it has finished."""
        finished = [
            f.num_prompt_tokens + f.num_generation_tokens
            for f in iteration.finished_requests
            if f.num_generation_tokens
        ]
        prefilled, decoding, tokens = contexts
        self._decoding = decoding + len(prefilled) - len(finished)
        begun = sum(prompt + 1 for prompt, _ in prefilled)
        self._tokens = tokens + decoding + begun - sum(finished)


def _count_all(states: Iterable[RequestState], iteration: IterationStats) -> Contexts:
    """What a step did, from every request that goes on or finished in it."""
    told = [(s, s.stats) for s in states if s.stats is not None and not s.is_prefilling]
    given = len(iteration.time_to_first_tokens_iter) + len(iteration.inter_token_latencies_iter)
    if given == len(iteration.finished_requests):
        told = []  # the latest token of those that go on is of an earlier step
    latest = max((stats.last_token_ts for _, stats in told), default=0.0)
    counts = [
        (state.prompt_len, stats.num_generation_tokens, state.num_cached_tokens)
        for state, stats in told
        if stats.last_token_ts == latest
    ]
    counts += [
        (f.num_prompt_tokens, f.num_generation_tokens, f.num_cached_tokens)
        for f in iteration.finished_requests
    ]
    prefilled = [(prompt, cached) for prompt, output, cached in counts if output == 1]
    contexts = [prompt + output - 1 for prompt, output, _ in counts if output > 1]
    return Contexts(prefilled, len(contexts), sum(contexts))
