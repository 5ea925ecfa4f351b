import asyncio
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from replicas.calibration import fit
from replicas.engines import EngineSpec
from replicas.protocol import EngineDeadError, EngineInfo
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_sweep import Load, SweepActor, run_load, sweep
from replicas.step_time import LinearStepTime, StepTimeError
from tests.replicas.virtual_loop import VirtualLoop, run_virtually

INFO = EngineInfo("m", kv_blocks=512, block_size=16, max_num_seqs=32, max_model_len=2048)
TRUTH = LinearStepTime(8e-3, 4e-5, 3e-5, 5e-8, per_prefill_pair_s=2e-9)


def loads(info: EngineInfo = INFO, output_tokens: int = 32) -> list[Load]:
    return list(sweep(info, output_tokens, np.random.default_rng(0)))


@pytest.mark.parametrize(
    "info",
    [
        INFO,
        msgspec.structs.replace(INFO, kv_blocks=16),
        msgspec.structs.replace(INFO, max_num_seqs=1),
        msgspec.structs.replace(INFO, max_model_len=64),
        msgspec.structs.replace(INFO, kv_blocks=100_000, max_num_seqs=256, max_model_len=8192),
    ],
)
def test_every_request_of_a_sweep_can_run(info):
    for load in loads(info):
        for prompt, output in zip(load.prompt_tokens, load.output_tokens, strict=True):
            assert prompt >= 1
            assert output >= 1
            assert prompt + output <= min(info.max_model_len, info.kv_blocks * info.block_size)


def test_the_sweep_reaches_the_engines_limits():
    equal, mixed = loads()[:-1], loads()[-1]
    assert {min(load.prompt_tokens) for load in equal} == {16, 64, 256, 1024, 2016}
    assert max(len(load.prompt_tokens) for load in equal) == INFO.max_num_seqs - 1
    for load in equal:
        blocks = -(-(load.prompt_tokens[0] + 32) // INFO.block_size)
        assert len(load.prompt_tokens) * blocks <= INFO.kv_blocks
        assert len(set(load.prompt_tokens)) == 1
    assert len(set(mixed.prompt_tokens)) > 20
    assert len(mixed.prompt_tokens) > 2 * INFO.max_num_seqs


def test_an_engine_too_small_for_a_sweep_is_refused():
    small = msgspec.structs.replace(INFO, max_model_len=40)
    with pytest.raises(StepTimeError, match="32 output tokens leaves 8"):
        loads(small)


def test_a_sweep_finds_the_step_time_of_the_simulated_engine():
    async def main(loop: VirtualLoop) -> np.ndarray:
        options = {"kv_blocks": 512, "max_num_seqs": 16, "max_model_len": 1024, "step_time": TRUTH}
        spec = EngineSpec("simulated", "m", options)
        _, steps = await SweepActor().measure(spec, cpu_cores=0, output_tokens=16, seed=1)
        return steps

    found = fit(run_virtually(main))
    for name in ("base_s", "per_prefill_token_s", "per_prefill_pair_s", "per_decode_token_s"):
        assert getattr(found.step_time, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3)
    assert replace(found.step_time, measured=None).per_kv_token_s == pytest.approx(5e-8, rel=1e-3)
    assert found.error.p90 < 1e-3


def test_a_request_that_the_engine_refuses_ends_the_sweep():
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(SimulatedEngineOptions(max_model_len=100))
        await engine.start()
        try:
            async with asyncio.timeout(60):
                await run_load(engine, Load((16, 99), (4, 4)), np.random.default_rng(0))
        finally:
            await engine.stop()

    with pytest.raises(StepTimeError, match="max_model_len"):
        run_virtually(main)


def test_an_engine_that_dies_without_a_word_ends_the_sweep():
    class Silent(SimulatedEngine):
        def _made_output(self, *, urgent: bool = True) -> None:
            """Like an engine in another process that is killed."""

    async def main(loop: VirtualLoop) -> None:
        engine = Silent(SimulatedEngineOptions())
        await engine.start()
        loop.call_later(5.0, engine.die, "lightning")
        async with asyncio.timeout(3600):
            await run_load(engine, Load((16,), (4,)), np.random.default_rng(0))

    with pytest.raises(EngineDeadError, match="lightning"):
        run_virtually(main)
