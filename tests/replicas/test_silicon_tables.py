import sys

import pytest

from replicas.silicon_tables import Deployment, load_silicon_step_time, silicon_limits
from replicas.step_time import StepTimeError, StepWork

sdk = pytest.importorskip("aiconfigurator_core.sdk", reason="needs the extra `simulation`")

LLAMA_8B, LLAMA_70B = "meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-70B"
H100, A100 = Deployment("h100", LLAMA_8B), Deployment("a100", LLAMA_8B)


def decode(requests: int, context: int) -> StepWork:
    return StepWork(0, 0, requests, requests * context)


def prompt(tokens: int) -> StepWork:
    return StepWork(tokens, tokens * (tokens + 1) // 2, 0, 0)


@pytest.fixture(scope="module")
def engine():
    return sdk.EngineHandle.compile(LLAMA_8B, "h100_sxm", "vllm")


@pytest.mark.parametrize(("requests", "context"), [(1, 100), (20, 700), (77, 900), (200, 1500)])
def test_a_decode_step_is_what_the_measurements_compose(engine, requests, context):
    expected_s = engine.decode_step_latency(requests, context - 1, 2) / 1e3
    ours_s = load_silicon_step_time(H100).seconds(decode(requests, context))
    assert ours_s == pytest.approx(expected_s, rel=0.03)


@pytest.mark.parametrize("tokens", [100, 700, 2048, 5000])
def test_a_prompt_is_what_the_measurements_compose(engine, tokens):
    expected_s = engine.predict_prefill_latency(1, tokens, 0) / 1e3
    ours_s = load_silicon_step_time(H100).seconds(prompt(tokens))
    assert ours_s == pytest.approx(expected_s, rel=0.03)


def test_a_mixed_step_is_what_the_measurements_compose(engine):
    work = StepWork(1984, 1984 * 1985 // 2, 64, 64 * 1985)
    expected_s = engine.mixed_step_latency(1984, 64, 1984, 2) / 1e3
    model = load_silicon_step_time(H100)
    assert model.seconds(work) == pytest.approx(expected_s, rel=0.03)
    assert model.seconds(work) < model.seconds(prompt(1984)) + model.seconds(decode(64, 1985))


def test_no_step_is_faster_than_the_hardware():
    parameters, h100_bytes_per_s, h100_flops = 8.03e9, 3.35e12, 989e12
    model = load_silicon_step_time(H100)
    weights_s = (
        2 * (parameters - 128256 * 4096) / h100_bytes_per_s
    )  # of the embeddings few are read
    assert weights_s < model.seconds(decode(1, 128)) < 2 * weights_s
    flops_s = 2 * (parameters - 2 * 128256 * 4096) * 4096 / h100_flops
    assert flops_s < model.seconds(prompt(4096)) < 2 * flops_s


def test_better_hardware_is_faster():
    deployments = [A100, H100, Deployment("h200", LLAMA_8B)]
    steps = [load_silicon_step_time(d).seconds(decode(64, 1024)) for d in deployments]
    assert steps == sorted(steps, reverse=True)
    four, eight = (load_silicon_step_time(Deployment("h100", LLAMA_70B, n)) for n in (4, 8))
    assert eight.seconds(decode(64, 1024)) < four.seconds(decode(64, 1024))


def test_knows_how_far_the_measurements_reach():
    model = load_silicon_step_time(H100)
    assert model.covers(decode(32, 16384))
    assert not model.covers(decode(32, 16385))
    assert model.covers(prompt(8192))
    assert not model.covers(prompt(16385))
    assert load_silicon_step_time(Deployment("h100", LLAMA_70B, 8)).covers(decode(32, 65536))


def test_says_what_was_measured():
    label = load_silicon_step_time(Deployment("H100 SXM", LLAMA_70B.lower(), 8)).label
    assert label == "silicon: H100 SXM, Meta-Llama-3.1-70B, TP8, vLLM 0.24.0"


def test_kv_cache_is_what_the_memory_leaves():
    gib, kv_bytes_per_token, weights = 1 << 30, 2 * 32 * 8 * 128 * 2, 16.06e9
    limits = silicon_limits(H100, gpu_memory_utilization=0.9)
    most = (0.9 * 80 * gib - weights) / kv_bytes_per_token
    assert most - 5 * gib / kv_bytes_per_token < limits.kv_tokens < most
    assert limits.block_size == 16
    assert silicon_limits(H100, gpu_memory_utilization=0.8).kv_tokens < limits.kv_tokens
    assert silicon_limits(Deployment("h200", LLAMA_8B)).kv_tokens > 1.8 * limits.kv_tokens
    parallel = silicon_limits(Deployment("h100", LLAMA_8B, 2), block_size=32)
    assert parallel.kv_tokens > 2 * limits.kv_tokens


@pytest.mark.parametrize("act", [load_silicon_step_time, silicon_limits])
@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        (Deployment("h900", LLAMA_8B), "'h900'.*h100_sxm"),
        (Deployment("h100", "meta-llama/Llama-8B"), "config.json.*meta-llama/Meta-Llama-3.1-8B"),
        (Deployment("h100", LLAMA_8B, 3), "divisible"),
    ],
)
def test_what_was_not_measured_is_refused_in_one_line(act, deployment, message):
    with pytest.raises(StepTimeError, match=message) as refused:
        act(deployment)
    assert "\n" not in str(refused.value)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(StepTimeError, match="no KV budget"):
        silicon_limits(Deployment("h100", LLAMA_70B, 1))


def test_absent_measurements_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", None)
    with pytest.raises(StepTimeError, match="extra `simulation`"):
        load_silicon_step_time(Deployment("h100", LLAMA_8B, 4))
