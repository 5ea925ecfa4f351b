"""`tiebreak scale`: more or fewer replicas in a running cluster."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cluster.asking import asked
from cluster.client import connect_controller
from cluster.config import ClusterConfig, ConfigError
from cluster.lifecycle import StartError, connect_ray
from cluster.messages import ClusterStatus, ReplicaStatus

LOOK_S = 0.5
"""How often the status is asked for."""

messages = Console(stderr=True)


def scale(
    config: ClusterConfig,
    count: Annotated[
        int, typer.Argument(metavar="N", help="Replicas from now on.", show_default=False)
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when it is done, or at once.")
    ] = True,
) -> None:
    """Have N replicas from now on; those that leave finish their requests first."""
    connect_ray(config.ray.address, start_local=False)
    controller = connect_controller()
    before = _staying(asked(controller.status).replicas)
    try:
        asked(controller.scale, count)
    except ValueError as error:
        cause = getattr(error, "cause", error)
        raise ConfigError(f"the cluster is not scaled to {count}: {cause}") from None
    messages.print(_announced(len(before), asked(controller.status)), highlight=False)
    if wait:
        with messages.status("") as line:
            _wait(controller, count, line.update)
        messages.print(f"{_replicas(count)} ready", highlight=False)


def _wait(controller: Any, count: int, show: Any) -> None:
    """Follow the status until there are so many replicas and no others.

    Raises:
        StartError: Some cannot be started, or find no room now.
        ConfigError: Somebody else has asked for another number meanwhile.
    """
    while True:
        replicas: list[ReplicaStatus] = asked(controller.status).replicas
        staying = _staying(replicas)
        if len(staying) != count:
            raise ConfigError(
                f"{_replicas(len(staying))} wanted now, not {count}: somebody else has asked for "
                "another number meanwhile"
            )
        absent = [r for r in staying if r.state != "ready"]
        if not absent and len(replicas) == count:
            return
        if absent and all(r.error for r in absent):
            reasons = "; ".join(sorted({r.error for r in absent}))
            given_up = all(r.state == "failed" for r in absent)
            further = "ask again to try again" if given_up else "they are tried on"
            raise StartError(
                f"{count - len(absent)} of {_replicas(count)} ready, {further}: {reasons}"
            )
        show(escape(_progress(replicas, count)))
        time.sleep(LOOK_S)


def _progress(replicas: list[ReplicaStatus], count: int) -> str:
    """Such as `1 of 3 replicas ready, 2 loading, 1 leaving with 5 requests`."""
    states = Counter(r.state for r in replicas)
    parts = [f"{states.pop('ready', 0)} of {_replicas(count)} ready"]
    running = sum(r.running for r in replicas if r.state == "leaving")
    parts += [
        f"{number} {state}" + (f" with {running} requests" if state == "leaving" else "")
        for state, number in sorted(states.items())
    ]
    return ", ".join(parts)


def _announced(before: int, status: ClusterStatus) -> str:
    """What the order does, in a sentence."""
    text = f"from {before} to {_replicas(len(_staying(status.replicas)))}"
    if running := sum(r.running for r in status.replicas if r.state == "leaving"):
        text += (
            f"; {running:,} requests run on those that leave: they may finish there for "
            "replicas.drain_timeout_s, then they go on elsewhere"
        )
    return text


def _staying(replicas: list[ReplicaStatus]) -> list[ReplicaStatus]:
    return [r for r in replicas if r.state not in ("leaving", "left")]


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"
