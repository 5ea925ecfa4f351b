"""Measured kernel times of vLLM from `aiconfigurator-core`, and the KV cache that a GPU leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicas.batch_limits import BatchLimits
from replicas.silicon_step_time import SiliconStepTime, StepTables
from replicas.step_time import StepTimeError

if TYPE_CHECKING:
    from aiconfigurator_core.sdk import EngineHandle, ModelConfig
    from aiconfigurator_core.sdk.perf_database import PerfDatabase

_BACKEND = "vllm"
_POWERS = tuple(1 << i for i in range(18))
_TOKENS = (1, 2, 3, *(q << i for i in range(13) for q in (4, 5, 6, 7)), 32768)
"""Tokens of a step: four points per doubling, the density of the measurements of products."""
_DECODE_BATCHES = _POWERS[:12]
_DECODE_CONTEXTS = _POWERS[1:]
_PREFILL_TOKENS = _POWERS[:16]
_PREFILL_LENGTHS = _POWERS


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model on GPUs of one node.

    Attributes:
        gpu: `h100_sxm`, `h200_sxm`, `a100_sxm` or another that was measured; the form factor may be
            left out where it is SXM.
        model: Name of the model on the hub, as the measurements know it, or a folder with its
            `config.json`.
        tensor_parallel_size: GPUs that share each layer.
    """

    gpu: str
    model: str
    tensor_parallel_size: int = 1


@lru_cache(maxsize=8)
def load_silicon_step_time(deployment: Deployment) -> SiliconStepTime:
    """The step time of a deployment, from kernels measured on its GPU; takes a few seconds.

    Raises:
        StepTimeError: The measurements are not installed, do not know the GPU or the model, or the
            model's layers are of a kind that this does not compose.
    """
    return SiliconStepTime(_tables(deployment))


