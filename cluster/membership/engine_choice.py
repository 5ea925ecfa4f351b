"""What each replica of a configuration runs, and on which kind of device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from cluster.config import ClusterConfig
from cluster.telemetry.engine_traces import engine_arguments
from replicas.detect_meter import MeterChoice
from replicas.embedded_model import resolve_model
from replicas.engines import EngineSpec
from replicas.model_arithmetic import flops_per_token_in
from replicas.power_model import PowerModelError

GIB = 1 << 30

ENGINE_SCHEDULER = "replicas.kv_scheduler.ProjectedMemoryScheduler"
"""The scheduler class that vLLM loads for `replicas.scheduler: projected`."""

CPU_EXECUTOR = "replicas.cpu_executor.CpuExecutor"
"""The executor that vLLM loads for an engine of one worker on CPU cores."""


def uses_gpus(config: ClusterConfig) -> bool:
    """Whether replicas take GPUs of this Ray cluster; simulated ones only when told to."""
    if config.replicas.device == "auto" and config.replicas.engine == "vllm":
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return config.replicas.device == "gpu"


def engine_spec(config: ClusterConfig, on_gpu: bool, *, plain: bool = False) -> EngineSpec:
    """What each replica runs.

    Args:
        config: The cluster's configuration.
        on_gpu: Whether replicas have GPUs.
        plain: Leave the engine to its own scheduler, to be measured or compared with.
    """
    replicas = config.replicas
    shared: dict[str, Any] = {
        "max_num_seqs": replicas.max_num_seqs,
        "block_size": replicas.block_size,
    }
    if replicas.max_model_len is not None:
        shared["max_model_len"] = replicas.max_model_len
    projected = replicas.scheduler == "projected" and not plain
    decides = config.policy.for_engine() if projected else None
    if replicas.engine == "simulated":
        shared["policy"] = decides
        args = shared | replicas.engine_args
        return EngineSpec("simulated", config.model, args, meter_choice(config, None))
    vllm_args = shared | {"tensor_parallel_size": replicas.tensor_parallel_size}
    if decides is None:
        # The controller's order must also be the engine's order of preemption.
        vllm_args["scheduling_policy"] = "priority"
    if not on_gpu:
        vllm_args |= {
            "dtype": "bfloat16",
            # Compiling takes over a minute of every start; long jobs may want it all the same:
            # replicas.engine_args {enforce_eager: false}.
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(replicas.kv_cache_gib * GIB),
            # vLLM's CPU build ends its engine when a seeded request is prefilled in chunks.
            "enable_chunked_prefill": False,
        }
        if _has_one_worker(config):
            vllm_args["distributed_executor_backend"] = CPU_EXECUTOR
        if replicas.max_model_len is not None:
            vllm_args["max_num_batched_tokens"] = max(2048, replicas.max_model_len)
    vllm_args |= engine_arguments(config.telemetry) | replicas.engine_args
    if decides is not None:
        vllm_args.setdefault("scheduler_cls", ENGINE_SCHEDULER)
        # Part of the key of vLLM's compile cache: nothing that differs from run to run goes here.
        further = vllm_args.get("additional_config") or {}
        vllm_args["additional_config"] = {**further, "tiebreak": decides}
    model = resolve_model(config.model)
    return EngineSpec("vllm", model, vllm_args, meter_choice(config, Path(model)))


def _has_one_worker(config: ClusterConfig) -> bool:
    stages = config.replicas.engine_args.get("pipeline_parallel_size")
    return config.replicas.tensor_parallel_size == 1 and stages in (None, 1)


def meter_choice(config: ClusterConfig, model: Path | None) -> MeterChoice:
    """How the energy of each replica is measured.

    Args:
        config: The cluster's configuration.
        model: Folder of the model; None, or no folder: its arithmetic must be declared.
    """
    energy = config.energy
    flops = None if model is None else flops_per_token_in(model)
    try:
        device = energy.device(flops, config.replicas.tensor_parallel_size)
    except PowerModelError as error:
        return MeterChoice(energy.meter, None, energy.idle_w, reason=str(error))
    return MeterChoice(energy.meter, device, energy.idle_w)
