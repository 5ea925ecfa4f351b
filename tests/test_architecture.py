"""Invariant I10: arrows between the rooms never point back, and policies need no cluster."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "policies": set(),
    "predictor": {"policies"},
    "replicas": {"policies"},
    "cluster": {"policies", "predictor", "replicas"},
    "jobs": {"policies", "predictor", "replicas", "cluster"},
}
LIBRARIES_OF_POLICIES = {"numba", "numpy", "scipy"}


def imports(file: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the arrows"
            yield (node.module or "").partition(".")[0]


def modules(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no room {room}"
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_never_point_back(room: str) -> None:
    wrong = {
        f"{file.relative_to(ROOT)} -> {name}"
        for file in files(room)
        for name in imports(file)
        if name in (MAY_IMPORT.keys() | {"tests"}) - {room} - MAY_IMPORT[room]
    }
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "closed_to_it"),
    [
        ("core", {"control", "membership", "endpoint", "statistics", "telemetry"}),
        ("statistics", {"control", "membership", "endpoint", "telemetry"}),
        ("telemetry", {"control", "core", "membership", "endpoint"}),
        ("membership", {"control", "core", "endpoint", "statistics"}),
        ("control", {"endpoint", "telemetry"}),
        ("endpoint", {"control", "core", "membership", "statistics", "telemetry"}),
    ],
)
def test_the_cluster_s_folders_have_one_direction(folder: str, closed_to_it: set[str]) -> None:
    wrong = {
        f"{file.relative_to(ROOT)} -> {module}"
        for file in files(f"cluster/{folder}")
        for module in modules(file)
        if module.startswith("cluster.") and module.split(".")[1] in closed_to_it
    }
    assert not wrong


def test_the_core_is_made_of_itself_and_policies() -> None:
    used = {module for file in files("cluster/core") for module in modules(file)}
    ours = {m for m in used if m.partition(".")[0] in MAY_IMPORT and not m.startswith("policies.")}
    assert {m for m in ours if not m.startswith("cluster.core")} == {"replicas.protocol"}


def test_policies_need_numerical_libraries_only() -> None:
    foreign = {
        name
        for file in files("policies")
        for name in imports(file)
        if name not in sys.stdlib_module_names | LIBRARIES_OF_POLICIES | {"policies"}
    }
    assert not foreign


@pytest.mark.parametrize("module", ["policies", "cluster.scheduler"])
def test_decisions_load_neither_ray_nor_an_engine(module: str) -> None:
    code = (
        f"import sys, {module}; print(*(m for m in ('ray', 'vllm', 'torch') if m in sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


def test_the_core_reads_no_clock_and_no_global_randomness() -> None:
    core = [ROOT / "cluster" / "scheduler.py", *files("cluster/core")]
    for file in [*files("policies"), *core]:
        used = set(imports(file)) & {"time", "datetime", "random", "asyncio", "logging"}
        assert not used, f"{file} imports {used}"
