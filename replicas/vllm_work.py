"""What a vLLM engine has computed for each request, read from its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicas.request_work import NO_REQUEST_WORK, EngineStep, RequestWork, Worked

if TYPE_CHECKING:
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.metrics.stats import SchedulerStats


@dataclass(slots=True)
class _Told:
    """A request, and what of it has been told."""

    state: RequestState
    output_tokens: int = 0
    preemptions: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output tokens that were told."""
        return self.state.prompt_len + self.output_tokens

    @property
    def only_decodes(self) -> bool:
        """Whether it has done nothing else since it was told: so most of them, most of the time."""
        stats = self.state.stats
        return (
            self.output_tokens > 0
            and stats is not None
            and stats.num_preemptions == self.preemptions
        )

    def take_decoded(self) -> int:
        """Output tokens more than were told; they are told with this."""
        stats = self.state.stats
        assert stats is not None, "it only decodes"
        before, self.output_tokens = self.output_tokens, stats.num_generation_tokens
        return self.output_tokens - before


@dataclass(slots=True)
class _New:
    """What is new of a request.

    Attributes:
        decoded: Output tokens that it decoded, the first of them at context `context`.
        context: KV-cache tokens that the first of them attended to.
        prompt: Prompt tokens whose prefill ended; 0: none did.
        cached: Those of them that were cached.
        begun: Those of them that were told before, as nobody's.
        again: Tokens that it had when it was preempted and that were computed again.
    """

    decoded: int = 0
    context: int = 0
    prompt: int = 0
    cached: int = 0
    begun: int = 0
    again: int = 0


class VllmWork:
    """Counts by request what vLLM's output processor keeps anyway: nothing is done per token.

    Each step adds to a few sums. When it is asked, what requests have more than before is theirs.
    A prompt that is prefilled over several steps has no known owner until its first token: until
    then it is told as nobody's, and its owner claims it. Requests bear equal parts of the steps
    between two questions, as many as they got tokens in; that is exact while the same ones run.
    """

    def __init__(self) -> None:
        self._requests: dict[str, _Told] = {}
        self._ended: list[tuple[str, _New]] = []
        self._steps: list[EngineStep] = []
        self._shares = 0.0
        self._prefilled = 0
        self._prefilled_again = 0
        self._prefill_steps = 0
        self._begun = 0
        self._last_prefills = False
        self._index = -1
        self._ended_s = 0.0
        self._busy = False

    def begin(self, request_id: str, state: RequestState) -> None:
        """A request was given to the engine."""
        self._requests[request_id] = _Told(state)

    def end(self, request_id: str) -> None:
        """A request has finished, or is to be aborted."""
        told = self._requests.pop(request_id, None)
        if told is not None:
            self._ended.append((request_id, _news(told)))

    def observe(self, scheduler: SchedulerStats | None, now_s: float) -> None:
        """Take the statistics of a step, given out at `now_s` of a steady clock."""
        details = scheduler.iteration_details if scheduler is not None else None
        if scheduler is None or details is None or details.is_dummy:
            return
        requests = details.num_ctx_requests + details.num_generation_requests
        tokens = details.num_ctx_tokens + details.num_generation_tokens
        follows = self._busy and details.iteration_index == self._index + 1
        seconds = now_s - self._ended_s if follows else details.elapsed_ms / 1e3
        self._steps.append(EngineStep(seconds, tokens))
        self._shares += 1 / requests if requests else 0.0
        self._prefilled += details.num_ctx_tokens
        # A preempted request that has output counts as decoding while it is prefilled again.
        self._prefilled_again += details.num_generation_tokens - details.num_generation_requests
        self._last_prefills = details.num_ctx_tokens > 0
        self._prefill_steps += self._last_prefills
        self._index, self._ended_s = details.iteration_index, now_s
        self._busy = scheduler.num_running_reqs + scheduler.num_waiting_reqs > 0

    def take(self, at_s: float) -> Worked:
        """What has been done since the last call; `at_s` is on the clock of `observe`."""
        share = self._shares / len(self._steps) if self._steps else 0.0
        requests: dict[str, RequestWork] = {}
        news = self._ended
        for request_id, told in self._requests.items():
            if told.only_decodes:
                if decoded := told.take_decoded():
                    requests[request_id] = _decode_work(decoded, told.tokens - decoded, share)
            else:
                news.append((request_id, _news(told)))
        unowned = self._settle_prompts([new for _, new in news if new.prompt], share)
        again = sum(n.again for _, n in news)
        known_again = min(1.0, self._prefilled_again / again) if again else 0.0
        for request_id, new in news:
            if new.decoded or new.prompt or new.again:
                work = _work(new, share, round(known_again * new.again))
                requests[request_id] = requests.get(request_id, NO_REQUEST_WORK).plus(work)
        abandoned = bool(self._begun) and not self._last_prefills
        worked = Worked(at_s, requests, unowned, abandoned, tuple(self._steps))
        self._begin_again(begun=0 if abandoned else self._begun, recomputed=bool(again))
        return worked

    def _settle_prompts(self, ended: list[_New], share: float) -> RequestWork:
        """What was prefilled of prompts that go on; ended ones claim what was told before.

        Args:
            ended: Requests whose prefill has ended.
            share: Part of a step that each request bears.
        """
        going_on = self._prefilled - sum(new.prompt - new.cached for new in ended)
        # The longest is the likeliest to have been prefilled over several steps.
        for new in sorted(ended, key=lambda new: new.cached - new.prompt):
            new.begun = max(0, min(-going_on, self._begun, new.prompt - new.cached))
            self._begun -= new.begun
            going_on += new.begun
        if going_on <= 0:
            return NO_REQUEST_WORK
        begun, self._begun = self._begun, self._begun + going_on
        pairs = _triangle(self._begun) - _triangle(begun)
        shares = share * self._prefill_steps * going_on / self._prefilled
        return RequestWork(shares, going_on, pairs)

    def _begin_again(self, begun: int, recomputed: bool) -> None:
        self._begun = begun
        if recomputed:
            self._prefilled_again = 0
        self._ended, self._steps = [], []
        self._shares, self._prefilled, self._prefill_steps = 0.0, 0, 0


