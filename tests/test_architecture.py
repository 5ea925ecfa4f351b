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
    core = [ROOT / "cluster" / f"{name}.py" for name in ("scheduler", "fleet", "ledger", "queue")]
    for file in [*files("policies"), *core]:
        used = set(imports(file)) & {"time", "datetime", "random", "asyncio", "logging"}
        assert not used, f"{file} imports {used}"
