"""When output leaves a replica."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from replicas.delivery_pace import LONGEST_PAUSE_S, OFFLINE_PAUSE_S, PER_REQUEST_S, DeliveryPace
from replicas.protocol import Delta
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_time import LinearStepTime
from tests.replicas.simulated_engines import make_generation
from tests.replicas.virtual_loop import VirtualLoop, run_virtually

STEP_S = 0.01
TOKENS = 100


def delivered(requests: int, *, read_along: bool) -> list[tuple[float, list[Delta]]]:
    """When what was delivered of requests that all make `TOKENS` tokens."""

    async def run(loop: VirtualLoop) -> list[tuple[float, list[Delta]]]:
        engine = SimulatedEngine(
            SimulatedEngineOptions(
                kv_blocks=4096,
                max_num_seqs=256,
                step_time=LinearStepTime(STEP_S, 0.0, 0.0, 0.0),
            )
        )
        await engine.start()
        pace = DeliveryPace(engine)
        await engine.submit(
            [
                make_generation(f"r{i}", output_tokens=TOKENS, max_tokens=200)
                for i in range(requests)
            ]
        )
        deliveries, ended = [], 0
        while ended < requests:
            everything = await pace.due(requests, read_along=read_along)
            if deltas := engine.drain(finished_only=not everything):
                deliveries.append((loop.time(), deltas))
                ended += sum(delta.finish_reason is not None for delta in deltas)
        await engine.stop()
        return deliveries

    return run_virtually(run)


def test_a_single_reader_gets_every_token_with_its_step() -> None:
    deliveries = delivered(1, read_along=True)

    assert [len(deltas[0].token_ids) for _, deltas in deliveries] == [1] * TOKENS
    at = [at_s for at_s, _ in deliveries]
    assert at == pytest.approx([STEP_S * (i + 1) for i in range(TOKENS)], abs=1e-6)


@pytest.mark.parametrize("requests", [30, 200])
def test_many_readers_wait_for_company_but_not_for_their_first_and_last_token(
    requests: int,
) -> None:
    deliveries = delivered(requests, read_along=True)

    at = [at_s for at_s, _ in deliveries]
    pause_s = min(LONGEST_PAUSE_S, requests * PER_REQUEST_S)
    assert at[0] == pytest.approx(STEP_S)
    assert at[-1] == pytest.approx(STEP_S * TOKENS)
    between = [b - a for a, b in itertools.pairwise(at[:-1])]
    assert all(pause_s - 1e-6 <= gap < pause_s + STEP_S for gap in between)


def test_nobody_reads_along_so_what_has_not_ended_goes_once_in_a_while() -> None:
    deliveries = delivered(4, read_along=False)

    *early, (last_s, last) = deliveries
    assert last_s >= STEP_S * TOKENS
    assert {delta.finish_reason for delta in last} == {"length"} or all(
        delta.finish_reason for delta in last
    )
    assert len(early) <= STEP_S * TOKENS / OFFLINE_PAUSE_S + 1


def test_an_error_does_not_wait() -> None:
    async def run(loop: VirtualLoop) -> float:
        engine = SimulatedEngine(SimulatedEngineOptions())
        await engine.start()
        pace = DeliveryPace(engine)
        await pace.due(1, read_along=True)
        began_s = loop.time()
        waiting = asyncio.create_task(pace.due(1, read_along=True))
        await asyncio.sleep(0)
        await engine.submit([make_generation(max_tokens=10**6)])
        await waiting
        assert engine.drain()[0].finish_reason == "error"
        await engine.stop()
        return loop.time() - began_s

    assert run_virtually(run) < PER_REQUEST_S
