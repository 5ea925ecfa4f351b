"""The files that a Prometheus and a Grafana beside the cluster are given."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.telemetry.grafana import dashboard

SERVICE_DISCOVERY = Path("/tmp/ray/prom_metrics_service_discovery.json")
"""Where the dashboard of the head node names the addresses of all nodes' metrics, unless Ray was
started with another temporary folder."""

_PROMETHEUS = """\
# prometheus --config.file={name}
global:
  scrape_interval: 5s
  evaluation_interval: 5s
rule_files: [{alerts}]
scrape_configs:
  - job_name: ray
    file_sd_configs:
      - files: [{discovery}]
"""


def alert_rules() -> str:
    """The alert rules, as YAML."""
    source = Path(__file__).parent.parent / "data" / "alerts.yml"
    return source.read_text(encoding="utf-8")


def grafana_json() -> str:
    """The dashboard, as JSON."""
    return json.dumps(dashboard(), indent=1) + "\n"


def prometheus_config(path: Path, *, alerts: Path, discovery: Path = SERVICE_DISCOVERY) -> str:
    """A configuration that scrapes every node of a Ray cluster and knows the alerts.

    Args:
        path: Where it will be.
        alerts: Where the alert rules are, seen from there.
        discovery: Ray's service discovery file.
    """
    return _PROMETHEUS.format(
        name=path.name, alerts=json.dumps(str(alerts)), discovery=json.dumps(str(discovery))
    )