def silicon_limits(
    deployment: Deployment,
    *,
    block_size: int = 16,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
    gpu_memory_utilization: float = 0.9,
) -> BatchLimits:
    """What the GPUs of a deployment hold: their memory less weights, activations and runtime.

    Args:
        deployment: The model and its GPUs.
        block_size: Tokens per KV-cache block.
        max_num_seqs: Requests that run at once.
        max_num_batched_tokens: Tokens that one step may compute.
        gpu_memory_utilization: Share of the GPU's memory that vLLM may use.

    Raises:
        StepTimeError: As `load_silicon_step_time`, or the model leaves no room for a KV cache.
        ValueError: A limit is out of range (see `BatchLimits`).
    """
    gpu, model = _known_gpu(deployment.gpu), _known_model(deployment.model)
    from aiconfigurator_core.sdk import estimate_kv_cache

    try:
        estimate = estimate_kv_cache(
            model,
            gpu,
            _BACKEND,
            "current",
            max_num_tokens=max_num_batched_tokens,
            max_batch_size=max_num_seqs,
            memory_fraction_kind="of_total",
            memory_fraction_value=gpu_memory_utilization,
            tp_size=deployment.tensor_parallel_size,
        )
    except ValueError as error:
        raise _refusal(deployment, error) from error
    return BatchLimits(
        kv_blocks=int(estimate["total_kv_size_tokens"]) // block_size,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def silicon_model_config(model: str) -> Mapping[str, Any]:
    """What the `config.json` of a model says.

    Raises:
        StepTimeError: The measurements are not installed or do not know the model.
    """
    known = _known_model(model)
    from aiconfigurator_core.sdk.utils import get_model_config_from_model_path

    config: Mapping[str, Any] = get_model_config_from_model_path(known)["raw_config"]
    return config


def _tables(deployment: Deployment) -> StepTables:
    gpu, model = _known_gpu(deployment.gpu), _known_model(deployment.model)
    from aiconfigurator_core.sdk import EngineHandle, perf_database
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.models import get_model

    parallel = deployment.tensor_parallel_size
    try:
        precision = get_model(model, build_model_config(parallel, 1, 1, 1, 1), _BACKEND).config
        times = _KernelTimes(EngineHandle.compile(model, gpu, _BACKEND, tp_size=parallel))
        database = perf_database.get_database(gpu, _BACKEND, "current")
        assert database is not None, "the engine was compiled from it"
    except Exception as error:
        # The package has no common error type: its refusals are of half a dozen kinds.
        raise _refusal(deployment, error) from error
    label = f"{gpu.replace('_', ' ').upper()}, {model.rpartition('/')[2]}, TP{parallel}"
    dense, logits = zip(*(times.dense_and_logits(n) for n in _TOKENS), strict=True)
    return StepTables(
        label=f"silicon: {label}, vLLM {database.version}",
        tokens=_TOKENS,
        dense_s=_rising(dense),
        logits_s=_rising(logits),
        decode_batches=_DECODE_BATCHES,
        decode_contexts=_DECODE_CONTEXTS,
        decode_attention_s=_surface(times.decode_attention, _DECODE_BATCHES, _DECODE_CONTEXTS),
        prefill_lengths=_PREFILL_LENGTHS,
        prefill_tokens=_PREFILL_TOKENS,
        prefill_attention_s=_surface(times.prefill_attention, _PREFILL_LENGTHS, _PREFILL_TOKENS),
        **_measured(database, model, precision),
    )


class _KernelTimes:
    """Seconds of the parts of a step, as the package estimates them kernel by kernel."""

    def __init__(self, handle: EngineHandle) -> None:
        self._handle = handle
        if not {"generation_attention", "generation_logits_gemm"} <= self._decode(1, 2).keys():
            raise ValueError("its attention is not of the kind that is composed here")

    def dense_and_logits(self, tokens: int) -> tuple[float, float]:
        times = self._decode(tokens, 2)
        del times["generation_attention"]
        logits_s = times.pop("generation_logits_gemm")
        return sum(times.values()), logits_s

    def decode_attention(self, requests: int, context: int) -> float:
        return self._decode(requests, context)["generation_attention"]

    def prefill_attention(self, length: int, tokens: int) -> float:
        """Attention of `tokens` queries with `(length + 1) / 2` keys each on average.

        Whole prompts of that length, or else a chunk in the middle of a longer one.
        """
        prompts = max(1, tokens // length)
        before = max(0, length - tokens) // 2
        ops, _ = self._handle.run_static_per_op(
            batch_size=prompts,
            isl=before + tokens // prompts,
            osl=1,
            prefix=before,
            mode="static_ctx",
        )
        return sum(ms for name, ms, *_ in ops if name == "context_attention") / 1e3

    def _decode(self, requests: int, context: int) -> dict[str, float]:
        # The package counts the token that a step produces beside the prompt.
        ops = self._handle.decode_step_per_op(requests, context - 1, 2)
        return {name: ms / 1e3 for name, ms, *_ in ops}


def _surface(
    seconds: Callable[[int, int], float], rows: Sequence[int], columns: Sequence[int]
) -> list[list[float]]:
    return [_rising([seconds(row, column) for column in columns]) for row in rows]


def _rising(values: Sequence[float]) -> list[float]:
    """The closest sequence that never falls: more work takes no less time but for noise."""
    from scipy.optimize import isotonic_regression

    rising: list[float] = isotonic_regression(values).x.tolist()
    return rising


def _measured(database: PerfDatabase, model: str, precision: ModelConfig) -> dict[str, Any]:
    """How far the measured points of this model's shapes reach (see `StepTables`)."""
    from aiconfigurator_core.sdk.engine_table_view import fetch_table_view
    from aiconfigurator_core.sdk.utils import get_model_config_from_model_path

    shape = get_model_config_from_model_path(model)
    heads = shape["n"] // precision.tp_size
    kv_heads = max(1, shape["n_kv"] // precision.tp_size)
    window = 0
    # The tables name as many key and value heads as heads 0.
    place = (kv_heads if kv_heads < heads else 0, shape["d"], window, heads)
    cache, attention = precision.kvcache_quant_mode, precision.fmha_quant_mode
    decode = _slice(fetch_table_view(database, "_generation_attention_data"), (cache, *place))
    prefill = _slice(
        fetch_table_view(database, "_context_attention_data"), (attention, cache, *place)
    )
    longest: dict[int, int] = {}
    for length, prompts in prefill.items():
        for count in prompts:
            longest[count] = max(length, longest.get(count, 0))
    products = _slice(fetch_table_view(database, "_gemm_data"), (precision.gemm_quant_mode,))
    return {
        "measured_tokens": max(products, default=0),
        "measured_decode": {size: max(decode[size]) for size in sorted(decode)},
        "measured_prefill": dict(sorted(longest.items())),
    }


def _slice(table: Mapping[Any, Any] | None, keys: tuple[Any, ...]) -> Mapping[Any, Any]:
    """The part of a nested table under `keys`; empty when nothing was measured there."""
    for key in keys:
        table = (table or {}).get(key)
    return table or {}


def _known_gpu(gpu: str) -> str:
    try:
        from aiconfigurator_core.sdk import perf_database
        from aiconfigurator_core.sdk.common import SupportedSystems
    except ImportError as error:
        raise StepTimeError(
            "the measured kernel times are not installed: install the extra `simulation`, or name "
            "another step-time model"
        ) from error
    # It warns of the provenance of kernels that the models here do not use, at every load.
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)
    known = sorted(g for g in SupportedSystems if perf_database.get_version_slots(g, _BACKEND))
    wanted = gpu.strip().lower().replace(" ", "_")
    for name in (wanted, f"{wanted}_sxm"):
        if name in known:
            return name
    raise StepTimeError(f"no kernel times were measured on the GPU {gpu!r}: {', '.join(known)}")


def _known_model(model: str) -> str:
    from aiconfigurator_core.sdk.common import DefaultHFModels

    if (Path(model) / "config.json").is_file():
        return model
    known = {name.lower(): name for name in DefaultHFModels}
    if model.lower() not in known:
        near = get_close_matches(model.lower(), sorted(known), n=5, cutoff=0.3)
        raise StepTimeError(
            f"the measurements do not know the model {model!r}: name a folder with its "
            f"config.json, or one of theirs, for example {', '.join(known[n] for n in near)}"
        )
    return known[model.lower()]


def _refusal(deployment: Deployment, error: Exception) -> StepTimeError:
    return StepTimeError(
        f"no step time for {deployment.model} on {deployment.tensor_parallel_size} x "
        f"{deployment.gpu}: {' '.join(str(error).split())}"
    )
