"""The plug-in inside a real engine whose KV cache is tiny, and behind `vllm serve`."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from replicas.embedded_model import EMBEDDED_MODEL, resolve_model

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
SCHEDULER = "replicas.kv_scheduler.ProjectedMemoryScheduler"
BLOCKS, BLOCK_SIZE, SLOTS = 24, 32, 16
MAX_EVICTIONS = 2


@pytest.fixture(scope="module")
def engine() -> Any:
    """In single precision: KV that is computed again rounds like the one that was lost."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["PYTHONPATH"] = str(ROOT)
    from vllm import LLM

    return LLM(
        model=resolve_model(EMBEDDED_MODEL),
        dtype="float32",
        enforce_eager=True,
        max_model_len=(BLOCKS - 1) * BLOCK_SIZE,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=BLOCKS + 1,
        kv_cache_memory_bytes=1 << 28,
        max_num_seqs=SLOTS,
        max_num_batched_tokens=2048,
        disable_log_stats=False,
        scheduler_cls=SCHEDULER,
        additional_config={"tiebreak": {"name": "tie+a_min", "max_evictions": MAX_EVICTIONS}},
    )


def prompts(count: int) -> list[str]:
    return [f"Write a story about the number {i}." for i in range(count)]


def generate(engine: Any, texts: list[str], caps: list[int], terms: list[Any]) -> list[Any]:
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=cap,
            ignore_eos=True,
            extra_args={} if term is None else {"tiebreak": term},
        )
        for cap, term in zip(caps, terms, strict=True)
    ]
    outputs: list[Any] = engine.generate(texts, params, use_tqdm=False)
    return outputs


def test_evicted_requests_give_the_tokens_of_an_undisturbed_run(engine: Any) -> None:
    texts = prompts(12)
    caps = [40 + 13 * i for i in range(12)]
    exact = [{"mu": math.log(c), "sigma": 0.0, "lower": c, "upper": c} for c in caps]
    undisturbed = generate(engine, texts, caps, exact)
    assert not any(o.metrics.num_preemptions for o in undisturbed), "lengths were known exactly"
    # Forecasts far too short, so that all are admitted and many evicted.
    far_off = [{"mu": 1.0, "sigma": 0.1, "lower": 2, "upper": 4}] * len(texts)
    pressed = generate(engine, texts, caps, far_off)
    assert [list(o.outputs[0].token_ids) for o in pressed] == [
        list(o.outputs[0].token_ids) for o in undisturbed
    ]
    evictions = [o.metrics.num_preemptions for o in pressed]
    assert sum(evictions) > 0
    assert max(evictions) <= MAX_EVICTIONS


def test_a_request_that_fills_the_cache_runs_beside_others(engine: Any) -> None:
    text = prompts(1)[0]
    prompt_tokens = len(engine.get_tokenizer().encode(text))
    caps = [(BLOCKS - 1) * BLOCK_SIZE - prompt_tokens, 30, 30, 30]
    outputs = generate(engine, [text, *prompts(4)[1:]], caps, [None] * 4)
    assert [len(o.outputs[0].token_ids) for o in outputs] == caps


def test_an_online_request_does_not_wait_for_offline_ones_that_fill_the_engine(engine: Any) -> None:
    from vllm import SamplingParams

    core, texts, cap = engine.llm_engine, prompts(SLOTS + 1), 12
    undisturbed = generate(engine, texts, [cap] * len(texts), [None] * len(texts))

    def add(number: int, precedence: int) -> None:
        terms = {"mu": 2.5, "sigma": 0.1, "precedence": precedence}
        params = SamplingParams(
            temperature=0.0, max_tokens=cap, ignore_eos=True, extra_args={"tiebreak": terms}
        )
        core.add_request(str(number), texts[number], params)

    for number in range(SLOTS):
        add(number, precedence=1)
    outputs = [core.step() for _ in range(4)]
    assert len({output.request_id for step in outputs for output in step}) == SLOTS
    add(SLOTS, precedence=0)
    while core.has_unfinished_requests():
        outputs.append(core.step())
    ended = {output.request_id: output for step in outputs for output in step if output.finished}
    tokens = [list(ended[str(number)].outputs[0].token_ids) for number in range(SLOTS + 1)]
    assert tokens == [list(output.outputs[0].token_ids) for output in undisturbed]
    evicted = [name for name, output in ended.items() if output.metrics.num_preemptions]
    assert len(evicted) == 1
    assert evicted != [str(SLOTS)]
    assert list(ended).index(str(SLOTS)) < list(ended).index(evicted[0])


def test_terms_that_cannot_be_used_count_as_none(engine: Any) -> None:
    terms = ["no json", {"mu": "x"}, {"mu": 3.0, "sigma": -1.0}, {"mu": 3.0, "typo": 1}, 7]
    outputs = generate(engine, prompts(len(terms)), [5] * len(terms), terms)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [5] * len(terms)


def test_vllm_serve_takes_the_scheduler_by_name_and_forecasts_in_the_body() -> None:
    port = _free_port()
    log_level = {"VLLM_LOGGING_LEVEL": "INFO", "PYTHONPATH": str(ROOT)}
    command = [
        # What `vllm serve` runs; that command itself fails in vLLM's CPU package.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", resolve_model(EMBEDDED_MODEL), "--served-model-name", "demo"),
        *("--scheduler-cls", SCHEDULER),
        *("--additional-config", json.dumps({"tiebreak": {"name": "tiebreak"}})),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"),
        *("--dtype", "bfloat16", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 28)),
    ]
    server = subprocess.Popen(
        command,
        env={**os.environ, **log_level},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        body = {
            "model": "demo",
            "prompt": "Once upon a time",
            "max_tokens": 8,
            "ignore_eos": True,
            "n": 2,
            "vllm_xargs": {"tiebreak": json.dumps({"mu": 2.0, "sigma": 0.3})},
        }
        answer = _post(f"http://127.0.0.1:{port}/v1/completions", body)
        assert answer["usage"]["completion_tokens"] == 16
        assert len(answer["choices"]) == 2
    finally:
        server.terminate()
        log, _ = server.communicate(timeout=60)
    assert f"Using custom scheduler class {SCHEDULER}" in log
    assert "is not used" not in log, "the forecast was refused"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(url: str, server: subprocess.Popen[str], limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            assert server.stdout is not None
            raise AssertionError(f"the server ended: {server.stdout.read()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {url} within {limit_s} s")


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)
