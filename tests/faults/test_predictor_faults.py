"""A predictor that is killed, frozen or broken costs forecasts, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig, parse_config
from cluster.lifecycle import running_cluster
from cluster.messages import ClusterStatus
from policies.request import RequestClass
from predictor.artifact import save_artifact
from predictor.encoder import TextEncoder
from predictor.learned import LearnedForecaster
from replicas.embedded_model import EMBEDDED_MODEL
from tests.faults.counts import faults_of
from tests.predictor.networks import make_artifact, make_prompts, make_spec

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_here")]

ACTORS = 2
REQUESTS = 24
PROMPT_TOKENS = 20
MAX_TOKENS = 200


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that forecasts answers of about 20 tokens."""
    folder = tmp_path_factory.mktemp("network")
    artifact = make_artifact(TextEncoder(make_spec(folder / "encoder")))
    artifact.network.set_targets(torch.tensor([2.5, 3.5]), torch.tensor([0.2, 0.9]))
    save_artifact(folder / "trained", artifact)
    return folder / "trained"


@pytest.fixture(scope="class")
def cluster(network: Path) -> Iterator[Any]:
    """A cluster in which requests wait long enough to be forecast, shared by the tests."""
    with running_cluster(config(network, actors=ACTORS, timeout_s=2.0)) as (controller, _):
        try:
            yield controller
        finally:
            resume(predictors())


@pytest.fixture
def healthy(cluster: Any) -> Any:
    """The cluster with all of its predictors answering, whatever the test before did."""
    resume(predictors())
    wait_for(cluster, lambda status: status.predictor.startswith("network trained; "))
    wait_for(cluster, lambda status: "predictors answer" not in status.predictor)
    return cluster


def config(network: Path, **predictor: Any) -> ClusterConfig:
    return parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "count": 1,
                "max_num_seqs": 2,
                "look_ahead": 0,
                # Answers of a few seconds in all: a busy predictor's forecasts come before the end.
                "engine_args": {"time_scale": 0.5},
            },
            "predictor": {"network": str(network), **predictor},
        }
    )


@pytest.fixture(autouse=True, scope="module")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What other tests taught a predictor stays out of these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIEBREAK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def predictors() -> list[psutil.Process]:
    """Processes of the predictor actors of this test's own Ray cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word.startswith("ray::PredictorActor") for word in process.cmdline()):
                found.append(process)
    return found


def resume(processes: list[psutil.Process]) -> None:
    """Let those go on that are still there: one that is silent for too long is replaced."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def wait_for(controller: Any, reached: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    for _ in range(1200):
        status: ClusterStatus = ray.get(controller.status.remote())
        if reached(status):
            return status
        time.sleep(0.1)
    raise AssertionError(f"not reached: {status}")


