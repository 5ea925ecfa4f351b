"""Who waits behind a simulated engine's gate, held against a look at all that it knows."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.gate import Gate
from replicas.protocol import Stalled
from replicas.simulated_engine import SimulatedEngine
from tests.replicas.simulated_engines import collect, make_generation, make_options, make_terms
from tests.replicas.virtual_loop import VirtualLoop, run_virtually

TIGHT = {"kv_blocks": 14, "max_num_seqs": 4}


def looked_up(gate: Gate) -> dict[str, Stalled]:
    waiting = gate.waiting_tokens()
    return {i: Stalled(tokens, gate.evictions(i)) for i, tokens in waiting.items()}


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["submit"] * 6 + ["submit again", "abort"]),
        st.integers(0, 9),
        st.integers(10, 40),
    ),
    max_size=1,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(HAPPENINGS, min_size=5, max_size=50), st.sampled_from(["a_min", "tiebreak"]))
def test_after_each_step_the_engine_tells_who_waits(steps, policy: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = SimulatedEngine(make_options(**TIGHT, policy={"name": policy}))
        assert engine._gate is not None
        await engine.start()
        attempts = dict.fromkeys((f"r{n}" for n in range(10)), 1)
        await asyncio.sleep(0.5)  # between two steps, of a second each
        for happenings in steps:
            before = engine.stalled()
            for what, number, tokens in happenings:
                name = f"r{number}"
                if what == "abort":
                    await engine.abort([name])
                    continue
                attempts[name] += what == "submit again"
                await engine.submit(
                    [
                        make_generation(
                            name,
                            range(1, 2 + number),
                            output_tokens=tokens,
                            attempt=attempts[name],
                            terms=make_terms(float(number), 1, 1000, evictions=number % 3),
                        )
                    ]
                )
            await asyncio.sleep(1.0)
            assert engine.stalled() == looked_up(engine._gate)
            if engine.stalled() != before:
                assert engine.stall_changed.is_set()
            engine.stall_changed.clear()
            engine.drain()
        await engine.stop()

    run_virtually(main)


def test_a_step_looks_at_those_whom_it_evicts_and_not_at_all_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    evictions = Gate.evictions

    def noted(gate: Gate, request_id: str) -> int:
        looked.append(request_id)
        return evictions(gate, request_id)

    monkeypatch.setattr(Gate, "evictions", noted)
    names = [f"r{number}" for number in range(40)]

    async def main(loop: VirtualLoop) -> int:
        engine = SimulatedEngine(make_options(**TIGHT, policy={"name": "a_min"}))
        await engine.start()
        await engine.submit(
            [make_generation(i, output_tokens=30, terms=make_terms(1.0)) for i in names]
        )
        merged = await collect(engine, names)
        await engine.stop()
        return sum(delta.preemptions for delta in merged.values())

    evicted = run_virtually(main)
    assert len(looked) <= len(names) + evicted
