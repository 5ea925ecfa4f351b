from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import cluster
import policies
from policies.compiled import Uncompiled, compiled

ROOT = Path(__file__).parents[2]

# A little of everything that is compiled, printed to the last digit.
RESULTS = """
import numpy as np
from policies import MemoryProfile, logt
from policies.admission import AMin, Quantile
from tests.policies.factories import make_batch

rng = np.random.default_rng(0)
batch = make_batch(
    mu=rng.uniform(0, 8, 50),
    sigma=np.where(rng.random(50) < 0.2, 0, rng.uniform(0, 2, 50)),
    generated_tokens=rng.integers(0, 2000, 50),
)
print(Quantile(0.4).estimates(batch).tolist(), AMin("double").estimates(batch).tolist())
print(np.round(logt.moments(batch.mu, batch.sigma, batch.max_tokens), 4).tolist())
profile = MemoryProfile(rng.integers(-50, 500, 40), rng.integers(51, 90, 40), 16)
print(profile.peak, profile.peak_time, profile.usage.tolist(), profile.peaks(60, 30, 20))
"""


def modules() -> Iterator[ModuleType]:
    for package in (policies, cluster):
        for source in sorted(Path(package.__path__[0]).rglob("*.py")):
            if "@compiled" in source.read_text(encoding="utf-8"):
                inside = source.relative_to(ROOT).with_suffix("")
                yield importlib.import_module(".".join(inside.parts))


def python_functions(module: ModuleType) -> dict[str, FunctionType]:
    """Compiled functions by name, whether or not one of their file has been called."""
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, Uncompiled):
            value = value._make()
        if hasattr(value, "py_func"):
            found[name] = value.py_func
    return found


def test_compiled_functions_call_only_those_of_their_own_file() -> None:
    """What is kept on disk is renewed when that file changes, and by nothing else."""
    found = 0
    for module in modules():
        functions = python_functions(module)
        for function in functions.values():
            assert function.__module__ == module.__name__
            for name in function.__code__.co_names:
                called = vars(module).get(name)
                assert not isinstance(called, FunctionType), f"{function}: {name} is not compiled"
                assert name not in functions or functions[name].__module__ == module.__name__
        found += len(functions)
    assert found > 10


def test_results_are_the_same_without_compilation() -> None:
    def output(**environment: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", RESULTS],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert output(NUMBA_DISABLE_JIT="1") == output(NUMBA_DISABLE_JIT="0")


def test_a_function_whose_machine_code_can_be_kept_nowhere_is_compiled_all_the_same() -> None:
    namespace: dict[str, FunctionType] = {}
    exec(compile("def twice(x): return 2 * x", "<no file>", "exec"), namespace)
    assert compiled(namespace["twice"])(21) == 42


def test_a_function_calls_others_of_its_file() -> None:
    namespace: dict[str, FunctionType] = {}
    source = "def one(): return 1\ndef two(): return one() + one()"
    exec(compile(source, "<no file>", "exec"), namespace)
    for name in ("one", "two"):
        namespace[name] = compiled(namespace[name])
    held = namespace["two"]
    assert held() == 2
    assert not isinstance(namespace["one"], Uncompiled)
    assert not isinstance(namespace["two"], Uncompiled)
    assert held() == 2


def test_importing_the_policies_does_not_load_numba() -> None:
    """A process in which it is loaded cannot start vLLM's CPU worker."""
    imports = "import sys, policies, cluster.scheduler, replicas.simulated_engine"
    code = f"{imports}; print('numba' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
