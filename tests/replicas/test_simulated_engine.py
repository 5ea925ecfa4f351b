import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.protocol import (
    Delta,
    EngineDeadError,
    EngineInfo,
    EngineLoad,
    EngineStartError,
    Generation,
    pack_tokens,
)
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_time import LinearStepTime, StepWork, UnitStepTime
from tests.replicas.virtual_loop import VirtualLoop, run_virtually

SECOND_PER_STEP = LinearStepTime(1.0, 0.0, 0.0, 0.0)


def make_options(**changes: Any) -> SimulatedEngineOptions:
    defaults: dict[str, Any] = {
        "kv_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "max_model_len": 200,
        "step_time": SECOND_PER_STEP,
    }
    return SimulatedEngineOptions(**defaults | changes)


def make_generation(
    request_id: str = "r",
    prompt: Sequence[int] = (5, 6, 7),
    output_tokens: int | None = None,
    max_tokens: int | None = 50,
    tail: Sequence[int] = (),
    attempt: int = 1,
    priority: int = 0,
    **sampling: Any,
) -> Generation:
    if output_tokens is not None:
        sampling["extra_args"] = {"simulated_output_tokens": output_tokens}
    return Generation(
        request_id=request_id,
        client_id="c",
        prompt=pack_tokens([*prompt, *tail]),
        generated_tokens=len(tail),
        sampling={"max_tokens": max_tokens, **sampling},
        attempt=attempt,
        priority=priority,
    )


async def collect(engine: SimulatedEngine, request_ids: Iterable[str]) -> dict[str, Delta]:
    """Drain until all have ended; the deltas of each merged."""
    merged: dict[str, Delta] = {}
    open_ids = set(request_ids)
    while open_ids:
        await engine.output_ready.wait()
        for delta in engine.drain():
            whole = merged.setdefault(delta.request_id, Delta(delta.request_id))
            assert whole.finish_reason is None, "a delta after the last one"
            whole.token_ids.extend(delta.token_ids)
            whole.text += delta.text
            for name in (
                "finish_reason",
                "error",
                "preemptions",
                "recomputed_tokens",
                "attempt",
            ):
                setattr(whole, name, getattr(delta, name))
            if delta.finish_reason is not None:
                open_ids.discard(delta.request_id)
    return merged


def answers(
    generations: Sequence[Generation], options: SimulatedEngineOptions | None = None
) -> dict[str, Delta]:
    async def main(loop: VirtualLoop) -> dict[str, Delta]:
        engine = SimulatedEngine(options or make_options())
        await engine.start()
        await engine.submit(generations)
        merged = await collect(engine, [g.request_id for g in generations])
        assert engine.load() == EngineLoad()
        await engine.stop()
        return merged

    return run_virtually(main)


def answer(generation: Generation, options: SimulatedEngineOptions | None = None) -> Delta:
    return answers([generation], options)[generation.request_id]


def test_the_engine_reports_what_it_can_hold() -> None:
    async def main(loop: VirtualLoop) -> EngineInfo:
        return await SimulatedEngine(make_options(model="m")).start()

    info = run_virtually(main)
    assert info == EngineInfo("m", 64, 4, 8, 200, kind="simulated")


@pytest.mark.parametrize(
    ("output_tokens", "max_tokens", "tokens", "reason"),
    [(7, 50, 7, "stop"), (50, 50, 50, "stop"), (51, 50, 50, "length"), (1, 1, 1, "stop")],
)
def test_length_and_finish_reason(
    output_tokens: int, max_tokens: int, tokens: int, reason: str
) -> None:
    delta = answer(make_generation(output_tokens=output_tokens, max_tokens=max_tokens))
    assert len(delta.token_ids) == tokens
    assert delta.finish_reason == reason
    assert delta.text == "".join(f" w{token}" for token in delta.token_ids)


def test_ignore_eos_and_min_tokens_lengthen_the_answer() -> None:
    whole = answer(make_generation(output_tokens=3, max_tokens=20, ignore_eos=True))
    assert (len(whole.token_ids), whole.finish_reason) == (20, "length")
    longer = answer(make_generation(output_tokens=3, max_tokens=20, min_tokens=8))
    assert (len(longer.token_ids), longer.finish_reason) == (8, "stop")


def test_max_tokens_none_means_the_rest_of_the_model_length() -> None:
    delta = answer(make_generation(max_tokens=None, ignore_eos=True))
    assert len(delta.token_ids) == 200 - 3


