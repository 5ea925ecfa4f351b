"""Decisions before the first one, so that nobody waits for their machine code."""

from __future__ import annotations

from cluster.scheduler import ClusterScheduler, Dispatch
from policies.bundle import Policy
from policies.forecast import Forecast
from policies.ledger import Replica
from policies.request import Request


def rehearse(policy: Policy) -> None:
    """Take a few requests through a scheduling core of their own.

    What the core calls is compiled at its first use: some seconds of work, once on a machine, a
    second where the machine code of an earlier process is still there. A process that serves does
    it before it accepts requests.
    """
    core = ClusterScheduler(policy)
    core.replica_joined(Replica("rehearsal", 64, 16, 8, 512, look_ahead=1), 0.0)
    forecast = Forecast(mu=4.0, sigma=0.5, lower=20, upper=150)
    for name in ("first", "second"):
        core.submit(Request(name, 30, 200, output_tokens=60), forecast, 0.0)
        for action in core.decide(0.0):
            assert isinstance(action, Dispatch)
            core.progressed("rehearsal", {name: 40}, 1.0)
    core.decide(1.0)
    core.finished("rehearsal", "first", 60, 2.0)
    core.submit(Request("third", 30, 200, output_tokens=60), forecast, 2.0)
    core.decide(2.0)
    # More than fits, so that one is sent ahead, waits in the engine and is recalled.
    for name in ("fourth", "fifth", "sixth"):
        core.submit(Request(name, 400, 100, output_tokens=90), Forecast.exact(90), 3.0)
    core.decide(3.0)
    core.replica_joined(Replica("other", 64, 16, 8, 512, look_ahead=1), 4.0)
    core.stalled("rehearsal", {"fifth": 0, "sixth": 0}, 4.0)
    core.decide(6.0)
