"""A running cluster, seen by a real Prometheus and an OpenTelemetry collector."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.messages import NAMESPACE
from cluster.telemetry.files import alert_rules, prometheus_config
from cluster.telemetry.grafana import dashboard
from policies.forecast import Forecast
from policies.request import RequestClass
from tests.cluster.collector import Collector, attributes, collector
from tests.cluster.endpoint import CHAT, Endpoint, endpoint
from tests.cluster.prometheus_server import PROMETHEUS, PROMTOOL, Prometheus, prometheus, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"

ONLINE, OFFLINE = 30, 20
"""Requests of each round."""

ROUNDS = 2
"""A rate is of what has grown since it was first seen, so the second is sent after that."""

ALL = ROUNDS * (ONLINE + OFFLINE)

ENDED = "sum(ray_tiebreak_request_latency_seconds_count)"

pytestmark = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None,
    reason="Debian's package `prometheus` is not installed",
)


@dataclass(frozen=True)
class Watched:
    """A cluster and who looks at it."""

    cluster: Endpoint
    collector: Collector
    prometheus: Prometheus
    output_tokens: int


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "alerts.yml").write_text(alert_rules())
    with pytest.MonkeyPatch.context() as patch, collector() as spans:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        telemetry = {
            "metrics_interval_s": 0.5,
            "otlp_endpoint": spans.endpoint,
            "otlp_protocol": "http/protobuf",
        }
        power = {
            "idle_w": 80,
            "max_w": 400,
            "peak_flops_per_s": 3.12e14,
            "flops_per_token": 2.7e8,
        }
        with (
            endpoint(
                {"count": 2},
                ray_dashboard=True,
                telemetry=telemetry,
                energy={"power_model": power, "power_cap_w": 10_000},
            ) as cluster,
            prometheus(folder, _config(folder)) as server,
        ):
            # Prometheus sees counters grow only from the first value that it saw.
            until(lambda: server.query("ray_tiebreak_admissions_total"), "no metrics came")
            tokens = _load(cluster, "first")
            until(lambda: server.value(ENDED) == ONLINE + OFFLINE, "the first round is not told")
            tokens += _load(cluster, "second")
            yield Watched(cluster, spans, server, tokens)


def _config(folder: Path) -> str:
    """The one that is documented, with this Ray's files and no time to lose."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    discovery = session / "prom_metrics_service_discovery.json"
    until(discovery.exists, f"Ray has not written {discovery}")
    text = prometheus_config(
        folder / "prometheus.yml", alerts=folder / "alerts.yml", discovery=discovery
    )
    # A scrape may take as long as the interval, and one that takes longer ends every series.
    return text.replace("interval: 5s", "interval: 2s")


def _load(cluster: Endpoint, name: str) -> int:
    """Send requests of both classes and two tenants; returns their output tokens.

    The very first of all is traced.
    """

    def ask(number: int) -> int:
        sampled = "01" if (name, number) == ("first", 0) else "00"
        headers = {
            "x-tenant": f"tenant-{number % 2}",
            "traceparent": f"00-{TRACE}-{CALLER}-{sampled}",
        }
        with cluster.client(headers=headers) as http:
            answer = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 40})
        assert answer.status_code == 200, answer.text
        tokens: int = answer.json()["usage"]["completion_tokens"]
        return tokens

    with ThreadPoolExecutor(16) as pool:
        online = sum(pool.map(ask, range(ONLINE)))
    return online + asyncio.run(_offline_load(cluster, name))


async def _offline_load(cluster: Endpoint, name: str) -> int:
    """As a job would, with forecasts of its own; returns the output tokens."""
    unsampled = f"00-{TRACE}-{CALLER}-00"
    requests = [
        GenerationRequest(
            f"{name}-{number}",
            [1 + number, 2, 3],
            max_tokens=400,
            request_class=RequestClass.OFFLINE,
            tenant=f"tenant-{number % 2}",
            forecast=Forecast.exact(20 + number),
            trace=unsampled,
        )
        for number in range(OFFLINE)
    ]
    async with ClusterClient(cluster.controller) as client:
        completions = await asyncio.gather(*map(client.complete, requests))
    return sum(len(completion.token_ids) for completion in completions)


def test_counters_agree_with_the_clients_and_the_snapshot(watched: Watched) -> None:
    ask = watched.prometheus.value
    finished = "sum(ray_tiebreak_requests_finished_total)"
    until(lambda: ask(finished) == ALL, f"{finished} is {ask(finished)}")
    # One metric may be exported a moment before another that was recorded with it.
    offline = 'sum(ray_tiebreak_requests_finished_total{class="offline"})'
    until(lambda: ask(offline) == ROUNDS * OFFLINE, f"{offline} is {ask(offline)}")
    tokens = "sum(ray_tiebreak_output_tokens_total)"
    until(lambda: ask(tokens) == watched.output_tokens, f"{tokens} is {ask(tokens)}")
    admitted, sent = "sum(ray_tiebreak_admissions_total)", watched.cluster.quiet().dispatched
    until(lambda: ask(admitted) == sent, f"{admitted} is {ask(admitted)}, not {sent}")
    until(lambda: ask(ENDED) == ALL, f"{ENDED} is {ask(ENDED)}")
    of_tenants = "sum(ray_tiebreak_tenant_output_tokens_total)"
    until(lambda: ask(of_tenants) == watched.output_tokens, f"{of_tenants} is {ask(of_tenants)}")
    tenants = watched.prometheus.query("sum by (tenant) (ray_tiebreak_tenant_output_tokens_total)")
    assert {t["metric"]["tenant"] for t in tenants} == {"tenant-0", "tenant-1"}
    assert sum(float(t["value"][1]) for t in tenants) == watched.output_tokens