def test_drawn_lengths_follow_the_documented_distribution() -> None:
    options = make_options(
        max_model_len=100_000,
        kv_blocks=25_000,
        max_num_seqs=2000,
        max_num_batched_tokens=10_000,
        output_median_tokens=40.0,
        output_log_sigma=0.5,
    )
    ids = [f"r{number}" for number in range(1000)]
    drawn = answers([make_generation(i, max_tokens=10_000) for i in ids], options)
    logs = [math.log(len(drawn[i].token_ids)) for i in ids]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs))
    assert abs(mean - math.log(40)) < 4 * 0.5 / math.sqrt(1000)
    assert abs(spread - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_drawn_lengths_depend_on_request_and_seed_only() -> None:
    ids = [f"r{number}" for number in range(20)]

    def lengths(seed: int, prompt: Sequence[int]) -> list[int]:
        options = make_options(seed=seed, output_median_tokens=20.0)
        merged = answers([make_generation(i, prompt) for i in ids], options)
        return [len(merged[i].token_ids) for i in ids]

    assert lengths(1, [1, 2]) == lengths(1, [3, 4, 5])
    assert lengths(1, [1, 2]) != lengths(2, [1, 2])
    assert max(lengths(1, [1, 2])) <= 50


def test_tokens_depend_on_the_prompt() -> None:
    one, other = (
        answer(make_generation(prompt=p, output_tokens=10)) for p in ([1, 2, 3], [1, 2, 4])
    )
    assert one.token_ids != other.token_ids
    assert all(0 <= token < 32_000 for token in one.token_ids)


@settings(max_examples=30, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 31_999), min_size=1, max_size=40),
    cut=st.integers(0, 50),
    max_tokens=st.integers(1, 50),
)
def test_a_continued_request_gives_the_same_tokens_on_another_engine(
    prompt: list[int], cut: int, max_tokens: int
) -> None:
    whole = answer(make_generation(prompt=prompt, max_tokens=max_tokens))
    tail = whole.token_ids[:cut]
    other = make_options(kv_blocks=40, block_size=8, max_num_batched_tokens=9)
    rest = answer(
        make_generation(prompt=prompt, tail=tail, max_tokens=max_tokens, attempt=2), other
    )
    assert tail + rest.token_ids == whole.token_ids
    assert rest.finish_reason == whole.finish_reason
    assert rest.attempt == 2


def test_preempted_requests_complete_with_the_same_tokens() -> None:
    generations = [make_generation(f"r{n}", [n], output_tokens=40) for n in range(6)]
    roomy = answers(generations)
    tight = answers(generations, make_options(kv_blocks=20))
    assert {i: d.token_ids for i, d in tight.items()} == {i: d.token_ids for i, d in roomy.items()}
    assert all(d.preemptions == d.recomputed_tokens == 0 for d in roomy.values())
    preempted = [d for d in tight.values() if d.preemptions]
    assert preempted
    assert all(d.recomputed_tokens >= d.preemptions for d in preempted)
    assert tight["r0"].preemptions == 0


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


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (make_generation(prompt=range(150), max_tokens=51), "is 201, over max_model_len of 200"),
        (make_generation(prompt=range(250), max_tokens=None), "over max_model_len of 200"),
        (make_generation(max_tokens=0), "max_tokens is 0"),
        (make_generation(output_tokens=0), "simulated_output_tokens is 0"),
        (make_generation(prompt=()), "prompt is 0 bytes"),
        (make_generation(prompt=(), tail=(1, 2)), r"generated_tokens is 2, must be in 0..1"),
        (Generation("r", "c", b"12345"), "prompt is 5 bytes"),
        (make_generation(min_tokens="many"), "min_tokens is 'many'"),
    ],
)
def test_impossible_requests_get_an_error_and_others_run(
    generation: Generation, message: str
) -> None:
    merged = answers([generation, make_generation("good", output_tokens=2)])
    assert merged["r"].finish_reason == "error"
    assert message in (merged["r"].error or "")
    assert len(merged["good"].token_ids) == 2


def test_a_request_larger_than_the_kv_cache_is_refused_by_that_name() -> None:
    delta = answer(make_generation(max_tokens=80), make_options(kv_blocks=20))
    assert "is 83, over the KV cache (kv_blocks x block_size) of 80 tokens" in (delta.error or "")


def test_a_continued_request_that_was_complete_ends_at_once() -> None:
    whole = answer(make_generation(output_tokens=9))
    again = answer(make_generation(output_tokens=9, tail=whole.token_ids, attempt=2))
    assert (again.token_ids, again.finish_reason) == ([], "stop")


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
