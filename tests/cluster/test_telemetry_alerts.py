"""Each alert on made-up series, by Prometheus' own tool: it fires when it should, else not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.telemetry.files import alert_rules
from tests.cluster.prometheus_server import PROMTOOL

pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="Debian's package `prometheus` is not installed"
)

MINUTES = 70

HEALTHY = {
    "controller_uptime_seconds": "0+60x{n}",
    'replicas{state="ready"}': "2x{n}",
    'replicas{state="failed"}': "0x{n}",
    'queue_requests{class="online"}': "3x{n}",
    'queue_drain_seconds{class="online"}': "2x{n}",
    'faults_total{event="replica_frozen"}': "1x{n}",
    'faults_total{event="replica_replaced"}': "0+1x{n}",
    'faults_total{event="request_poisoned"}': "0x{n}",
    'faults_total{event="controller_restarted"}': "2x{n}",
    'faults_total{event="rows_dropped"}': "0x{n}",
    "requests_refused_total": "0+3x{n}",
    'requests_finished_total{class="online",reason="stop"}': "0+600x{n}",
    'requests_finished_total{class="online",reason="error"}': "0+6x{n}",
    'request_ttft_seconds_bucket{class="online",le="1"}': "0+600x{n}",
    'request_ttft_seconds_bucket{class="online",le="60"}': "0+600x{n}",
    'request_ttft_seconds_bucket{class="online",le="+Inf"}': "0+600x{n}",
    'replica_ledger_age_seconds{replica="replica-0"}': "0.3x{n}",
    'replica_running_requests{replica="replica-0"}': "4x{n}",
    'replica_ledger_age_seconds{replica="replica-1"}': "99x{n}",
    'replica_running_requests{replica="replica-1"}': "0x{n}",
    'replica_slow{replica="replica-0"}': "0x{n}",
    "forecast_coverage_ratio": "0.88x{n}",
    "forecast_coverage_target_ratio": "0.9x{n}",
    "predictor_fallback": "0x{n}",
    'output_tokens_total{class="online"}': "0+60000x{n}",
    'energy_joules_total{source="zeus",use="request"}': "0+25000x{n}",
    'energy_joules_total{source="zeus",use="idle"}': "0+5000x{n}",
    'power_watts{source="zeus"}': "500x{n}",
    "power_cap_watts": "480x{n}",
}
"""A cluster that is well, minute by minute: names without `ray_tiebreak_`, and their values."""

ILL: dict[str, dict[str, str]] = {
    "TiebreakSilent": {"controller_uptime_seconds": "_x{n}"},
    "TiebreakNoReplica": {'replicas{state="ready"}': "0x{n}"},
    "TiebreakReplicaFailed": {'replicas{state="failed"}': "1x{n}"},
    "TiebreakReplicaFault": {'faults_total{event="replica_frozen"}': "1x{m} 2x4"},
    "TiebreakRequestPoisoned": {'faults_total{event="request_poisoned"}': "0x{m} 1x4"},
    "TiebreakControllerRestarted": {'faults_total{event="controller_restarted"}': "2x{m} 3x4"},
    "TiebreakRowsLost": {'faults_total{event="rows_dropped"}': "0x{m} 7x4"},
    "TiebreakRefusals": {"requests_refused_total": "0+60x{n}"},
    "TiebreakErrors": {'requests_finished_total{class="online",reason="error"}': "0+60x{n}"},
    "TiebreakOnlineQueueLong": {'queue_drain_seconds{class="online"}': "31x{n}"},
    "TiebreakFirstTokenSlow": {'request_ttft_seconds_bucket{class="online",le="1"}': "0+500x{n}"},
    "TiebreakLedgerOld": {'replica_ledger_age_seconds{replica="replica-0"}': "11x{n}"},
    "TiebreakReplicaSlow": {'replica_slow{replica="replica-0"}': "1x{n}"},
    "TiebreakForecastsOff": {"forecast_coverage_ratio": "0.7x{n}"},
    "TiebreakPredictorFallback": {"predictor_fallback": "1x{n}"},
    "TiebreakPowerOverCap": {'power_watts{source="zeus"}': "540x{n}"},
    "TiebreakMeterSilent": {
        'energy_joules_total{source="zeus",use="request"}': "7e6x{n}",
        'energy_joules_total{source="zeus",use="idle"}': "1e6x{n}",
    },
}
"""By alert, what is different when it has to fire."""


def series(name: str, values: str) -> dict[str, str]:
    metric, _, labels = name.partition("{")
    labels = ",".join(filter(None, ['SessionName="session"', labels.removesuffix("}")]))
    lasts = values.format(n=MINUTES, m=MINUTES - 5)
    return {"series": f"ray_tiebreak_{metric}{{{labels}}}", "values": lasts}


def firing(folder: Path, different: dict[str, str]) -> set[str]:
    """The alerts that fire at the end."""
    assert PROMTOOL is not None
    (folder / "alerts.yml").write_text(alert_rules())
    rules = yaml.safe_load(alert_rules())["groups"][0]["rules"]
    test: dict[str, Any] = {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [series(n, v) for n, v in (HEALTHY | different).items()],
                "alert_rule_test": [
                    # Nothing is expected, so that promtool complains of each that fires.
                    {"eval_time": f"{MINUTES}m", "alertname": rule["alert"], "exp_alerts": []}
                    for rule in rules
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    fired = {rule["alert"] for rule in rules if f"alertname: {rule['alert']}," in told}
    assert bool(fired) == bool(done.returncode), told
    return fired


def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    assert firing(tmp_path, {}) == set()


def test_every_alert_is_tested() -> None:
    assert ILL.keys() == {r["alert"] for r in yaml.safe_load(alert_rules())["groups"][0]["rules"]}


@pytest.mark.parametrize("alert", ILL)
def test_an_alert_fires_and_no_other(alert: str, tmp_path: Path) -> None:
    assert firing(tmp_path, ILL[alert]) == {alert}
