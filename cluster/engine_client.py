"""vLLM's `EngineClient` over a cluster, so that vLLM's own server can stand in front of it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NoReturn, Protocol, cast

import msgspec
from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient, StreamingInput
from vllm.exceptions import VLLMValidationError
from vllm.inputs import EngineInput, PromptType
from vllm.inputs.engine import TokensInput
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers import BaseRenderer
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask
from vllm.utils.async_utils import merge_async_iterators
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.kv_hints import KvHintsEnvelope

from cluster.call import GenerationError, GenerationRequest
from cluster.client import ClusterClient, NoClusterError
from cluster.endpoint.caller import Caller, Exchange, Failure, current_exchange
from cluster.endpoint.refusals import (
    RefusedError,
    as_vllm_error,
    check_load,
    check_size,
    status_of,
)
from cluster.endpoint.request_outputs import Answers
from cluster.messages import ClusterLoad
from policies.request import RequestClass
from predictor.excerpt import excerpt
from replicas.protocol import Delta
from replicas.vllm_sampling import plain_sampling

TASKS: tuple[SupportedTask, ...] = ("generate",)


class Link(Protocol):
    """A connection to a cluster."""

    def client(self) -> ClusterClient:
        """The client to submit with.

        Raises:
            NoClusterError: There is none now.
        """

    @property
    def load(self) -> ClusterLoad | None:
        """What the controller said last; None: nothing yet."""


class ClusterEngineClient(EngineClient):
    """An engine that is a whole cluster.

    Prompts are rendered and parameters validated here, with vLLM's own code and errors; what is
    generated comes from whichever replicas the controller chose. A request with n answers becomes
    n requests, seeded as vLLM seeds them.

    Args:
        config: vLLM's configuration of the model, made without an engine.
        renderer: Of that model.
        link: The connection.
        traces: Whether somebody wants to see what becomes of a client's trace.
    """

    def __init__(
        self, config: VllmConfig, renderer: BaseRenderer, link: Link, *, traces: bool = False
    ) -> None:
        self.vllm_config = config
        self.model_config = config.model_config
        self.renderer = renderer
        self.input_processor = InputProcessor(config, renderer)
        self._link = link
        self._traces = traces

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """See `EngineClient.check_admission`.

        Raises:
            RefusedError: The queue is full, or no replica serves.
        """
        exchange = current_exchange()
        try:
            self._link.client()
            check_load(self._link.load, n, exchange.caller.request_class)
        except NoClusterError as error:
            raise RefusedError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from error
        except RefusedError as error:
            exchange.retry_after_s = error.retry_after_s
            raise

    def generate(
        self,
        prompt: EngineCoreRequest | PromptType | EngineInput | AsyncGenerator[StreamingInput, None],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        session_id: str | None = None,
        kv_hints: KvHintsEnvelope | None = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run a request; see `EngineClient.generate`.

        What can be refused is refused here and now, before a response has begun.

        Raises:
            VLLMValidationError: vLLM refuses the prompt or a parameter, no replica can hold the
                request, or it asks for what a cluster does not do.
        """
        _refuse(
            {
                "LoRA adapters": lora_request is not None,
                "hints for the KV cache": kv_hints is not None,
                "a data-parallel rank": bool(data_parallel_rank),
            }
        )
        if priority:
            raise VLLMValidationError(
                f"priority is {priority}, must be 0: requests are ordered by their class "
                "(header x-request-class) and the cluster's policy",
                parameter="priority",
            )
        if not (isinstance(prompt, dict) and prompt.get("type") == "token"):
            _unsupported("prompts other than text and token ids")
        tokens = cast(TokensInput, prompt)
        if tokens.get("cache_salt"):
            _unsupported("cache salts")  # never let what was to be kept apart be shared
        checked = self.input_processor.process_inputs(
            request_id, tokens, sampling_params, TASKS, tokenization_kwargs=tokenization_kwargs
        )
        params = checked.sampling_params
        assert params is not None, "generation was asked for"
        assert params.max_tokens is not None, "the input processor fills it in"
        token_ids = list(checked.prompt_token_ids or ())
        check_size(self._link.load, len(token_ids), params.max_tokens)
        text = tokens.get("prompt") or prompt_text
        exchange = current_exchange()
        requests = _requests(
            request_id, token_ids, text or "", sampling_params, params.max_tokens, exchange.caller
        )
        if trace := (trace_headers or {}).get("traceparent"):
            requests = [msgspec.structs.replace(request, trace=trace) for request in requests]
        answers = Answers(
            request_id, text, token_ids, sampling_params.n, sampling_params.output_kind
        )
        return self._run(requests, answers, exchange)

    async def _run(
        self, requests: list[GenerationRequest], answers: Answers, exchange: Exchange
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            async with contextlib.aclosing(_deltas(self._link.client(), requests)) as deltas:
                async for index, delta in deltas:
                    if (output := answers.add(index, delta)) is not None:
                        yield output
        except GenerationError as error:
            exchange.failure = Failure(status_of(error.cause), str(error))
            refusal = as_vllm_error(error)
            if isinstance(refusal, RefusedError):
                exchange.retry_after_s = refusal.retry_after_s
            raise refusal from error
        except NoClusterError as error:
            exchange.failure = Failure(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            raise RefusedError(str(error), HTTPStatus.SERVICE_UNAVAILABLE) from error

    async def check_health(self) -> None:
        """Raise unless a request would be served.

        Raises:
            EngineDeadError: There is no cluster, no replica serves and none is coming.
        """
        try:
            self._link.client()
            check_load(self._link.load, 0, RequestClass.ONLINE)
        except NoClusterError as error:
            raise EngineDeadError from error
        except RefusedError as error:
            if error.retry_after_s is None:
                raise EngineDeadError from error

    @property
    def is_running(self) -> bool:
        """Always: the cluster behind it may come and go."""
        return True

    @property
    def is_stopped(self) -> bool:
        """Never, see `is_running`."""
        return False

    @property
    def errored(self) -> bool:
        """Never: what fails is a request, see `check_admission`."""
        return False

    @property
    def dead_error(self) -> BaseException:
        """What vLLM's server would say of a dead engine."""
        return EngineDeadError()

    async def get_supported_tasks(self) -> tuple[SupportedTask, ...]:
        """Generation."""
        return TASKS

    async def is_tracing_enabled(self) -> bool:
        """Whether vLLM's server is to hand on its clients' trace headers."""
        return self._traces

    async def do_log_stats(self) -> None:
        """Statistics are the cluster's; there is nothing to log here."""

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """A request ends when its generator is closed; there is no other way to it from here."""

    def shutdown(self, timeout: float | None = None) -> None:
        """Free what rendering holds."""
        self.renderer.shutdown()

    async def notify_kv_transfer_request_rejected(
        self,
        request_id: str,
        kv_transfer_params: dict[str, Any],
        *,
        data_parallel_rank: int | None = None,
    ) -> None:
        """Nothing is ever pinned for a request here."""

    def encode(
        self,
        prompt: PromptType | EngineInput,
        pooling_params: PoolingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        reasoning_ended: bool | None = None,
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """Refused: replicas generate."""
        _unsupported("pooling")

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Refused."""
        _unsupported("LoRA adapters")

    async def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("profiling")

    async def stop_profile(self) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("profiling")

    async def reset_mm_cache(self) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("resetting caches")

    async def reset_encoder_cache(self) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("resetting caches")

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Refused: see `_engines_only`."""
        _engines_only("resetting caches")

    async def sleep(self, level: int = 1, mode: Any = "abort") -> None:
        """Refused: see `_engines_only`."""
        _engines_only("sleeping")

    async def release_kv_cache_memory(self) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("sleeping")

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        """Refused: see `_engines_only`."""
        _engines_only("sleeping")

    async def is_sleeping(self) -> bool:
        """Never."""
        return False

    async def pause_generation(self, *, mode: Any = "abort", clear_cache: bool = True) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("pausing")

    async def resume_generation(self) -> None:
        """Refused: see `_engines_only`."""
        _engines_only("pausing")

    async def is_paused(self) -> bool:
        """Never."""
        return False


def _requests(
    request_id: str,
    token_ids: list[int],
    text: str,
    params: SamplingParams,
    max_tokens: int,
    caller: Caller,
) -> list[GenerationRequest]:
    """One request per answer. Their ids are ours, so that no client can name another's."""
    sampling = plain_sampling(params)
    if (sampling.get("extra_args") or {}).get("kv_transfer_params") is not None:
        _unsupported("KV transfer")
    shown = excerpt(caller.text or text)
    unique = uuid.uuid4().hex[:12]
    return [
        GenerationRequest(
            request_id=f"{request_id[:64]}-{unique}-{index}",
            prompt_token_ids=token_ids,
            max_tokens=max_tokens,
            sampling=sampling if params.seed is None else {**sampling, "seed": params.seed + index},
            request_class=caller.request_class,
            tenant=caller.tenant,
            text=shown,
            timeout_s=caller.timeout_s,
        )
        for index in range(params.n)
    ]


async def _deltas(
    client: ClusterClient, requests: list[GenerationRequest]
) -> AsyncGenerator[tuple[int, Delta], None]:
    """What is new of each request, with its index; ends them all when it is closed."""
    if len(requests) == 1:
        async with contextlib.aclosing(_closable(client.generate(requests[0]))) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    streams = [_closable(client.generate(request)) for request in requests]
    async with contextlib.aclosing(_closable(merge_async_iterators(*streams))) as merged:
        async for index, delta in merged:
            yield index, delta


def _closable(iterator: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    assert isinstance(iterator, AsyncGenerator), "made by an async generator function"
    return iterator


def _refuse(asked: Mapping[str, bool]) -> None:
    for what, is_asked in asked.items():
        if is_asked:
            _unsupported(what)


def _unsupported(what: str) -> NoReturn:
    raise VLLMValidationError(f"this endpoint does not support {what}")


def _engines_only(what: str) -> NoReturn:
    """Single engines could do it; behind one address there are many, which come and go."""
    raise NotImplementedError(f"{what} is not done through the cluster's endpoint")
