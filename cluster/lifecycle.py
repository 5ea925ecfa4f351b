"""Bringing a cluster up, joining one, and taking it down."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from cluster.asking import asked
from cluster.client import NoClusterError, connect_controller
from cluster.config import ClusterConfig
from cluster.controller import Controller
from cluster.messages import CONTROLLER, NAMESPACE, ClusterStatus
from replicas.embedded_model import cache_folder

CONNECT_TIMEOUT_S = 5.0
"""How long a given address may take to accept a connection."""


class RayUnreachableError(ConnectionError):
    """The Ray cluster does not answer."""


class StartError(RuntimeError):
    """No replica of the cluster could be started."""


def connect_ray(address: str | None, *, start_local: bool = True) -> bool:
    """Connect this process to Ray: the given cluster, a running local one, or a new one.

    Inside `ray job submit` the job's own cluster is found by itself.

    Args:
        address: Address of a running cluster; None looks for a local one.
        start_local: Start a cluster in this process when none is found.

    Returns:
        Whether a new cluster was started, which ends with this process.

    Raises:
        RayUnreachableError: Nothing answers at the address, or none runs and none may be started.
    """
    if ray.is_initialized():
        return False
    _use_auth_token()
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "logging_level": "warning",
        "log_to_driver": False,
    }
    if address is not None:
        _check_reachable(address)
    try:
        ray.init(address=address or "auto", **options)
    except ConnectionError as error:
        if address is not None:
            raise _unreachable(address, error) from None
        if not start_local:
            raise RayUnreachableError(
                "no Ray cluster runs on this machine: start one with `tiebreak up`, or give the "
                "address of one with --ray.address"
            ) from None
        ray.init(address="local", include_dashboard=False, **options)
        return True
    return False


def find_controller(address: str | None) -> Any | None:
    """The controller of a running cluster; None when none runs. Starts nothing.

    Raises:
        RayUnreachableError: An address was given and nothing answers there.
    """
    try:
        connect_ray(address, start_local=False)
        return connect_controller()
    except NoClusterError:
        return None
    except RayUnreachableError:
        if address is not None:
            raise
        return None


@contextlib.contextmanager
def running_cluster(config: ClusterConfig) -> Iterator[tuple[Any, bool]]:
    """A controller with at least one ready replica: a running one, else one for this block.

    Yields:
        The controller, and whether it was running before (then `config` was not used).

    Raises:
        RayUnreachableError: See `connect_ray`.
        StartError: No replica could be started; the message has every replica's reason.
    """
    controller = find_controller(config.ray.address)
    if controller is not None:
        yield controller, True
        return
    connect_ray(config.ray.address)
    controller = create_controller(config, detached=False)
    try:
        wait_for_replicas(controller)
        yield controller, False
    finally:
        stop_controller(controller)


def create_controller(config: ClusterConfig, *, detached: bool) -> Any:
    """Start the controller and, through it, the predictor and the replicas.

    Args:
        config: What to start.
        detached: Whether it outlives this process.
    """
    actor: Any = ray.remote(Controller)
    controller = actor.options(
        name=CONTROLLER,
        namespace=NAMESPACE,
        lifetime="detached" if detached else None,
        num_cpus=0,
        max_concurrency=10_000,
        max_restarts=-1,
    ).remote(config.model_dump(mode="json"))
    ray.get(controller.start.remote())
    return controller


def wait_for_replicas(controller: Any) -> ClusterStatus:
    """Wait until every replica is ready or has failed.

    Raises:
        StartError: All of them failed.
    """
    status: ClusterStatus = asked(controller.settled)
    failed = [r for r in status.replicas if r.state == "failed"]
    if failed and len(failed) == len(status.replicas):
        reasons = sorted({r.error for r in failed})
        raise StartError(f"none of {len(failed)} replicas could be started: {'; '.join(reasons)}")
    return status


def stop_controller(controller: Any) -> None:
    """Stop the replicas and the controller."""
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(controller.shutdown.remote(), timeout=30)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(controller)


def start_ray_head() -> None:
    """Start a Ray head node on this machine that outlives this process, on localhost only.

    Raises:
        RayUnreachableError: Ray did not start.
    """
    ray_command = Path(sys.executable).with_name("ray")
    command = [str(ray_command), "start", "--head", "--node-ip-address=127.0.0.1"]
    command += ["--disable-usage-stats"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        detail = (done.stderr or done.stdout).strip().splitlines()
        reason = detail[-1] if detail else f"exit status {done.returncode}"
        raise RayUnreachableError(f"`ray start --head` failed: {reason}")
    _started_mark().parent.mkdir(parents=True, exist_ok=True)
    _started_mark().touch()


def stop_ray_head() -> bool:
    """Stop Ray on this machine if `start_ray_head` started it. Returns whether it did."""
    if not _started_mark().exists():
        return False
    ray.shutdown()
    ray_command = Path(sys.executable).with_name("ray")
    subprocess.run([str(ray_command), "stop"], capture_output=True, check=False)
    _started_mark().unlink()
    return True


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes before it gave up on an address where nothing listens."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise _unreachable(address, error) from None


def _unreachable(address: str, error: OSError) -> RayUnreachableError:
    return RayUnreachableError(
        f"no Ray cluster answers at {address!r}: check --ray.address and that "
        f"`ray start --head` runs there ({_first_line(error)})"
    )


def _use_auth_token() -> None:
    """Send Ray's authentication token if this user has one: `ray start` asks its clients for it.

    The environment variable for it is read when Ray is imported, too early for us to set it.
    """
    from ray._private.authentication import authentication_token_setup as setup

    logging.getLogger(setup.__name__).setLevel(logging.ERROR)
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _started_mark() -> Path:
    return cache_folder() / "ray-head-started"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