def test_energy_agrees_with_the_snapshot(watched: Watched) -> None:
    def metered() -> float:
        snapshot = ray.get(watched.cluster.controller.snapshot.remote())
        joules: float = snapshot.energy.totals.metered_joules
        return joules

    rounding = 1e-9  # the two sum the same joules, each in an order of its own
    before = metered()
    assert before > 0
    told = "sum(ray_tiebreak_energy_joules_total)"
    until(
        lambda: watched.prometheus.value(told) >= before * (1 - rounding),
        f"{told} does not reach {before}",
    )
    assert watched.prometheus.value(told) <= metered() * (1 + rounding)


PANELS = [panel for panel in dashboard()["panels"] if "targets" in panel]


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_every_panel_has_data(watched: Watched, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        asked = target["expr"].replace("$__rate_interval", "5m").replace("$session", ".*")

        def curves(asked: str = asked) -> list[dict[str, Any]]:
            return [c for c in watched.prometheus.query(asked) if c["value"][1] != "NaN"]

        until(curves, f"no data for {asked}")


def test_the_dashboard_s_variable_names_this_ray_session(watched: Watched) -> None:
    (variable,) = (v for v in dashboard()["templating"]["list"] if v["name"] == "session")
    series, label = variable["query"].removeprefix("label_values(").removesuffix(")").split(", ")
    session = ray._private.worker._global_node.session_name

    def told() -> set[str]:
        return {curve["metric"][label] for curve in watched.prometheus.query(series)}

    # A gauge that is not set in time, or a scrape that fails, is a gap.
    until(lambda: told() == {session}, f"{series} has the sessions {told()}, not {session}")


def test_promtool_accepts_the_alerts(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    path = tmp_path / "alerts.yml"
    path.write_text(alert_rules())
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint-fatal", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_traced_request_is_one_tree_from_its_caller_on(watched: Watched) -> None:
    spans = {span.name: span for span in watched.collector.wait(4)}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    (whole,) = (span for name, span in spans.items() if name.startswith("text_completion"))
    assert whole.parent_span_id.hex() == CALLER
    for phase in ("queue", "prefill", "decode"):
        assert spans[phase].parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= spans[phase].start_time_unix_nano
        assert spans[phase].end_time_unix_nano <= whole.end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["prefill"].start_time_unix_nano
    assert spans["prefill"].end_time_unix_nano == spans["decode"].start_time_unix_nano
    told = attributes(whole)
    assert told["tiebreak.tenant"] == "tenant-0"
    assert told["gen_ai.usage.output_tokens"] > 0
    assert not any("Hello" in str(value) for value in told.values())


def test_the_gateway_s_own_metrics_are_there_too(watched: Watched) -> None:
    with watched.cluster.client() as http:
        assert "http_requests_total" in http.get("/metrics").text


DIED = 'sum(ray_tiebreak_faults_total{event=~"replica_.*_died"})'


def test_a_replica_that_dies_is_an_alert_and_its_series_end(watched: Watched) -> None:
    """Last: it costs the cluster a replica."""
    rules = watched.prometheus.rules()
    assert len(rules) == len(yaml.safe_load(alert_rules())["groups"][0]["rules"])
    assert {(rule["name"], rule["health"]) for rule in rules} == {
        (rule["name"], "ok") for rule in rules
    }
    assert not watched.prometheus.query('ALERTS{alertname="TiebreakReplicaFault"}')
    here = 'ray_tiebreak_replica_slots{replica="replica-1"}'
    until(lambda: watched.prometheus.query(here), "the replica is not shown")
    ray.kill(ray.get_actor("replica-1", namespace=NAMESPACE))
    firing = 'ALERTS{alertname="TiebreakReplicaFault",alertstate="firing"}'
    until(lambda: watched.prometheus.query(firing), "no alert fires")
    until(lambda: not watched.prometheus.query(here), "the replica that is gone is still shown")
    until(lambda: watched.prometheus.value(DIED) == 1, "its death is not counted once")


def test_a_restarted_controller_counts_on_and_nothing_twice(watched: Watched) -> None:
    """Very last: it takes a while until everybody has found the new one."""
    controller, ask = watched.cluster.controller, watched.prometheus.value
    finished = "sum(ray_tiebreak_requests_finished_total)"
    energy = "sum(ray_tiebreak_energy_joules_total)"
    since_s, joules, died = time.monotonic(), ask(energy), ask(DIED)
    os.kill(ray.get(controller.pid.remote()), signal.SIGKILL)
    restarts = 'sum(ray_tiebreak_faults_total{event="controller_restarted"})'
    until(lambda: ask(restarts) == 1, f"{restarts} is {ask(restarts)}")
    until(lambda: ask(energy) > joules, "no energy is told after the restart")
    # Nothing runs, so that they draw idle power. Told again, all that they ever drew would be more
    # than half of that on top, and some seconds of it that had not come to Prometheus before.
    idle_w = ray.get(controller.snapshot.remote()).energy.totals.idle_w
    assert ask(energy) < joules + 1.5 * idle_w * (time.monotonic() - since_s + 10)
    until(lambda: ask(finished) == ALL, f"{finished} is {ask(finished)}")
    until(lambda: ask(DIED) == died, f"{DIED} is {ask(DIED)}, and was {died}")
    firing = 'ALERTS{alertname="TiebreakControllerRestarted",alertstate="firing"}'
    until(lambda: watched.prometheus.query(firing), "no alert fires")
