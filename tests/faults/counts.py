"""What a cluster counts of its own faults."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray

from cluster.statistics.faults import Fault
from tests.faults.aftermath import AWAY, status_of

PATIENCE_S = 120
"""Longest wait for a count: a picture is a second old, and replacements take some time."""


def faults_of(controller: Any) -> dict[str, int]:
    """The counts now, asked for again while the controller is being restarted."""
    while True:
        status_of(controller)
        with contextlib.suppress(*AWAY):
            counts: dict[str, int] = ray.get(controller.snapshot.remote()).faults
            return counts


@contextlib.contextmanager
def counted(controller: Any, **faults: int) -> Iterator[None]:
    """Each of these faults must be counted so many times meanwhile, no more and no less."""
    assert faults.keys() <= {fault.value for fault in Fault}
    time.sleep(1.0)  # a picture of before the latest fault may still be given out
    before = faults_of(controller)
    yield
    risen: dict[str, int] = {}
    for _ in range(PATIENCE_S * 2):
        now = faults_of(controller)
        risen = {name: now[name] - before[name] for name in faults}
        if risen == faults:
            return
        time.sleep(0.5)
    raise AssertionError(f"{faults} faults were to be counted, {risen} were")