def exported() -> str:
    """All metrics of the node, as Prometheus would read them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as response:
        body: bytes = response.read()
        return body.decode()


class Wave:
    """Requests whose answers are as long as the network says, so that it earns its trust."""

    def __init__(self, network: Path, name: str) -> None:
        self._name = name
        self._texts = [f"write w{31 * k % 600} words of {name}" for k in range(REQUESTS)]
        prompts = make_prompts(
            self._texts,
            model=[EMBEDDED_MODEL] * REQUESTS,
            prompt_tokens=[PROMPT_TOKENS] * REQUESTS,
            max_tokens=[MAX_TOKENS] * REQUESTS,
        )
        mu, _ = LearnedForecaster.load(network).predict(prompts)
        self._tokens = [max(2, round(tokens)) for tokens in np.exp(mu).tolist()]

    def run(self, controller: Any, meanwhile: Callable[[], None] | None = None) -> set[str]:
        """Submit all of them at once and see each of them whole.

        `meanwhile` happens when they have been submitted. Returns who forecast them.
        """

        async def complete() -> list[Completion]:
            async with ClusterClient(controller) as client:
                calls = [
                    asyncio.create_task(client.complete(self._request(number)))
                    for number in range(REQUESTS)
                ]
                if meanwhile is not None:
                    await asyncio.sleep(0.3)
                    meanwhile()
                return list(await asyncio.gather(*calls))

        completions = asyncio.run(complete())
        assert [len(c.token_ids) for c in completions] == self._tokens
        assert {c.finish_reason for c in completions} == {"stop"}
        made = [c.forecast for c in completions]
        return {forecast.source for forecast in made if forecast is not None}

    def _request(self, number: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=f"{self._name}/{number}",
            prompt_token_ids=[(number * 31 + k) % 4000 for k in range(PROMPT_TOKENS)],
            max_tokens=MAX_TOKENS,
            sampling={"extra_args": {"simulated_output_tokens": self._tokens[number]}},
            request_class=RequestClass.OFFLINE,
            text=self._texts[number],
        )


def send(process: psutil.Process, number: signal.Signals) -> None:
    os.kill(process.pid, number)


class TestNetwork:
    """One cluster for all of them, in any order."""

    def test_requests_are_forecast_by_the_network(self, healthy: Any, network: Path) -> None:
        assert "learned" in Wave(network, "undisturbed").run(healthy)
        wait_for(healthy, lambda status: status.predictors[0].outcomes >= REQUESTS)
        # Each tells its news every few seconds: the latest may be of the middle of the wave, when
        # only what the prior had forecast had ended.
        wait_for(healthy, lambda status: sum(p.learned for p in status.predictors) > 0)
        wait_for(healthy, lambda status: all(p.outcomes for p in status.predictors))
        wait_for(
            healthy,
            lambda status: all(p.watch is not None and p.watch.outcomes for p in status.predictors),
        )

    def test_prometheus_is_told(self, healthy: Any, network: Path) -> None:
        Wave(network, "metrics").run(healthy)
        learned = r'^ray_tiebreak_predictor_forecasts_total{[^}]*source="learned"[^}]*} [1-9]'
        wanted = [learned, "^ray_tiebreak_predictor_coverage{", "^ray_tiebreak_predictor_trusted{"]
        for _ in range(240):
            text = exported()
            if all(re.search(line, text, re.MULTILINE) for line in wanted):
                return
            time.sleep(0.5)
        shown = [line for line in text.splitlines() if "tiebreak_predictor" in line]
        raise AssertionError(f"not exported: {shown}")

    def test_while_every_predictor_is_frozen_the_prior_serves_and_then_they_go_on(
        self, healthy: Any, network: Path
    ) -> None:
        for process in predictors():
            send(process, signal.SIGSTOP)
        assert Wave(network, "frozen").run(healthy) == {"prior"}
        wait_for(healthy, lambda status: "does not answer" in status.predictor)
        assert Wave(network, "still-frozen").run(healthy) == {"prior"}
        resume(predictors())
        wait_for(healthy, lambda status: status.predictor.startswith("network trained; "))
        assert "learned" in Wave(network, "continued").run(healthy)

    def test_the_other_predictor_goes_on_when_one_is_frozen(
        self, healthy: Any, network: Path
    ) -> None:
        send(predictors()[0], signal.SIGSTOP)
        wait_for(healthy, lambda status: f"1 of {ACTORS} predictors answer" in status.predictor)
        assert "learned" in Wave(network, "one-frozen").run(healthy)

    def test_predictors_that_are_killed_cost_no_request_and_come_back(
        self, healthy: Any, network: Path
    ) -> None:
        before = {process.pid for process in predictors()}

        def kill() -> None:
            for process in predictors():
                send(process, signal.SIGKILL)

        counted = faults_of(healthy)["predictor_restarted"]
        Wave(network, "killed").run(healthy, meanwhile=kill)
        # A death is noticed at the next call, so the status may not know of it yet.
        waves = (Wave(network, f"restarted-{number}").run(healthy) for number in range(60))
        assert any("learned" in sources for sources in waves)
        assert before.isdisjoint(process.pid for process in predictors())
        wait_for(healthy, lambda _: faults_of(healthy)["predictor_restarted"] == counted + ACTORS)


def test_a_network_that_is_not_there_is_named_and_the_prior_serves(
    tmp_path: Path, network: Path
) -> None:
    state = str(tmp_path / "prior.json")
    with running_cluster(config(tmp_path / "nowhere", state=state)) as (controller, joined):
        assert not joined
        status = wait_for(controller, lambda status: "cannot be used" in status.predictor)
        assert str(tmp_path / "nowhere") in status.predictor
        assert Wave(network, "nowhere").run(controller) == {"prior"}
