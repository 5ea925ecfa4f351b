"""A policy inside the simulated engine: who starts, who is evicted and what is told of it."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model_lengths import ModelLengths
from replicas.protocol import EngineStartError, EngineTerms, Stalled
from replicas.simulated_attempt import SimulatedAttempt
from replicas.simulated_engine import SimulatedEngine
from replicas.simulated_output import plan_output
from tests.replicas.simulated_engines import (
    answers,
    collect,
    make_generation,
    make_options,
    make_terms,
)
from tests.replicas.virtual_loop import VirtualLoop, run_virtually


def test_a_policy_s_projection_keeps_a_request_waiting_and_the_engine_says_so() -> None:
    """Both fit now, but not both to their ends."""
    generations = [
        make_generation("second", output_tokens=40, terms=make_terms(2.0, 40, 40)),
        make_generation("first", output_tokens=40, terms=make_terms(1.0, 40, 40)),
    ]
    options = make_options(kv_blocks=15, policy={"name": "a_max"})

    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(options)
        await engine.start()
        await engine.submit(generations)
        assert engine.stalled() == {}  # the engine has not looked at them yet
        await engine.stall_changed.wait()
        engine.stall_changed.clear()
        assert engine.stalled() == {"second": Stalled(0, 0)}
        assert (engine.load().running, engine.load().waiting) == (1, 1)
        await engine.stall_changed.wait()
        assert engine.stalled() == {}
        assert engine.load().running == 2  # started before the first one's end
        merged = await collect(engine, ["first", "second"])
        assert all(d.preemptions == 0 and len(d.token_ids) == 40 for d in merged.values())

    run_virtually(main)


def test_an_evicted_request_is_reported_with_its_tokens_and_all_its_evictions() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options(kv_blocks=15, policy={"name": "a_min"}))
        await engine.start()
        tail = [7] * 5
        await engine.submit(
            [
                make_generation("small", output_tokens=40, tail=tail, terms=make_terms(1.0, 6, 50)),
                make_generation(
                    "victim", output_tokens=40, tail=tail, terms=make_terms(2.0, 2, 50, 2)
                ),
            ]
        )
        while "victim" not in engine.stalled():
            await engine.stall_changed.wait()
            engine.stall_changed.clear()
        produced = {d.request_id: len(d.token_ids) for d in engine.drain()}
        assert engine.stalled() == {"victim": Stalled(5 + produced["victim"], 3)}
        merged = await collect(engine, ["small", "victim"])
        assert engine.stalled() == {}
        assert merged["victim"].preemptions == 1
        assert merged["victim"].recomputed_tokens >= 3 + 5
        assert produced["victim"] + len(merged["victim"].token_ids) == 40 - 5

    run_virtually(main)


def test_a_request_that_is_recalled_waits_no_more() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options(kv_blocks=15, policy={"name": "a_max"}))
        await engine.start()
        await engine.submit(
            [
                make_generation("first", output_tokens=40, terms=make_terms(1.0, 40, 40)),
                make_generation("second", output_tokens=40, terms=make_terms(2.0, 40, 40)),
            ]
        )
        await engine.stall_changed.wait()
        engine.stall_changed.clear()
        await engine.abort(["second"])
        assert engine.stall_changed.is_set()
        assert engine.stalled() == {}
        await collect(engine, ["first"])
        assert engine.stalled() == {}
        await engine.stop()

    run_virtually(main)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=12),
    name=st.sampled_from(["fcfs", "a_min", "a_max", "tiebreak", "promote_l"]),
    with_terms=st.booleans(),
)
def test_a_policy_changes_when_answers_come_but_not_what_they_are(
    lengths: list[tuple[int, int]], name: str, with_terms: bool
) -> None:
    generations = [
        make_generation(
            f"r{number}",
            range(1, prompt + 1),
            output_tokens=output,
            max_tokens=60,
            terms=make_terms(float(number), lower=number + 1) if with_terms else None,
        )
        for number, (prompt, output) in enumerate(lengths)
    ]
    tight = {"kv_blocks": 31, "max_num_seqs": 5}
    plain = answers(generations, make_options(**tight))
    gated = answers(generations, make_options(**tight, policy={"name": name, "max_evictions": 2}))
    for request_id, delta in plain.items():
        assert gated[request_id].token_ids == delta.token_ids
        assert gated[request_id].finish_reason == delta.finish_reason
        assert gated[request_id].preemptions <= 2


def test_without_terms_the_prior_forecasts() -> None:
    """Its median is 300 tokens, so that each is projected at its own cap."""
    generations = [make_generation(f"r{n}", output_tokens=3, max_tokens=50) for n in range(4)]
    policy = {"name": "a_max"}

    async def main(loop: VirtualLoop) -> int:
        engine = SimulatedEngine(make_options(kv_blocks=40, policy=policy))
        await engine.start()
        await engine.submit(generations)
        await engine.stall_changed.wait()
        return engine.load().running

    assert run_virtually(main) == 40 // math.ceil((3 + 50) / 4)


@pytest.mark.parametrize("terms", [None, make_terms(0.0, lower=3, upper=5)])
def test_a_continued_request_is_known_to_be_as_long_as_it_is(terms: EngineTerms | None) -> None:
    generation = make_generation(max_tokens=190, tail=[7] * 150, terms=terms)
    output = plan_output(generation, make_options().lengths, 200, 100)
    forecast = SimulatedAttempt(generation, output, 0.0).forecast(ModelLengths())
    assert (forecast.lower, forecast.upper) == (150, 190 if terms is None else 150)


def test_a_policy_that_needs_true_lengths_does_not_start() -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(EngineStartError, match="no true output length"):
            await SimulatedEngine(make_options(policy={"name": "h_sf"})).start()

    run_virtually(main)


def test_without_a_policy_nothing_is_reported_as_stalled() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options(max_num_seqs=1))
        await engine.start()
        await engine.submit([make_generation(f"r{n}", terms=make_terms(0.0)) for n in range(3)])
        await asyncio.sleep(2.5)
        assert engine.load().waiting == 2
        assert engine.stalled() == {}
        assert not engine.stall_changed.is_set()

    run_virtually(main)
