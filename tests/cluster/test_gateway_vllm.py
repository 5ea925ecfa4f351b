"""The endpoint with OpenAI's own client, over real vLLM on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from replicas.embedded_model import embedded_model_path
from tests.cluster.collector import Collector, collector
from tests.cluster.endpoint import MODEL, Endpoint, endpoint
from tests.cluster.prometheus_server import until

pytestmark = pytest.mark.engine

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def spans() -> Iterator[Collector]:
    with collector() as kept:
        yield kept


@pytest.fixture(scope="module")
def served(spans: Collector) -> Iterator[Endpoint]:
    assert embedded_model_path()
    telemetry = {"otlp_endpoint": spans.endpoint, "otlp_protocol": "http/protobuf"}
    with endpoint(
        {
            "engine": "vllm",
            "max_num_seqs": 8,
            "max_model_len": 512,
            "kv_cache_gib": 0.25,
            "engine_args": {"max_logprobs": 10},
        },
        {"vllm_args": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}},
        telemetry={**telemetry, "traced_share": 0},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(
    client: openai.OpenAI, text: str = "Name three colours.", **options: Any
) -> ChatCompletion:
    options = {"max_tokens": 24, "temperature": 0, **options}
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], **options
    )
    assert isinstance(answer, ChatCompletion)
    return answer


def test_a_stream_has_the_text_the_logprobs_and_the_usage_of_the_whole_answer(
    client: openai.OpenAI,
) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    whole = chat(client, **asked)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name three colours."}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        **asked,
    )
    text, tokens, usage = "", [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tokens += (choice.logprobs.content or []) if choice.logprobs else []
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 24
    assert whole.choices[0].logprobs is not None
    assert tokens == whole.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == text
    assert [len(token.top_logprobs) for token in tokens] == [3] * 24
    # Greedy decoding takes the likeliest.
    assert all(token.token == token.top_logprobs[0].token for token in tokens)


def test_n_answers_are_seeded_one_by_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 12}
    texts = [choice.message.content for choice in chat(client, n=3, **asked).choices]
    again = [choice.message.content for choice in chat(client, n=3, **asked).choices]
    assert texts == again
    assert len(set(texts)) == 3
    second = chat(client, **{**asked, "seed": 12}).choices[0].message.content
    assert second == texts[1]


def test_a_stop_string_ends_the_answer_and_is_told(client: openai.OpenAI) -> None:
    text = chat(client).choices[0].message.content
    assert text
    word = text.split()[3]
    stopped = chat(client, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text[: text.index(word)]
    assert stopped.model_extra is not None
    assert stopped.model_extra["stop_reason"] == word


def test_completions_echo_the_prompt_with_its_logprobs(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    echoed = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=4, temperature=0, echo=True, logprobs=2
    ).choices[0]
    plain = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0)
    assert echoed.text == prompt + plain.choices[0].text
    assert echoed.logprobs is not None
    assert echoed.logprobs.tokens is not None
    assert "".join(echoed.logprobs.tokens) == echoed.text
    assert echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.token_logprobs[0] is None
    assert all(p <= 0 for p in echoed.logprobs.token_logprobs[1:])
    only = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert only.text == prompt


def test_structured_output_follows_its_schema(client: openai.OpenAI) -> None:
    answer = chat(
        client,
        "Invent a person.",
        max_tokens=80,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    chosen = chat(client, "Yes or no?", extra_body={"structured_outputs": {"choice": ["maybe"]}})
    assert chosen.choices[0].message.content == "maybe"
    digits = chat(client, "A number.", extra_body={"structured_outputs": {"regex": "[0-9]{5}"}})
    assert (digits.choices[0].message.content or "").isdecimal()


def test_a_required_tool_is_called_with_its_arguments(client: openai.OpenAI) -> None:
    asked = "What is the weather in Paris?"
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = chat(client, asked, tools=[WEATHER], tool_choice=choice, max_tokens=100)
        calls = answer.choices[0].message.tool_calls
        assert calls
        assert calls[0].type == "function"
        assert calls[0].function.name == "weather"
        assert set(json.loads(calls[0].function.arguments)) == {"city"}


def test_tools_may_be_left_alone(client: openai.OpenAI) -> None:
    answer = chat(client, tools=[WEATHER], tool_choice="auto")
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    streamed = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name three colours."}],
        tools=[WEATHER],
        tool_choice="auto",
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    text = "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
    assert text == (message.content or "")


def test_responses(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="Name three colours.", max_output_tokens=24, temperature=0
    )
    assert response.output_text == chat(client).choices[0].message.content
    events = list(
        client.responses.create(
            model=MODEL,
            input="Name three colours.",
            max_output_tokens=24,
            temperature=0,
            stream=True,
        )
    )
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == response.output_text


def test_what_vllm_refuses_is_refused_in_its_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        chat(client, "word " * 600)
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        chat(client, logprobs=True, top_logprobs=11)
    with pytest.raises(openai.BadRequestError, match=r"grammar|schema|type"):
        chat(client, extra_body={"structured_outputs": {"json": {"type": "nonsense"}}})
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="another", prompt="x")


def test_beam_search(client: openai.OpenAI) -> None:
    beams = client.completions.create(
        model=MODEL, prompt="One, two,", max_tokens=4, n=2, extra_body={"use_beam_search": True}
    )
    assert len({choice.text for choice in beams.choices}) == 2


def test_nothing_is_left_in_the_engine(served: Endpoint) -> None:
    assert [r.used_blocks for r in served.quiet().replicas] == [0]


def test_the_engine_s_span_is_under_the_request_s_and_that_one_under_its_client_s(
    client: openai.OpenAI, spans: Collector
) -> None:
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    chat(client, extra_headers={"traceparent": f"00-{trace}-{caller}-01"})

    def of_it(name: str) -> list[Span]:
        return [s for s in spans.spans if s.trace_id.hex() == trace and s.name.startswith(name)]

    # They come from two processes, each when it exports.
    until(
        lambda: of_it("llm_request") and of_it("text_completion"),
        "not both spans have come",
    )
    (request,), (engine,) = of_it("text_completion"), of_it("llm_request")
    assert request.parent_span_id.hex() == caller
    assert engine.parent_span_id == request.span_id
    assert spans.services >= {"tiebreak", "vllm"}
