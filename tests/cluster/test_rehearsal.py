"""What a rehearsal is for: the decisions after it compile nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from policies.bundle import policy_names

ROOT = Path(__file__).parents[2]

# In a process of its own: in this one earlier tests have compiled it all.
COUNT_COMPILED = """
import gc, sys
from numba.core.dispatcher import Dispatcher
from cluster.control.rehearsal import rehearse
from policies.bundle import policy
from tests.cluster.test_invariants import history

def specialisations():
    return {
        (f.py_func.__qualname__, signature)
        for f in gc.get_objects()
        if isinstance(f, Dispatcher) and f.py_func.__module__.startswith(("policies.", "cluster."))
        for signature in f.overloads
    }

name = sys.argv[1]
rehearse(policy(name))
before = specialisations()
for seed in range(2):
    history(seed, name)
print(len(before), *(specialisations() - before))
"""


@pytest.mark.parametrize("name", ["tiebreak", "a_min", "fcfs"])
def test_decisions_after_a_rehearsal_compile_nothing(name: str) -> None:
    assert name in policy_names()
    run = subprocess.run(
        [sys.executable, "-c", COUNT_COMPILED, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    before, *compiled_later = run.stdout.split(" ", 1)
    assert int(before) > 8
    assert not compiled_later
