"""Small builders for scheduler tests."""

from __future__ import annotations

import math

from cluster.scheduler import ClusterScheduler, Dispatch
from policies.bundle import policy
from policies.forecast import Forecast
from policies.ledger import Replica
from policies.request import Request, RequestClass


def replica(
    name: str = "a", blocks: int = 64, block_size: int = 16, slots: int = 8, longest: int = 4096
) -> Replica:
    return Replica(name, blocks, block_size, slots, longest)


def forecast(tokens: float = 50.0, sigma: float = 0.4) -> Forecast:
    return Forecast(
        mu=math.log(tokens),
        sigma=sigma,
        lower=max(1, int(tokens / 3)),
        upper=max(2, int(tokens * 3)),
    )


def request(
    name: str,
    prompt: int = 20,
    cap: int = 200,
    *,
    arrival_s: float = 0.0,
    online: bool = True,
    generated: int = 0,
    truth: int | None = None,
) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=prompt,
        max_tokens=cap,
        arrival_s=arrival_s,
        request_class=RequestClass.ONLINE if online else RequestClass.OFFLINE,
        generated_tokens=generated,
        output_tokens=truth,
    )


def scheduler(
    *replicas: Replica, policy_name: str = "tiebreak", **options: object
) -> ClusterScheduler:
    core = ClusterScheduler(policy(policy_name, **options))  # type: ignore[arg-type]
    for one in replicas:
        core.replica_joined(one, 0.0)
    return core


def dispatched(core: ClusterScheduler, now: float = 0.0) -> list[tuple[str, str]]:
    """(request, replica) of every dispatch of one decision."""
    return [
        (action.request.request_id, action.replica_id)
        for action in core.decide(now)
        if isinstance(action, Dispatch)
    ]
