"""`tiebreak serve`: the OpenAI endpoint on a running cluster, or on one brought up for it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import ray
import typer
import yaml
from rich.console import Console

from cluster.asking import asked
from cluster.config import ClusterConfig, ConfigError
from cluster.config_sections import GatewayConfig
from cluster.endpoint.api_keys import read_api_keys
from cluster.endpoint.listener import bind
from cluster.endpoint.model_options import (
    APPLICATION,
    merged,
    server_options,
    vllm_config_of,
    without_accelerator,
)
from cluster.endpoint.routes import DASHBOARD
from cluster.lifecycle import StartError, find_controller, running_cluster
from jobs.command import run
from jobs.options import with_config

console = Console()
messages = Console(stderr=True)


def serve(
    config: ClusterConfig,
    detach: Annotated[
        bool, typer.Option(help="Leave the endpoint running on a cluster that runs already.")
    ] = False,
    stop: Annotated[bool, typer.Option(help="Stop an endpoint that was left running.")] = False,
    print_config: Annotated[
        bool, typer.Option(help="Print a configuration for `serve deploy` and end.")
    ] = False,
) -> None:
    """Serve OpenAI's API on a running cluster, or on one that is brought up until Ctrl-C."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if print_config:
        typer.echo(serve_config(config.gateway), nl=False)
        return
    if stop:
        _need_cluster(config)
        withdraw()
        return
    read_api_keys(config.gateway.api_keys)
    if detach:
        controller = _need_cluster(config)
        gateway, model = _effective(config, controller)
        deploy(gateway, model)
        return
    with _cluster(config) as controller:
        gateway, model = _effective(config, controller)
        stopped = _stop_on_signals()
        deploy(gateway, model)
        try:
            stopped.wait()
        finally:
            messages.print("stopping: answers that have begun are finished first")
            withdraw()


def deploy(gateway: GatewayConfig, model: str) -> None:
    """Start the gateway processes on this machine and say where they listen.

    Args:
        gateway: Its section of the configuration.
        model: What the cluster serves.

    Raises:
        PortInUseError: Something listens there.
        StartError: They could not be started.
    """
    from ray import serve as ray_serve

    from cluster.gateway import application

    bind(gateway.host, gateway.port, shared=False).close()
    with messages.status("starting the endpoint"):
        # Each gateway process listens itself: no proxy stands between it and its clients.
        ray_serve.start(proxy_location="Disabled")
        try:
            ray_serve.run(application(gateway, _this_node()), name=APPLICATION)
        except RuntimeError as error:
            reason = _reason(error)
            withdraw()
            raise StartError(f"the endpoint could not be started: {reason}") from None
    _say(gateway, model)


def serve_config(gateway: GatewayConfig) -> str:
    """A configuration for `serve deploy`, as YAML."""
    arguments = gateway.model_dump(exclude_unset=True, mode="json")
    for ours in ("host", "port", "replicas"):
        arguments.pop(ours, None)
    written = {
        "proxy_location": "EveryNode",
        "http_options": {"host": gateway.host, "port": gateway.port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "cluster.gateway:app",
                "args": arguments,
                "deployments": [{"name": "gateway", "num_replicas": gateway.replicas}],
            }
        ],
    }
    return yaml.safe_dump(written, sort_keys=False)


@contextlib.contextmanager
def _cluster(config: ClusterConfig) -> Iterator[Any]:
    if find_controller(config.ray.address) is None:
        # Said now and not only once the replicas have loaded.
        bind(config.gateway.host, config.gateway.port, shared=False).close()
    with contextlib.ExitStack() as stack:
        with messages.status("bringing the cluster up"):
            controller, joined = stack.enter_context(running_cluster(config))
        messages.print("joined the running cluster" if joined else "the cluster is up")
        yield controller


def _need_cluster(config: ClusterConfig) -> Any:
    controller = find_controller(config.ray.address)
    if controller is None:
        raise ConfigError("no cluster runs that could keep the endpoint: `tiebreak up` first")
    return controller


def _effective(config: ClusterConfig, controller: Any) -> tuple[GatewayConfig, str]:
    """The gateway's section with this command's options over the cluster's, and the model.

    Options of vLLM's server are checked here, where an error is one line.
    """
    running = ClusterConfig(**asked(controller.config))
    gateway = merged(running, config.gateway.model_dump(exclude_unset=True))
    if gateway.vllm_args:
        without_accelerator()
        vllm_config_of(server_options(running, gateway))
    return gateway, gateway.served_model_name or running.model


def withdraw() -> None:
    """Take the endpoint down; Serve too, if nothing else is served."""
    from ray import serve as ray_serve

    ray_serve.delete(APPLICATION)
    if not ray_serve.status().applications:
        ray_serve.shutdown()


def _this_node() -> str:
    """Address of the Ray node that this process runs on, as its resources name it."""
    mine = ray.get_runtime_context().get_node_id()
    address: str = next(n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == mine)
    return address


def _say(gateway: GatewayConfig, model: str) -> None:
    shown = "127.0.0.1" if gateway.host in ("0.0.0.0", "::") else gateway.host
    url = f"http://{shown}:{gateway.port}"
    key = " -H 'authorization: Bearer KEY'" if gateway.api_keys else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    console.print(f"serving {model} at {url}/v1", soft_wrap=True, highlight=False)
    console.print(
        f"  curl {url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    console.print(f"  live page: {url}{DASHBOARD}", soft_wrap=True, highlight=False)
    if gateway.api_keys is None and gateway.host not in ("127.0.0.1", "localhost", "::1"):
        messages.print("everybody who reaches this address may use it: set gateway.api_keys")


def _stop_on_signals() -> threading.Event:
    """Set on Ctrl-C or SIGTERM; a second one ends the process at once."""
    stopped = threading.Event()

    def stop(number: int, _frame: Any) -> None:
        stopped.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped


def _reason(error: BaseException) -> str:
    """What a gateway process died of, by the end of its last traceback."""
    from ray import serve as ray_serve

    application = ray_serve.status().applications.get(APPLICATION)
    told = [d.message for d in application.deployments.values()] if application else []
    for line in reversed("\n".join([str(error), *told]).splitlines()):
        kind, separator, said = line.strip().partition(": ")
        if separator and kind.endswith("Error") and " " not in kind:
            return said
    return str(error).strip().splitlines()[0]


if __name__ == "__main__":
    only_command = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    only_command.command()(with_config(serve))
    run(only_command)
