"""vLLM's `AsyncLLM` behind the engine protocol."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from replicas.continued_text import echo
from replicas.protocol import (
    Delta,
    EngineDeadError,
    EngineInfo,
    EngineLoad,
    EngineStartError,
    Generation,
    Stalled,
    unpack_tokens,
)
from replicas.request_work import Worked
from replicas.stall_reports import StallListener
from replicas.step_log import StepLog
from replicas.vllm_sampling import delta_params
from replicas.vllm_steps import VllmSteps
from replicas.vllm_work import VllmWork

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

GIB = 1 << 30


class VllmEngineOptions(msgspec.Struct, frozen=True):
    """How to start vLLM.

    Attributes:
        model: Folder or hub name.
        engine_args: Keyword arguments of `vllm.AsyncEngineArgs`, passed through.
        cpu_cores: Cores to pin a CPU engine to; empty on accelerators.
    """

    model: str
    engine_args: dict[str, Any] = {}
    cpu_cores: list[int] = []


class _Running:
    """A request inside vLLM and what has been reported of it."""

    __slots__ = (
        "collector",
        "echo",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
        "recomputed_tokens",
    )

    def __init__(self, collector: RequestOutputCollector, prompt_tokens: int) -> None:
        self.collector = collector
        self.echo = ""  # what the first text repeats
        self.prompt_tokens = prompt_tokens
        self.output_tokens = 0
        self.preemptions = 0
        self.recomputed_tokens = 0


class VllmEngine:
    """One vLLM engine in this process and its engine-core child.

    Output is read from vLLM's own per-request collectors, which merge the deltas of engine steps
    until somebody drains them: no task per request, no work per token.
    """

    def __init__(self, options: VllmEngineOptions) -> None:
        self.output_made = asyncio.Event()
        self.output_ready = asyncio.Event()
        self.stall_changed = asyncio.Event()
        self._options = options
        self._engine: AsyncLLM | None = None
        self._stalls: StallListener | None = None
        self._running: dict[str, _Running] = {}
        self._failed: list[Delta] = []
        self._load = EngineLoad()
        self._log = StepLog()
        self._steps = VllmSteps(self._log, self._unfinished)
        self._work: VllmWork | None = None

    async def start(self) -> EngineInfo:
        """See `Engine.start`."""
        if self._options.cpu_cores:
            # Read by vLLM's CPU worker when its child process starts.
            cores = ",".join(str(core) for core in self._options.cpu_cores)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        self._stalls = StallListener(self.stall_changed)  # its path goes to the child process
        try:
            self._engine = await asyncio.to_thread(self._build)
        except Exception as error:
            # vLLM and what it loads have no common error type.
            self._stop_listening()
            raise EngineStartError(
                f"vLLM could not start for model {self._options.model!r}: {first_line(error)}"
            ) from error
        config = self._engine.vllm_config
        blocks = config.cache_config.num_gpu_blocks
        assert blocks is not None
        return EngineInfo(
            model=self._options.model,
            kv_blocks=blocks - 1,  # vLLM keeps one block as its null block
            block_size=config.cache_config.block_size,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_model_len=config.model_config.max_model_len,
            kind="vllm",
        )

    def _build(self) -> AsyncLLM:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        engine_args = {"enable_logging_iteration_details": True, **self._options.engine_args}
        args = AsyncEngineArgs(model=self._options.model, **engine_args)
        config = args.create_engine_config()
        check_memory(config)
        return AsyncLLM.from_vllm_config(config, stat_loggers=[self._stat_logger()])

    def _stat_logger(self) -> Any:
        """A factory of vLLM stat loggers: its hook that runs once after every engine step."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        engine = self

        class StepObserver(StatLoggerBase):
            def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None: ...

            def record(
                self,
                scheduler_stats: Any,
                iteration_stats: Any,
                mm_cache_stats: Any = None,
                engine_idx: int = 0,
            ) -> None:
                engine._stepped(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None: ...

        return StepObserver

    def _stepped(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        self._steps.observe(scheduler_stats, iteration_stats, time.perf_counter())
        if self._work is not None:
            self._work.observe(scheduler_stats, time.monotonic())
        if scheduler_stats is not None:
            self._load = EngineLoad(
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                kv_usage=scheduler_stats.kv_cache_usage,
            )
        if iteration_stats is not None:
            self._made_output(
                urgent=bool(
                    iteration_stats.time_to_first_tokens_iter or iteration_stats.finished_requests
                )
            )

    def _made_output(self, *, urgent: bool) -> None:
        self.output_made.set()
        if urgent:
            self.output_ready.set()

    async def submit(self, generations: Sequence[Generation]) -> None:
        """See `Engine.submit`."""
        for generation in generations:
            try:
                await self._add(generation)
            except EngineDeadError:
                raise
            except Exception as error:
                # vLLM validates parameters with many exception types; whatever it refuses is this
                # request's own error and must not touch the others.
                self.check()
                self._failed.append(
                    Delta(generation.request_id, finish_reason="error", error=first_line(error))
                )
                self._made_output(urgent=True)

    async def _add(self, generation: Generation) -> None:
        from vllm.inputs.engine import tokens_input

        params = delta_params(generation)
        token_ids = unpack_tokens(generation.prompt)
        collector = await self._live.add_request(
            generation.request_id,
            tokens_input(token_ids),
            params,
            priority=generation.priority,
            trace_headers={"traceparent": generation.trace} if generation.trace else None,
        )
        running = _Running(collector, len(token_ids))
        # Only tokenizers of this kind are detokenized in a way that can repeat anything.
        tokenizer = getattr(self._live.get_tokenizer(), "backend_tokenizer", None)
        if generation.generated_tokens and tokenizer is not None:
            running.echo = echo(
                tokenizer,
                token_ids,
                generation.generated_tokens,
                skip_special_tokens=params.skip_special_tokens,
            )
        self._running[generation.request_id] = running
        state = self._state(generation.request_id)
        if state is not None:
            self._steps.begin(generation.request_id, state)
            if self._work is not None:
                self._work.begin(generation.request_id, state)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `Engine.abort`."""
        known = [i for i in request_ids if i in self._running]
        for request_id in known:
            self._forget(request_id)
        if self._stalls is not None:
            self._stalls.forget(known)
        if known:
            await self._live.abort(known)

    def drain(self, *, finished_only: bool = False) -> list[Delta]:
        """See `Engine.drain`."""
        from vllm.outputs import RequestOutput

        self.output_made.clear()
        self.output_ready.clear()
        deltas, self._failed = self._failed, []
        for request_id, running in list(self._running.items()):
            waiting = running.collector.output
            if waiting is None or (
                finished_only and isinstance(waiting, RequestOutput) and not waiting.finished
            ):
                continue
            try:
                output = running.collector.get_nowait()
            except Exception as error:
                self.check()
                self._forget(request_id)
                deltas.append(Delta(request_id, finish_reason="error", error=first_line(error)))
                continue
            assert isinstance(output, RequestOutput), "only generations are submitted"
            deltas.append(self._delta(request_id, running, output))
        return deltas

    def _delta(self, request_id: str, running: _Running, output: RequestOutput) -> Delta:
        completion, metrics = output.outputs[0], output.metrics
        assert metrics is not None, "statistics are on: the step observer needs them"
        preemptions = metrics.num_preemptions
        if preemptions > running.preemptions:
            # All that stood when the engine let go of the request was computed a second time.
            running.recomputed_tokens += running.prompt_tokens + running.output_tokens
            running.preemptions = preemptions
        running.output_tokens += len(completion.token_ids)
        text = completion.text
        if text and running.echo:
            text, running.echo = text.removeprefix(running.echo), ""
        if completion.finish_reason is not None:
            self._forget(request_id)
        return Delta(
            request_id=request_id,
            token_ids=list(completion.token_ids),
            text=text,
            finish_reason=completion.finish_reason,
            first_token_s=metrics.first_token_latency or None,
            preemptions=running.preemptions,
            recomputed_tokens=running.recomputed_tokens,
            stop_reason=completion.stop_reason,
            logprobs=_listed(completion.logprobs),
            prompt_logprobs=_listed(output.prompt_logprobs),
            cached_tokens=output.num_cached_tokens or 0,
        )

    def load(self) -> EngineLoad:
        """See `Engine.load`."""
        return self._load

    def stalled(self) -> dict[str, Stalled]:
        """See `Engine.stalled`."""
        if self._stalls is None:
            return {}
        return {i: s for i, s in self._stalls.latest.items() if i in self._running}

    def steps(self) -> NDArray[np.float64]:
        """See `Engine.steps`."""
        return self._log.read()

    def worked(self) -> Worked:
        """See `Engine.worked`."""
        if self._work is None:
            self._work = VllmWork()
        return self._work.take(time.monotonic())

    def _forget(self, request_id: str) -> None:
        del self._running[request_id]
        self._steps.end(request_id)
        if self._work is not None:
            self._work.end(request_id)

    def _state(self, request_id: str) -> RequestState | None:
        """What vLLM's output processor keeps of a request; None once it has finished."""
        processor = self._live.output_processor
        own_ids = processor.external_req_ids.get(request_id)
        return processor.request_states.get(own_ids[-1]) if own_ids else None

    def _unfinished(self) -> Iterable[RequestState]:
        return () if self._engine is None else self._engine.output_processor.request_states.values()

    def check(self) -> None:
        """See `Engine.check`."""
        if self._engine is not None and self._engine.errored:
            raise EngineDeadError("vLLM's engine core has died; its log says why")

    @property
    def _live(self) -> AsyncLLM:
        if self._engine is None:
            raise EngineDeadError("the engine has not been started")
        self.check()
        return self._engine

    async def stop(self) -> None:
        """See `Engine.stop`."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
            self._engine = None
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._stalls is not None:
            self._stalls.close()
            self._stalls = None


def _listed(rows: Iterable[Any] | None) -> list[Any] | None:
    return None if rows is None else list(rows)


def check_memory(config: VllmConfig) -> None:
    """Refuse a CPU engine that cannot hold its own KV cache, before the model is loaded.

    Raises:
        EngineStartError: Less memory than the KV cache needs is free, or the cache is smaller than
            one request of `max_model_len`.
    """
    wanted = config.cache_config.kv_cache_memory_bytes
    if config.device_config.device_type != "cpu" or not wanted:
        return
    free = psutil.virtual_memory().available
    if wanted > free:
        raise EngineStartError(
            f"the KV cache is configured to {wanted / GIB:.1f} GiB, but {free / GIB:.1f} GiB of "
            "memory are free: lower replicas.kv_cache_gib or the number of replicas on this node"
        )
    per_token = kv_bytes_per_token(config)
    longest = config.model_config.max_model_len
    if config.cache_config.num_gpu_blocks_override is None and longest * per_token > wanted:
        raise EngineStartError(
            f"one request of max_model_len {longest} needs {longest * per_token / GIB:.2f} GiB of "
            f"KV cache, but {wanted / GIB:.2f} GiB are configured: raise replicas.kv_cache_gib or "
            f"lower replicas.max_model_len to {wanted // per_token}"
        )


def kv_bytes_per_token(config: VllmConfig) -> int:
    """Bytes of key and value that one token keeps in every layer of a worker."""
    import torch

    model, parallel = config.model_config, config.parallel_config
    heads: int = model.get_num_kv_heads(parallel)
    layers: int = model.get_num_layers(parallel)
    dtype = model.dtype
    assert isinstance(dtype, torch.dtype), "a finished configuration has resolved it"
    return 2 * heads * int(model.get_head_size()) * layers * dtype.itemsize


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
