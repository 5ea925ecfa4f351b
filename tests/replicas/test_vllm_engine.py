"""vLLM behind the engine protocol, on the CPU, with a KV cache small enough to run out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from replicas.embedded_model import embedded_model_path
from replicas.protocol import Delta, EngineInfo, EngineStartError, Generation, pack_tokens
from replicas.vllm_engine import VllmEngine, VllmEngineOptions

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

KV_BLOCKS = 24
BLOCK_SIZE = 32


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[tuple[VllmEngine, EngineInfo]]:
    engine = VllmEngine(
        VllmEngineOptions(
            model=str(embedded_model_path()),
            engine_args={
                "dtype": "bfloat16",
                "max_model_len": 512,
                "max_num_seqs": 8,
                "max_num_batched_tokens": 2048,
                "block_size": BLOCK_SIZE,
                "kv_cache_memory_bytes": 1 << 28,
                "num_gpu_blocks_override": KV_BLOCKS,
                "enable_chunked_prefill": False,
                "enable_prefix_caching": False,
                "scheduling_policy": "priority",
            },
            cpu_cores=[0],
        )
    )
    info = await engine.start()
    yield engine, info
    await engine.stop()


def generation(
    name: str, prompt: Sequence[int], max_tokens: int, *, earlier: int = 0, **sampling: Any
) -> Generation:
    return Generation(
        request_id=name,
        client_id="test",
        prompt=pack_tokens(prompt),
        generated_tokens=earlier,
        sampling={"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **sampling},
    )


async def run(engine: VllmEngine, generations: list[Generation]) -> dict[str, Delta]:
    """All output of each generation as one delta."""
    whole = {g.request_id: Delta(g.request_id) for g in generations}
    await engine.submit(generations)
    async with asyncio.timeout(240):
        while any(delta.finish_reason is None for delta in whole.values()):
            await engine.output_ready.wait()
            for delta in engine.drain():
                total = whole[delta.request_id]
                total.token_ids += delta.token_ids
                total.text += delta.text
                total.finish_reason, total.error = delta.finish_reason, delta.error
                total.preemptions = delta.preemptions
                total.recomputed_tokens = delta.recomputed_tokens
    return whole


PROMPT = list(range(1000, 1040))


async def test_capacity_is_what_requests_can_use(started: tuple[VllmEngine, EngineInfo]) -> None:
    _, info = started
    assert info.kv_blocks == KV_BLOCKS - 1
    assert (info.block_size, info.max_num_seqs, info.max_model_len) == (BLOCK_SIZE, 8, 512)


async def test_a_continued_request_goes_on_as_if_nothing_had_happened(
    started: tuple[VllmEngine, EngineInfo],
) -> None:
    engine, _ = started
    whole = (await run(engine, [generation("whole", PROMPT, 60)]))["whole"]
    head = whole.token_ids[:25]
    tail = (await run(engine, [generation("tail", PROMPT + head, 60, earlier=25)]))["tail"]
    assert len(whole.token_ids) == 60
    assert head + tail.token_ids == whole.token_ids
    assert whole.text.endswith(tail.text)


async def test_what_vllm_refuses_fails_alone(started: tuple[VllmEngine, EngineInfo]) -> None:
    engine, _ = started
    done = await run(
        engine,
        [
            generation("good", PROMPT, 5),
            generation("long", PROMPT * 20, 5),
            generation("hot", PROMPT, 5, temperature=-1.0),
            generation("odd", PROMPT, 5, no_such_parameter=1),
        ],
    )
    assert done["good"].finish_reason == "length"
    for name, word in (("long", "512"), ("hot", "temperature"), ("odd", "no_such_parameter")):
        assert done[name].finish_reason == "error"
        assert word in (done[name].error or "")


async def test_preemptions_are_counted_with_what_they_cost_and_every_answer_is_whole(
    started: tuple[VllmEngine, EngineInfo],
) -> None:
    # The text is not compared: vLLM computes a preempted request's KV again by its prefill kernel,
    # whose bf16 rounding differs from the decode kernel's, so that near ties may fall otherwise.
    engine, _ = started
    prompts = [[2000 + 40 * i + k for k in range(40)] for i in range(6)]
    done = await run(engine, [generation(f"p{i}", p, 150) for i, p in enumerate(prompts)])
    # Six requests of 190 tokens want 36 blocks of 23.
    assert sum(delta.preemptions for delta in done.values()) > 0
    for delta in done.values():
        assert len(delta.token_ids) == 150
        assert delta.recomputed_tokens >= 40 * delta.preemptions
        assert (delta.recomputed_tokens > 0) == (delta.preemptions > 0)


async def test_seeded_requests_with_long_prompts_do_not_end_the_engine(
    started: tuple[VllmEngine, EngineInfo],
) -> None:
    engine, _ = started
    generations = [
        generation(f"s{i}", [3000 + k for k in range(300)], 20, temperature=1.0, seed=5)
        for i in range(4)
    ]
    first = await run(engine, generations)
    assert len({tuple(delta.token_ids) for delta in first.values()}) == 1
    engine.check()


async def test_an_aborted_request_frees_its_memory(started: tuple[VllmEngine, EngineInfo]) -> None:
    engine, _ = started
    await engine.submit([generation("gone", PROMPT, 400)])
    async with asyncio.timeout(60):
        await engine.output_ready.wait()
    assert engine.drain()[0].token_ids
    await engine.abort(["gone", "never-was"])
    await run(engine, [generation("next", PROMPT, 3)])
    assert engine.drain() == []
    assert engine.load().running <= 1


async def test_too_little_memory_is_one_line_before_the_model_loads() -> None:
    options = VllmEngineOptions(
        str(embedded_model_path()),
        {"max_model_len": 2048, "kv_cache_memory_bytes": 1 << 20, "dtype": "bfloat16"},
    )
    with pytest.raises(EngineStartError, match=r"max_model_len 2048 needs .* GiB .* configured"):
        await VllmEngine(options).start()
    huge = VllmEngineOptions(
        str(embedded_model_path()), {"kv_cache_memory_bytes": 1 << 50, "dtype": "bfloat16"}
    )
    with pytest.raises(EngineStartError, match=r"GiB of memory are free"):
        await VllmEngine(huge).start()
