"""vLLM behind the engine protocol, on the CPU, with a KV cache small enough to run out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from cluster.membership.engine_choice import CPU_EXECUTOR
from replicas.embedded_model import embedded_model_path
from replicas.metering import Metering
from replicas.modelled_meter import ModelledMeter
from replicas.power_model import modelled_device
from replicas.protocol import (
    Delta,
    EngineInfo,
    EngineStartError,
    EngineTerms,
    Generation,
    pack_tokens,
)
from replicas.request_terms import RequestTerms, read_terms
from replicas.request_work import RequestWork, Worked
from replicas.vllm_engine import VllmEngine, VllmEngineOptions
from replicas.vllm_sampling import sampling_arguments

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
                "distributed_executor_backend": CPU_EXECUTOR,
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


async def test_the_engine_is_one_process_whose_computing_thread_is_bound(
    started: tuple[VllmEngine, EngineInfo],
) -> None:
    # With a worker process of its own the engine core would poll for it on a second core.
    children = psutil.Process().children(recursive=True)
    (core,) = [child for child in children if "VLLM::" in " ".join(child.cmdline())]
    assert os.sched_getaffinity(core.pid) == {0}
    bound = [os.sched_getaffinity(thread.id) == {0} for thread in core.threads()]
    alone = len(os.sched_getaffinity(0)) == 1
    assert alone or not all(bound), "threads that talk to the front end stay off that core"


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


TERMS = EngineTerms(4.0, 0.5, 20, 90, key=-1.5, arrival_s=12.0, precedence=1, evictions=2)


async def test_terms_travel_to_vllm_s_scheduler_beside_a_request_s_own_arguments() -> None:
    plain = generation("r", PROMPT, 60, earlier=25, extra_args={"simulated_output_tokens": 9})
    sent = sampling_arguments(msgspec.structs.replace(plain, terms=TERMS))
    assert sent["extra_args"]["simulated_output_tokens"] == 9
    assert read_terms(sent["extra_args"]) == RequestTerms(
        mu=4.0,
        sigma=0.5,
        lower=20,
        upper=90,
        key=-1.5,
        arrival_s=12.0,
        precedence=1,
        evictions=2,
        generated_tokens=25,
        id="r",
    )
    assert plain.sampling["extra_args"] == {"simulated_output_tokens": 9}, "the request's own stay"
    assert sampling_arguments(plain)["extra_args"] == plain.sampling["extra_args"]
    assert "extra_args" not in sampling_arguments(generation("r", PROMPT, 60))


async def test_what_is_left_of_a_continued_request_is_asked_for() -> None:
    sent = sampling_arguments(generation("r", PROMPT, 60, earlier=25, min_tokens=30))
    assert (sent["max_tokens"], sent["min_tokens"]) == (35, 5)


async def test_work_is_told_by_request_and_the_energy_of_it_adds_up(
    started: tuple[VllmEngine, EngineInfo],
) -> None:
    engine, _ = started
    device = modelled_device(
        {"idle_w": 5.0, "max_w": 60.0, "peak_flops_per_s": 1e4, "flops_per_token": 1.0}
    )
    metering = Metering(ModelledMeter(device), engine)
    worked = []
    take = engine.worked

    def take_and_keep() -> Worked:
        worked.append(take())
        return worked[-1]

    engine.worked = take_and_keep  # type: ignore[method-assign]
    generations = [
        generation(f"w{i}", [4000 + 60 * i + k for k in range(20 + 5 * i)], 20 + i)
        for i in range(5)
    ]
    for one in generations:
        metering.begin(one)
    reading = asyncio.create_task(metering.forever())
    done = await run(engine, generations)
    told = [metering.end(one.request_id) for one in generations]
    await asyncio.sleep(0.3)
    reading.cancel()
    engine.worked = take  # type: ignore[method-assign]
    assert all(delta.finish_reason == "length" for delta in done.values())
    of = {one.request_id: RequestWork() for one in generations}
    for one in worked:
        assert one.unowned.prefill_tokens == 0, "prompts are prefilled whole here"
        for request_id, work in one.requests.items():
            of[request_id] = of[request_id].plus(work)
    for i, work in enumerate(of.values()):
        prompt, output = 20 + 5 * i, 20 + i
        contexts = range(prompt + 1, prompt + output)
        assert (work.prefill_tokens, work.decode_tokens) == (prompt, output - 1)
        assert work.context_tokens == sum(contexts)
    totals = metering.totals
    booked = totals.request_joules + totals.idle_joules + totals.unattributed_joules
    assert booked == pytest.approx(totals.metered_joules, rel=1e-9)
    assert totals.unattributed_joules < 0.01 * totals.metered_joules
    rows = sum(energy.joules for energy in told if energy is not None)
    assert rows + totals.idle_joules == pytest.approx(totals.metered_joules, rel=0.01)
