"""The endpoint over HTTP, with simulated engines: what passes, what is refused, what is freed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cluster.endpoint.routes import SERVED
from tests.cluster.endpoint import CHAT, MODEL, Endpoint, endpoint

NEVER_ENDING = {**CHAT, "ignore_eos": True, "max_tokens": 2000, "stream": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Endpoint]:
    with endpoint(
        {"max_num_seqs": 1, "engine_args": {"output_median_tokens": 8.0, "output_log_sigma": 0.0}},
        {"max_body_bytes": 100_000, "request_timeout_s": 60.0},
    ) as running:
        yield running


@pytest.fixture
def http(served: Endpoint) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream, without its end mark."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == response.status_code
    return error


def test_only_the_endpoints_of_the_table_are_served(http: httpx.Client) -> None:
    paths = set(http.get("/openapi.json").json()["paths"])
    # Prometheus' and the documentation's own are not part of the page.
    assert paths == set(SERVED) - {"/docs", "/openapi.json"}
    for path in ("/v1/load_lora_adapter", "/scale_elastic_ep", "/inference/v1/generate", "/load"):
        assert error_of(http.post(path, json={}))["code"] == 404
    wrong = http.get("/v1/completions")
    assert error_of(wrong)["code"] == 405
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/metrics", "/v1/models"])
def test_what_is_read_without_a_body(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


def test_a_chat_and_its_usage(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"].count("w") == 5
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["prompt_tokens"] > 2


def test_a_streamed_answer_is_the_answer(http: httpx.Client) -> None:
    asked = {**CHAT, "max_tokens": 30, "ignore_eos": True}
    whole = http.post("/v1/chat/completions", json=asked).json()
    streamed = http.post(
        "/v1/chat/completions",
        json={**asked, "stream": True, "stream_options": {"include_usage": True}},
    )
    *chunks, last = events(streamed)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert last["usage"].items() <= whole["usage"].items()
    assert last["usage"]["completion_tokens"] == 30


def test_n_answers_to_each_of_several_prompts(http: httpx.Client) -> None:
    asked = {"model": MODEL, "prompt": ["one", "another one"], "n": 3, "max_tokens": 4}
    answer = http.post("/v1/completions", json=asked).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["completion_tokens"] == 24
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[0] == texts[1] == texts[2] != texts[3] == texts[4] == texts[5]
    streamed = events(http.post("/v1/completions", json={**asked, "stream": True}))
    parts = dict.fromkeys(range(6), "")
    for chunk in streamed:
        for choice in chunk["choices"]:
            parts[choice["index"]] += choice["text"]
    assert [parts[i] for i in range(6)] == texts


def test_responses_messages_and_tokens(http: httpx.Client) -> None:
    asked = {"model": MODEL, "input": "Hello there", "max_output_tokens": 6}
    response = http.post("/v1/responses", json=asked).json()
    assert response["output"][0]["content"][0]["text"].count("w") == 6
    message = http.post("/v1/messages", json={**CHAT, "max_tokens": 7}).json()
    assert message["content"][0]["text"].count("w") == 7
    count = http.post("/v1/messages/count_tokens", json=CHAT).json()["input_tokens"]
    assert count == message["usage"]["input_tokens"]
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "Hello there"}).json()["tokens"]
    text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
    assert text == "Hello there"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "n": 2}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/responses", {"model": MODEL, "input": "Hello"}),
        ("/v1/messages", {**CHAT, "max_tokens": 2}),
    ],
)
def test_an_answers_id_finds_its_request(
    served: Endpoint, http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    told = http.post(path, json=body).json()["id"]
    served.quiet()
    found = http.get(f"/tiebreak/requests/{told}").json()
    assert found["request_id"].startswith(told)
    assert found["state"] == "finished"


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"x-request-class": "urgent"}, {}, "request class is 'urgent'"),
        ({"x-request-timeout": "soon"}, {}, "x-request-timeout is 'soon'"),
        ({"x-request-timeout": "-1"}, {}, "x-request-timeout is '-1'"),
        ({"x-request-timeout": "inf"}, {}, "x-request-timeout is 'inf'"),
        ({"x-tenant": ""}, {}, "tenant is ''"),
        ({}, {"tenant": 5}, "tenant is 5"),
        ({}, {"request_class": "x" * 500}, "request class is 'xxx"),
        ({}, {"priority": 3}, "priority is 3"),
        ({}, {"n": 16_000}, "asks for 16,000 answers"),
        ({}, {"cache_salt": "mine"}, "cache salts"),
        ({}, {"max_tokens": 0}, "max_tokens must be at least 1"),
        ({}, {"temperature": -1}, "temperature"),
        ({}, {"kv_transfer_params": {"a": 1}}, "KV transfer"),
        ({}, {"messages": [{"role": "user", "content": "word " * 5000}]}, "2048"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_makes_no_sense_is_refused_before_a_response_begins(
    http: httpx.Client, headers: dict[str, str], body: dict[str, Any], words: str, stream: bool
) -> None:
    asked = {**CHAT, **body, "stream": stream}
    response = http.post("/v1/chat/completions", json=asked, headers=headers)
    assert response.status_code == 400
    assert words in error_of(response)["message"]


def test_what_is_not_json_is_refused(http: httpx.Client) -> None:
    for body in (b"", b"{", b'{"messages": "\xff\xfe"}', b"[1]", b"[" * 50_000):
        response = http.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400, response.text
        assert error_of(response)["message"]


def test_large_bodies_are_refused_whether_or_not_they_say_their_size(http: httpx.Client) -> None:
    told = http.post("/v1/chat/completions", content=b"x" * 100_001)
    assert told.status_code == 413
    assert "100,000 bytes" in error_of(told)["message"]
    chunked = http.post("/v1/chat/completions", content=iter([b"x" * 60_000] * 2))
    assert chunked.status_code == 413
    assert http.get("/health").status_code == 200


def test_pages_of_other_origins_may_not_use_it(http: httpx.Client) -> None:
    asked = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    preflight = http.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers
    answer = http.get("/v1/models", headers=asked)
    assert "access-control-allow-origin" not in answer.headers


def test_another_model_is_not_found(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={**CHAT, "model": "another"})
    assert response.status_code == 404
    assert "another" in error_of(response)["message"]


def test_a_request_that_is_late_ends_with_504_even_as_a_stream(
    served: Endpoint, http: httpx.Client
) -> None:
    with http.stream("POST", "/v1/chat/completions", json=NEVER_ENDING) as occupying:
        lines = occupying.iter_lines()
        next(lines)
        for stream in (False, True):
            late = http.post(
                "/v1/chat/completions",
                json={**CHAT, "stream": stream},
                headers={"x-request-timeout": "0.3"},
            )
            assert late.status_code == 504, late.text
            assert "0.3 s" in error_of(late)["message"]
    served.quiet()


def test_a_stream_that_runs_out_of_time_ends_with_an_error_event(
    served: Endpoint, http: httpx.Client
) -> None:
    cut = http.post("/v1/chat/completions", json=NEVER_ENDING, headers={"x-request-timeout": "4"})
    assert cut.status_code == 200
    *chunks, error = events(cut)
    assert len(chunks) > 2
    assert error["error"]["code"] == 504
    served.quiet()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(
    served: Endpoint, http: httpx.Client, stream: bool
) -> None:
    """The only slot of the engine is given to the next request, at best within 200 ms."""
    # On a busy machine a request that waits for nobody takes a while, too.
    alone_s = min(_time_of_a_request(http) for _ in range(8))
    waits_s = [_time_to_next_request(served, http, stream) for _ in range(8)]
    assert min(waits_s) - alone_s < 0.2, (waits_s, alone_s)
    served.quiet()


def _time_to_next_request(served: Endpoint, http: httpx.Client, stream: bool) -> float:
    served.quiet()  # else the request before could be taken for the one that leaves
    leaving = _send(served, "/v1/chat/completions", {**NEVER_ENDING, "stream": stream})
    while not served.status().running:
        time.sleep(0.01)
    leaving.close()
    return _time_of_a_request(http)


def _time_of_a_request(http: httpx.Client) -> float:
    asked_s = time.monotonic()
    answer = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1})
    assert answer.status_code == 200
    return time.monotonic() - asked_s


def _send(served: Endpoint, path: str, body: dict[str, Any]) -> socket.socket:
    url = httpx.URL(served.url)
    assert url.port is not None
    connection = socket.create_connection((url.host, url.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def test_half_a_request_harms_nobody(served: Endpoint, http: httpx.Client) -> None:
    url = httpx.URL(served.url)
    assert url.port is not None
    half = [socket.create_connection((url.host, url.port)) for _ in range(20)]
    for number, connection in enumerate(half):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        connection.sendall(head + b"content-length: 100\r\n\r\n{" if number % 2 else head)
    assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1}).status_code == 200
    for connection in half:
        connection.close()
    assert served.quiet().waiting == 0


def test_class_and_tenant_may_stand_in_the_body(served: Endpoint, http: httpx.Client) -> None:
    body = {**CHAT, "max_tokens": 2, "request_class": "offline", "tenant": "someone"}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    headers = {"x-request-class": "offline", "x-tenant": "someone"}
    assert http.post("/v1/completions", json={"prompt": "a"}, headers=headers).status_code == 200
    served.quiet()


def test_what_clients_say_of_our_own_terms_is_ignored(served: Endpoint, http: httpx.Client) -> None:
    cheating = {**CHAT, "max_tokens": 2, "vllm_xargs": {"tiebreak": "precedence"}}
    assert http.post("/v1/chat/completions", json=cheating).status_code == 200
    served.quiet()
