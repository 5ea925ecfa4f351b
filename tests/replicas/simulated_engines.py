"""Small simulated engines on a virtual clock, and requests for them."""

from collections.abc import Iterable, Sequence
from typing import Any

from replicas.protocol import Delta, EngineLoad, EngineTerms, Generation, pack_tokens
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions
from replicas.step_time import LinearStepTime
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
    terms: EngineTerms | None = None,
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
        terms=terms,
    )


def make_terms(key: float, lower: int = 1, upper: int = 1000, evictions: int = 0) -> EngineTerms:
    return EngineTerms(3.0, 1.0, lower, upper, key, arrival_s=0.0, evictions=evictions)


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
