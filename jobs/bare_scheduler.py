"""vLLM's scheduler classes without a model: a scheduler of any size, and requests for it."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

SchedulerT = TypeVar("SchedulerT", bound=Scheduler)

STOP_TOKEN = 2
"""The token that ends an answer before its cap."""

_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "max_position_embeddings": 1 << 20,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a scheduler plans for.

    Attributes:
        kv_blocks: KV-cache blocks that requests can use; vLLM keeps one more for itself.
        block_size: Tokens per block.
        max_num_seqs: Requests that can run at once.
        max_num_batched_tokens: Tokens one step may compute.
        max_model_len: Prompt plus output tokens one request may have.
        prefix_caching: Whether equal prompt prefixes share blocks.
        order: vLLM's own order of waiting requests.
    """

    kv_blocks: int = 64
    block_size: int = 4
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    max_model_len: int = 4096
    prefix_caching: bool = False
    order: Literal["fcfs", "priority"] = "fcfs"


def bare_scheduler(
    scheduler_class: type[SchedulerT],
    sizes: Sizes,
    options: Mapping[str, Any] | None = None,
    *,
    asynchronous: bool = False,
) -> SchedulerT:
    """A scheduler as vLLM's engine makes it, for a cache of one group of full attention.

    Args:
        scheduler_class: Which.
        sizes: What it plans for.
        options: `VllmConfig.additional_config`.
        asynchronous: Whether a step is planned before the tokens of the one before are known.
    """
    cache_config = CacheConfig(
        block_size=sizes.block_size, enable_prefix_caching=sizes.prefix_caching
    )
    cache_config.num_gpu_blocks = sizes.kv_blocks + 1
    with _quiet():
        config = VllmConfig(
            model_config=_model_config(sizes.max_model_len),
            scheduler_config=SchedulerConfig(
                max_num_seqs=sizes.max_num_seqs,
                max_num_batched_tokens=sizes.max_num_batched_tokens,
                max_model_len=sizes.max_model_len,
                is_encoder_decoder=False,
                policy=sizes.order,
            ),
            cache_config=cache_config,
            additional_config=dict(options or {}),
        )
    # Set afterwards: on a CPU vLLM turns it off, and this engine runs on nothing.
    config.scheduler_config.async_scheduling = asynchronous
    layer = FullAttentionSpec(
        block_size=sizes.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    return scheduler_class(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=sizes.kv_blocks + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=sizes.block_size,
        log_stats=True,
    )


def engine_request(
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int,
    sizes: Sizes,
    *,
    extra_args: Mapping[str, Any] | None = None,
    priority: int = 0,
    arrival_s: float = 0.0,
) -> Request:
    """A request as vLLM's engine hands it to its scheduler; `STOP_TOKEN` ends it."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        stop_token_ids=[STOP_TOKEN],
        extra_args=None if extra_args is None else dict(extra_args),
    )
    return Request(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=arrival_s,
        priority=priority,
        block_hasher=_hasher(sizes.block_size) if sizes.prefix_caching else None,
    )


def producing(scheduler: Scheduler, planned: SchedulerOutput) -> list[str]:
    """Requests that get a token from the step that `schedule` has just planned."""
    return [
        request_id
        for request_id in planned.num_scheduled_tokens
        if not scheduler.requests[request_id].is_prefill_chunk
    ]


def computed(planned: SchedulerOutput, tokens: Mapping[str, int]) -> ModelRunnerOutput:
    """A model's answer to a planned step: these tokens, one per request that got one."""
    ids = list(planned.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
        sampled_token_ids=[
            [tokens[request_id]] if request_id in tokens else [] for request_id in ids
        ],
    )


@cache
def _model_config(max_model_len: int) -> ModelConfig:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_MODEL), encoding="utf-8")
        return ModelConfig(
            model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=max_model_len
        )


@cache
def _hasher(block_size: int) -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(block_size, sha256)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without vLLM's advice on the speed of a model that is not there."""
    vllm = logging.getLogger("vllm")
    level = vllm.level
    vllm.setLevel(logging.ERROR)
    try:
        yield
    finally:
        vllm.setLevel(level)