def _news(told: _Told) -> _New:
    """What a request has more than was told; it is told with this."""
    stats = told.state.stats
    if stats is None:
        return _New()
    tokens, preemptions = stats.num_generation_tokens, stats.num_preemptions
    prompt, before = told.state.prompt_len, told.output_tokens
    new = _New(decoded=tokens - before, context=prompt + before)
    if tokens and not before:
        new.prompt, new.cached = prompt, min(told.state.num_cached_tokens, prompt)
        new.decoded, new.context = tokens - 1, prompt + 1
    if preemptions > told.preemptions:
        new.again = (preemptions - told.preemptions) * (prompt + before)
    told.output_tokens, told.preemptions = tokens, preemptions
    return new


def _work(new: _New, share: float, again: int) -> RequestWork:
    """The work in what is new.

    Args:
        new: What is new.
        share: Part of a step that each request bears.
        again: Tokens that were computed again.
    """
    before = new.cached + new.begun
    decode = _decode_work(new.decoded, new.context, share)
    return decode._replace(
        prefill_shares=share * (bool(new.prompt) + bool(again)),
        prefill_tokens=new.prompt - before + again,
        prefill_pairs=_triangle(new.prompt) - _triangle(before) + _triangle(again),
        recomputed_tokens=again,
        begun_tokens=new.begun,
    )


def _decode_work(decoded: int, context: int, share: float) -> RequestWork:
    """The work of so many decoded tokens, of which the first attended to `context` tokens."""
    context_tokens = decoded * context + decoded * (decoded - 1) // 2
    return RequestWork(0.0, 0, 0, 0, share * decoded, decoded, context_tokens)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
