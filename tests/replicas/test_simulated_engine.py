"""The simulated engine's life: steps, delivery, limits, aborts and faults."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.protocol import EngineDeadError, EngineInfo, EngineLoad, EngineStartError
from replicas.simulated_engine import SimulatedEngine
from replicas.step_time import StepWork, UnitStepTime
from tests.replicas.simulated_engines import collect, make_generation, make_options
from tests.replicas.virtual_loop import VirtualLoop, run_virtually


def test_the_engine_reports_what_it_can_hold() -> None:
    async def main(loop: VirtualLoop) -> EngineInfo:
        return await SimulatedEngine(make_options(model="m")).start()

    info = run_virtually(main)
    assert info == EngineInfo("m", 64, 4, 8, 200, kind="simulated")


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=12),
    kv_blocks=st.integers(30, 60),
)
def test_load_never_exceeds_the_limits(lengths: list[tuple[int, int]], kv_blocks: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options(kv_blocks=kv_blocks, max_num_seqs=5))
        await engine.start()
        await engine.submit(
            [
                make_generation(f"r{n}", range(prompt), output_tokens=output, max_tokens=60)
                for n, (prompt, output) in enumerate(lengths)
            ]
        )
        left = {f"r{n}" for n in range(len(lengths))}
        while left:
            load = engine.load()
            assert 0 <= load.kv_usage <= 1
            assert load.running <= 5
            assert load.running + load.waiting <= len(left)
            await asyncio.sleep(1.0)
            left -= {d.request_id for d in engine.drain() if d.finish_reason}
        assert engine.load() == EngineLoad()

    run_virtually(main)


@pytest.mark.parametrize("time_scale", [1.0, 10.0])
def test_steps_take_the_model_s_time_divided_by_the_time_scale(time_scale: float) -> None:
    async def main(loop: VirtualLoop) -> float:
        engine = SimulatedEngine(make_options(time_scale=time_scale))
        await engine.start()
        await engine.submit([make_generation(output_tokens=40)])
        await collect(engine, ["r"])
        return loop.time()

    assert run_virtually(main) == pytest.approx(40 / time_scale)


def test_first_tokens_and_finishes_are_announced_and_others_wait_for_the_drain() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation(output_tokens=10)])
        await engine.output_ready.wait()
        assert loop.time() == pytest.approx(1.0)
        assert [len(delta.token_ids) for delta in engine.drain()] == [1]
        assert not engine.output_ready.is_set()
        await asyncio.sleep(5.5)
        assert not engine.output_ready.is_set()
        assert [len(delta.token_ids) for delta in engine.drain()] == [5]
        assert engine.drain() == []
        await engine.output_ready.wait()
        assert loop.time() == pytest.approx(10.0)
        (last,) = engine.drain()
        assert (len(last.token_ids), last.finish_reason) == (4, "stop")

    run_virtually(main)


def test_an_idle_engine_sleeps() -> None:
    async def main(loop: VirtualLoop) -> int:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation(output_tokens=3)])
        await collect(engine, ["r"])
        before = loop.turns
        await asyncio.sleep(3600)
        idle_turns = loop.turns - before
        await engine.submit([make_generation("again", output_tokens=3)])
        await collect(engine, ["again"])
        assert loop.time() == pytest.approx(3 + 3600 + 3)
        return idle_turns

    assert run_virtually(main) < 10


def test_an_aborted_request_says_no_more_and_frees_its_memory() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation("a", output_tokens=20)])
        await engine.submit([make_generation("b", output_tokens=5)])
        await asyncio.sleep(2.5)
        await engine.abort(["a", "unknown"])
        assert engine.load().running == 1
        merged = await collect(engine, ["b"])
        assert list(merged) == ["b"]
        await asyncio.sleep(30)
        assert engine.drain() == []
        assert engine.load() == EngineLoad()

    run_virtually(main)


def test_a_request_aborted_during_its_last_step_does_not_finish() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation(output_tokens=1)])
        await asyncio.sleep(0.5)
        await engine.abort(["r"])
        await asyncio.sleep(5)
        assert engine.drain() == []

    run_virtually(main)


def test_a_repeated_submission_is_ignored_and_a_newer_attempt_replaces() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation(output_tokens=10)])
        await asyncio.sleep(4.5)
        await engine.submit([make_generation(output_tokens=10)])
        tail = engine.drain()[0].token_ids
        assert len(tail) == 4
        newer = make_generation(output_tokens=10, tail=tail, attempt=2)
        await engine.submit([newer])
        assert engine.load().waiting == 1
        merged = await collect(engine, ["r"])
        assert merged["r"].attempt == 2
        assert len(merged["r"].token_ids) == 6

    run_virtually(main)


def test_a_dead_engine_says_so_and_keeps_what_it_produced() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation(output_tokens=10)])
        await asyncio.sleep(3.5)
        engine.check()
        engine.drain()
        await asyncio.sleep(2.0)
        engine.die("power cut")
        assert engine.output_ready.is_set()
        with pytest.raises(EngineDeadError, match="power cut"):
            engine.check()
        with pytest.raises(EngineDeadError, match="power cut"):
            await engine.submit([make_generation("b")])
        await asyncio.sleep(30)
        assert [len(delta.token_ids) for delta in engine.drain()] == [2]
        await engine.stop()
        with pytest.raises(EngineStartError, match="power cut"):
            await engine.start()

    run_virtually(main)


def test_a_broken_step_time_model_kills_the_engine_visibly() -> None:
    class Broken(UnitStepTime):
        def seconds(self, work: StepWork) -> float:
            return math.nan

    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options(step_time=Broken()))
        await engine.start()
        await engine.submit([make_generation()])
        await engine.output_ready.wait()
        with pytest.raises(EngineDeadError, match="Broken answered nan"):
            engine.check()

    run_virtually(main)


def test_a_frozen_engine_answers_without_progress_until_it_thaws() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options())
        await engine.start()
        await engine.submit([make_generation(output_tokens=10)])
        await asyncio.sleep(3.5)
        assert len(engine.drain()[0].token_ids) == 3
        engine.freeze()
        await engine.submit([make_generation("b", output_tokens=2)])
        before = loop.turns
        await asyncio.sleep(3600)
        assert loop.turns - before < 10
        engine.check()
        assert engine.drain() == []
        assert engine.load().running == 1
        assert engine.load().waiting == 1
        engine.thaw()
        merged = await collect(engine, ["r", "b"])
        assert len(merged["r"].token_ids) == 7

    run_virtually(main)


def test_submitting_before_the_start_is_an_error() -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(EngineDeadError, match="has not been started"):
            await SimulatedEngine(make_options()).submit([make_generation()])

    run_virtually(main)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_blocks": 0}, "kv_blocks is 0"),
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens is 4"),
        ({"max_model_len": 1}, "max_model_len is 1"),
        ({"time_scale": 0.0}, "time_scale is 0.0"),
        ({"output_median_tokens": 0.5}, "output median is 0.5"),
        ({"output_log_sigma": -1.0}, "output log sigma is -1.0"),
        ({"vocabulary_tokens": 0}, "vocabulary_tokens is 0"),
        ({"policy": {"name": "a_mni"}}, "unknown policy 'a_mni'"),
        ({"policy": {"max_evictions": 0}}, "max_evictions is 0"),
        ({"policy": {"guard_band": 0.1}}, "'guard_band'"),
        ({"step_time": {"base_s": -1.0}}, "per_prefill_token_s"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_options(**changes)


def test_step_time_can_be_given_as_coefficients() -> None:
    coefficients = {
        "base_s": 1.0,
        "per_prefill_token_s": 2.0,
        "per_decode_token_s": 3.0,
        "per_kv_token_s": 4.0,
    }
    assert (
        make_options(step_time=coefficients).step_time_model.seconds(StepWork(1, 1, 10, 100))
        == 433.0
    )
