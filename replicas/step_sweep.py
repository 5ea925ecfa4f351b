"""A sweep over prompt lengths and batch sizes that shows what an engine's steps cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replicas.engines import EngineSpec, make_engine
from replicas.protocol import Engine, EngineInfo, Generation, pack_tokens
from replicas.step_time import StepTimeError

SMALLEST_VOCABULARY = 1000
"""Prompts are random tokens below this: every model knows them and no prefix repeats."""

PROMPT_GROWTH = BATCH_GROWTH = 4
"""Ratio of successive prompt lengths and batch sizes in the sweep."""

MOST_PREFILL_TOKENS = 2048
"""Prompt tokens of one point of the sweep at most, so that it stays short."""

MIXED_REQUESTS = 3
"""Requests per slot of the batch in the last part, where prefill and decode share steps."""

SHORTEST_PROMPT_TOKENS = 16

LOOK_S = 1.0
"""Longest wait for output before it is asked whether the engine lives."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are sent at once.

    Attributes:
        prompt_tokens: Length of each prompt.
        output_tokens: Tokens that each produces.
    """

    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


class SweepActor:
    """Measures one engine of its own. Whoever creates it makes it a Ray actor, as replicas are."""

    async def measure(
        self, spec: EngineSpec, cpu_cores: int, output_tokens: int, seed: int
    ) -> tuple[EngineInfo, NDArray[np.float64]]:
        """Start the engine, run the sweep and stop it.

        Args:
            spec: The engine.
            cpu_cores: Cores to pin it to; 0: no pinning.
            output_tokens: Tokens that each request of the sweep produces, at least 2.
            seed: Of the prompts and the mixed part.

        Returns:
            What the engine holds, and its steps as `Engine.steps` gives them.

        Raises:
            EngineStartError: The engine cannot run here.
            StepTimeError: No sweep fits into the engine, or it refused a request.
        """
        engine = make_engine(spec, sorted(os.sched_getaffinity(0))[:cpu_cores])
        info = await engine.start()
        try:
            rng = np.random.default_rng(seed)
            loads = list(sweep(info, output_tokens, rng))
            await run_load(engine, loads[0], rng)  # an engine's first steps are slower
            cold = len(engine.steps())
            for load in loads:
                await run_load(engine, load, rng)
            return info, engine.steps()[cold:]
        finally:
            await engine.stop()


def sweep(info: EngineInfo, output_tokens: int, rng: np.random.Generator) -> Iterator[Load]:
    """Equal requests for each prompt length and batch size that fit, then mixed ones.

    Equal ones fit into the KV cache at their full length; the pilot beside them, and in a small
    cache the mixed ones, may evict, and what is computed again counts as prefill or not at all.
    """
    longest = min(info.max_model_len, info.kv_blocks * info.block_size) - output_tokens
    if longest < SHORTEST_PROMPT_TOKENS:
        raise StepTimeError(
            f"a request of {output_tokens} output tokens leaves {longest} for its prompt, a sweep "
            f"needs {SHORTEST_PROMPT_TOKENS}: lower --output-tokens or raise max_model_len"
        )
    slots = max(1, info.max_num_seqs - 1)  # one is the pilot's, see `run_load`
    for prompt_tokens in _growing(SHORTEST_PROMPT_TOKENS, longest, PROMPT_GROWTH):
        blocks = -(-(prompt_tokens + output_tokens) // info.block_size)
        most = min(slots, info.kv_blocks // blocks, MOST_PREFILL_TOKENS // prompt_tokens)
        for batch in _growing(1, max(1, most), BATCH_GROWTH):
            yield Load((prompt_tokens,) * batch, (output_tokens,) * batch)
    most_output = 2 * output_tokens
    room = min(info.kv_blocks // info.max_num_seqs * info.block_size, info.max_model_len)
    top = max(room - most_output, SHORTEST_PROMPT_TOKENS)
    count = MIXED_REQUESTS * info.max_num_seqs
    prompts = np.exp(rng.uniform(np.log(SHORTEST_PROMPT_TOKENS), np.log(top), count)).astype(int)
    outputs = rng.integers(2, most_output, count, endpoint=True)
    outputs = np.minimum(outputs, info.max_model_len - prompts)
    yield Load(tuple(prompts.tolist()), tuple(outputs.tolist()))


async def run_load(engine: Engine, load: Load, rng: np.random.Generator) -> None:
    """Send the requests of a load at once and wait for all their output.

    Another request decodes already when they come: a step that follows no other is not measured,
    and it would be the one that prefills them.

    Raises:
        EngineDeadError: The engine has died.
        StepTimeError: The engine refused a request.
    """
    name = f"{int(rng.integers(1 << 62)):x}"
    pilot = Load((SHORTEST_PROMPT_TOKENS,), (max(load.output_tokens),))
    await engine.submit(_generations(f"{name}/pilot", pilot, rng))
    running = 1 - await _ended(engine)
    await engine.submit(_generations(name, load, rng))
    running += len(load.prompt_tokens)
    while running:
        running -= await _ended(engine)


def _generations(name: str, load: Load, rng: np.random.Generator) -> list[Generation]:
    sizes = zip(load.prompt_tokens, load.output_tokens, strict=True)
    return [
        Generation(
            request_id=f"{name}/{index}",
            client_id="sweep",
            prompt=pack_tokens(rng.integers(SMALLEST_VOCABULARY, size=prompt).tolist()),
            sampling={
                "max_tokens": output,
                "temperature": 0.0,
                "ignore_eos": True,
                "detokenize": False,
                "extra_args": {"simulated_output_tokens": output},
            },
        )
        for index, (prompt, output) in enumerate(sizes)
    ]


async def _ended(engine: Engine) -> int:
    """Wait for output; how many requests ended with it."""
    while not engine.output_ready.is_set():
        engine.check()  # one that has died announces nothing more
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await engine.output_ready.wait()
    engine.check()
    reasons = [(delta.finish_reason, delta.error) for delta in engine.drain()]
    for reason, error in reasons:
        if reason not in (None, "length", "stop"):
            raise StepTimeError(f"the engine ended a request of the sweep: {error or reason}")
    return sum(reason is not None for reason, _ in reasons)


def _growing(first: int, last: int, ratio: int) -> Iterator[int]:
    """`first`, then `ratio` times as much each time, and `last` itself."""
    value = first
    while value < last:
        yield value
        value *= ratio
    yield last
