"""Gates from plain options, as configurations and engines hand them on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from policies.bundle import policy
from policies.forecast import Forecast
from policies.gate import MAX_EVICTIONS, Gate
from policies.ledger import Replica
from policies.registry import check_name
from policies.request import Request


def gate_of(options: Mapping[str, Any], replica: Replica, lag_steps: int = 0) -> Gate:
    """A gate from plain options: those of `policies.bundle.policy`, and the gate's own two.

    Args:
        options: The options; none: the default policy. `max_evictions` and `give_way` are those
            of `Gate`.
        replica: See `Gate`.
        lag_steps: See `Gate`.

    Raises:
        ValueError: A name or a value is not known, or out of range.
    """
    parts = dict(options)
    max_evictions = parts.pop("max_evictions", MAX_EVICTIONS)
    give_way = parts.pop("give_way", True)
    allowed = set(inspect.signature(policy).parameters) - {"backfill", "guard_band"}
    for option in parts:
        check_name("scheduler option", option, [*sorted(allowed), "max_evictions", "give_way"])
    return Gate(
        policy(**parts),
        replica,
        max_evictions=max_evictions,
        give_way=give_way,
        lag_steps=lag_steps,
    )


def rehearse(options: Mapping[str, Any], replica: Replica) -> None:
    """Have a gate take every kind of decision once, so that what it calls is compiled."""
    gate = gate_of(options, replica)
    for number in range(3):
        request = Request(f"rehearsal {number}", prompt_tokens=4, max_tokens=64)
        gate.add(request, Forecast(mu=2.0, sigma=1.0, lower=2, upper=32))
    for number in range(3):
        gate.first()
        gate.start(f"rehearsal {number}")
        gate.progressed({f"rehearsal {number}": 8})
    gate.victims({f"rehearsal {number}": 1 for number in range(3)}, 1)
    gate.overdue()
    gate.evict("rehearsal 0", 8)
    gate.first()
