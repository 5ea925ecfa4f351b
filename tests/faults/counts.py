"""What a cluster counts of its own faults."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from cluster.statistics.faults import Fault
from tests.faults.aftermath import AWAY, status_of
from tests.faults.processes import inside

PATIENCE_S = 120
"""Longest wait for a count: replacements take some time."""


def faults_of(controller: Any) -> dict[str, int]:
    """The counts now, asked for again while the controller is being restarted.

    Not those of a picture of the cluster, which may be of before the latest fault.
    """
    while True:
        status_of(controller)  # answered once a restarted controller has read what it begins with
        with contextlib.suppress(*AWAY):
            counts: dict[str, int] = inside(controller, lambda c: c._state.faults.counts())
            return counts


@contextlib.contextmanager
def counted(controller: Any, **faults: int) -> Iterator[None]:
    """Each of these faults must be counted so many times meanwhile, no more and no less."""
    assert faults.keys() <= {fault.value for fault in Fault}
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
