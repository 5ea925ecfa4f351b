"""`tiebreak serve`, as a user runs it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
import yaml

from cluster.client import NoClusterError, connect_controller
from cluster.config import parse_config
from cluster.endpoint.listener import PortInUseError, bind
from cluster.gateway import app
from cluster.lifecycle import running_cluster
from jobs.cli import main
from tests.cluster.endpoint import CHAT
from tests.local_ray import local_ray

ROOT = Path(__file__).parents[2]

SIMULATED = (
    "--replicas.engine",
    "simulated",
    "--replicas.count",
    "1",
    "--predictor.network",
    "none",
)


@pytest.fixture(scope="module")
def ray_dashboard() -> Iterator[str]:
    """Address of the dashboard, through which Serve deploys, of a Ray cluster of this module's."""
    with local_ray(include_dashboard=True, dashboard_port=free_port()) as started:
        yield f"http://{started.dashboard_url}"


@pytest.fixture(scope="module")
def ray_address(ray_dashboard: str) -> str:
    address: str = ray.get_runtime_context().gcs_address
    return address


def free_port() -> int:
    """A port that stays free until it is used.

    Those that the system gives out by itself may go to one of Ray's many connections meanwhile.
    """
    while True:
        number = random.randrange(20_000, 32_000)
        with contextlib.suppress(PortInUseError), bind("127.0.0.1", number, shared=False):
            return number


@pytest.fixture
def port() -> int:
    return free_port()


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    return error


def wait_until_healthy(url: str, serving: subprocess.Popen[str] | None = None) -> None:
    for _ in range(600):
        assert serving is None or serving.poll() is None, serving.communicate()
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("it never became healthy")


def answers(url: str) -> bool:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "max_tokens": 3}, timeout=60)
    return answer.status_code == 200


def is_gone(url: str) -> bool:
    for _ in range(600):
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def cluster(ray_address: str) -> Iterator[None]:
    """A running cluster."""
    replicas = {"engine": "simulated", "count": 1}
    sections = {"replicas": replicas, "predictor": {"network": "none"}}
    with running_cluster(parse_config({"ray": {"address": ray_address}, **sections})):
        yield


def test_the_printed_configuration_is_one_that_serve_deploys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("alice: 0123456789abcdef\n")
    options = ("--gateway.replicas", "2", "--gateway.port", "9", "--gateway.api_keys", str(keys))
    assert run("serve", "--print-config", *options) == 0
    from ray.serve.schema import ServeDeploySchema

    written = yaml.safe_load(capsys.readouterr().out)
    config = ServeDeploySchema(**written)
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 9)
    (application,) = config.applications
    assert application.import_path == "cluster.gateway:app"
    assert application.deployments[0].num_replicas == 2
    assert app(application.args) is not None


def test_errors_are_said_in_one_line(
    ray_address: str, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("serve", "--ray.address", ray_address, *SIMULATED)
    assert run(*here, "--gateway.api_keys", str(tmp_path / "none")) == 2
    assert "gateway.api_keys: cannot read" in said(capsys)
    assert run(*here, "--detach") == 2
    assert "no cluster runs that could keep the endpoint" in said(capsys)
    with bind("127.0.0.1", port, shared=False):
        assert run(*here, "--gateway.port", str(port)) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in said(capsys)
    assert run("serve", "--gateway.host", "no.such.host.invalid", *here[1:]) == 2
    assert "cannot listen at no.such.host.invalid" in said(capsys)
    with pytest.raises(NoClusterError):
        connect_controller()


def test_it_serves_until_it_is_interrupted_and_leaves_nothing(ray_address: str, port: int) -> None:
    words = ["serve", "--ray.address", ray_address, "--gateway.port", str(port), *SIMULATED]
    serving = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, serving)
        assert answers(url)
        serving.send_signal(signal.SIGINT)
        out, error = serving.communicate(timeout=120)
    finally:
        serving.kill()
    assert serving.returncode == 0, error
    assert f"serving smollm2-135m-instruct at {url}/v1" in out
    assert "Traceback" not in error
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/health")
    with pytest.raises(NoClusterError):
        connect_controller()


def test_an_endpoint_stays_until_it_is_taken_down(ray_address: str, port: int) -> None:
    here = ("--ray.address", ray_address, "--gateway.port", str(port))
    url = f"http://127.0.0.1:{port}"
    with cluster(ray_address):
        assert run("serve", "--detach", *here) == 0
        wait_until_healthy(url)
        assert answers(url)
        assert run("serve", "--stop", *here) == 0
        assert is_gone(url)
        assert connect_controller() is not None


def test_serve_deploys_the_printed_configuration(
    ray_address: str,
    ray_dashboard: str,
    port: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("serve", "--print-config", "--gateway.port", str(port)) == 0
    written = tmp_path / "serve.yaml"
    written.write_text(capsys.readouterr().out)
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("serve"))]
    environment = {**os.environ, "RAY_DASHBOARD_ADDRESS": ray_dashboard}
    with cluster(ray_address):
        deployed = subprocess.run(
            [*command, "deploy", str(written)], env=environment, capture_output=True, text=True
        )
        assert deployed.returncode == 0, deployed.stderr
        wait_until_healthy(url)
        assert answers(url)
        subprocess.run([*command, "shutdown", "--yes"], env=environment, check=True)
        assert is_gone(url)
