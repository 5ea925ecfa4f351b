"""vLLM's engine client over a cluster, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import GenerationError as EngineFailure
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from cluster.call import GenerationError
from cluster.endpoint.refusals import RefusedError, as_vllm_error, check_load, check_size
from cluster.endpoint.request_outputs import Answers
from cluster.messages import Cause, ClusterLoad
from policies.request import RequestClass
from replicas.protocol import Delta, Generation
from replicas.vllm_sampling import delta_params, plain_sampling

ONLINE, OFFLINE = RequestClass.ONLINE, RequestClass.OFFLINE

ROOM = ClusterLoad(
    most_waiting=10,
    most_waiting_tokens=1000,
    most_waiting_offline=20,
    serving=2,
    largest_request=100,
)


def logprob(value: float) -> Any:
    return SimpleNamespace(logprob=value)


def delta(tokens: list[int], finish_reason: str | None = None, **fields: Any) -> Delta:
    text = "".join(f" w{token}" for token in tokens)
    return Delta("r", tokens, text, finish_reason, **fields)


def test_parameters_travel_as_plain_data_and_come_back_the_same() -> None:
    asked = SamplingParams(
        n=3,
        temperature=0.3,
        top_p=0.9,
        seed=5,
        stop=["x"],
        stop_token_ids=[7],
        logprobs=2,
        logit_bias={5: -1.0},
        min_tokens=4,
        max_tokens=50,
        structured_outputs=StructuredOutputsParams(json={"type": "object"}),
        extra_args={"tiebreak": {"key": -1e9}, "own": 1},
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    plain = plain_sampling(asked)
    assert plain["structured_outputs"] == {"json": {"type": "object"}}
    assert plain["extra_args"] == {"own": 1}
    assert not {"n", "max_tokens", "output_kind"} & set(plain)
    back = delta_params(Generation("r", "c", b"", sampling={**plain, "max_tokens": 50}))
    assert back.output_kind is RequestOutputKind.DELTA
    assert back.structured_outputs == asked.structured_outputs
    for name in plain.keys() - {"extra_args"}:
        assert getattr(back, name) == getattr(asked, name)


def test_defaults_do_not_travel() -> None:
    assert plain_sampling(SamplingParams(max_tokens=9)) == {}


def test_prompt_logprobs_are_asked_for_once() -> None:
    sampling = {"prompt_logprobs": 1, "max_tokens": 9}
    first = Generation("r", "c", b"", sampling=sampling)
    assert delta_params(first).prompt_logprobs == 1
    later = Generation("r", "c", b"", sampling=sampling, generated_tokens=3)
    assert delta_params(later).prompt_logprobs is None


def test_deltas_are_told_as_they_come() -> None:
    answers = Answers("r", "p", [1, 2], 2, RequestOutputKind.DELTA)
    first = answers.add(1, delta([5], logprobs=[{5: logprob(-1.0)}], prompt_logprobs=[None]))
    assert first is not None
    assert [o.index for o in first.outputs] == [1]
    assert first.prompt_token_ids == [1, 2]
    assert first.prompt_logprobs == [None]
    second = answers.add(
        1,
        delta(
            [6, 7],
            "stop",
            stop_reason="x",
            logprobs=[{6: logprob(-2.0)}] * 1 + [{7: logprob(-3.0)}],
        ),
    )
    assert second is not None
    assert second.prompt_logprobs is None
    (told,) = second.outputs
    assert (told.text, told.finish_reason, told.stop_reason) == (" w6 w7", "stop", "x")
    assert told.cumulative_logprob == -6.0
    assert not second.finished
    last = answers.add(0, delta([8], "length"))
    assert last is not None
    assert last.finished


def test_everything_at_the_end_is_told_once_and_in_order() -> None:
    answers = Answers("r", None, [1], 2, RequestOutputKind.FINAL_ONLY)
    assert answers.add(1, delta([5, 6], logprobs=[{5: logprob(-1.0)}, {6: logprob(-1.5)}])) is None
    assert answers.add(1, delta([7], "stop", logprobs=[{7: logprob(0.0)}])) is None
    assert answers.add(0, delta([8])) is None
    told = answers.add(0, delta([9], "length"))
    assert told is not None
    assert told.finished
    assert [(o.index, o.text, list(o.token_ids)) for o in told.outputs] == [
        (0, " w8 w9", [8, 9]),
        (1, " w5 w6 w7", [5, 6, 7]),
    ]
    assert told.outputs[1].logprobs is not None
    assert len(told.outputs[1].logprobs) == 3
    assert told.outputs[0].logprobs is None


def test_everything_so_far() -> None:
    answers = Answers("r", None, [1], 1, RequestOutputKind.CUMULATIVE)
    first, second = answers.add(0, delta([5])), answers.add(0, delta([6], "stop"))
    assert first is not None
    assert second is not None
    assert [list(o.token_ids) for told in (first, second) for o in told.outputs] == [[5], [5, 6]]


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (Cause.IMPOSSIBLE, 400),
        (Cause.OVERLOADED, 429),
        (Cause.UNAVAILABLE, 503),
        (Cause.EXPIRED, 504),
        (Cause.POISON, 500),
        (Cause.FAILED, 500),
    ],
)
def test_every_cause_has_its_status(cause: Cause, status: int) -> None:
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    error = as_vllm_error(GenerationError("because", cause, 3.2))
    told = create_error_response(error).error
    assert (told.code, told.message) == (status, "because")
    later = error.retry_after_s if isinstance(error, RefusedError) else None
    assert later == (4 if cause is Cause.OVERLOADED else None)
    assert isinstance(error, EngineFailure) == (status == 500)


def loaded(**fields: Any) -> ClusterLoad:
    return ClusterLoad(**{f: getattr(ROOM, f) for f in ROOM.__struct_fields__} | fields)


def refusal(load: ClusterLoad, requests: int = 1, kind: RequestClass = ONLINE) -> VLLMError:
    with pytest.raises(VLLMError) as refused:
        check_load(load, requests, kind)
    return refused.value


def test_a_full_queue_says_when_to_come_back() -> None:
    for load in (
        loaded(waiting=10, waiting_tokens=500, retry_after_s=10),
        loaded(waiting=3, waiting_tokens=1000, retry_after_s=10),
    ):
        error = refusal(load)
        assert isinstance(error, RefusedError)
        assert error.http_status == HTTPStatus.TOO_MANY_REQUESTS
        assert error.retry_after_s == 10
        check_load(load, 1, OFFLINE)


def test_each_of_n_answers_needs_a_place() -> None:
    check_load(loaded(waiting=8), 2, ONLINE)
    assert isinstance(refusal(loaded(waiting=8), 3), RefusedError)
    for kind, most in ((ONLINE, 10), (OFFLINE, 20)):
        check_load(ROOM, most, kind)
        error = refusal(ROOM, most + 1, kind)
        assert isinstance(error, VLLMValidationError)
        assert f"at most {most} {kind.name.lower()} requests" in str(error)


def test_503_only_when_nothing_serves_and_nothing_is_coming() -> None:
    gone = refusal(loaded(serving=0))
    assert isinstance(gone, RefusedError)
    assert gone.http_status == HTTPStatus.SERVICE_UNAVAILABLE
    check_load(loaded(serving=0, coming=1), 1, ONLINE)
    check_load(None, 1, ONLINE)


def test_what_no_replica_can_hold_is_impossible() -> None:
    check_size(ROOM, 60, 40)
    check_size(loaded(largest_request=0), 1000, 1000)
    with pytest.raises(VLLMValidationError, match=r"up to 101 tokens .* has 100"):
        check_size(ROOM, 61, 40)


class _Tap:
    """A client whose streams note that they were closed."""

    def __init__(self) -> None:
        self.open: set[str] = set()

    async def generate(self, request: Any) -> AsyncIterator[Delta]:
        self.open.add(request.request_id)
        try:
            while True:
                yield delta([1])
                await asyncio.sleep(0.001)
        finally:
            self.open.discard(request.request_id)


@pytest.mark.parametrize("count", [1, 3])
async def test_leaving_ends_every_answer_of_a_request(count: int) -> None:
    from cluster.engine_client import _deltas

    tap: Any = _Tap()
    requests: Any = [SimpleNamespace(request_id=str(i)) for i in range(count)]
    stream = _deltas(tap, requests)
    seen = set()
    while len(seen) < count:
        seen.add((await anext(stream))[0])
    assert len(tap.open) == count
    await stream.aclose()
    assert not tap.open
