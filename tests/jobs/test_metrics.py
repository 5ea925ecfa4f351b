"""`tiebreak metrics`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.telemetry.catalogue import CATALOGUE, markdown_table
from jobs.cli import app
from jobs.errors import OutputError


def test_it_lists_every_metric() -> None:
    done = CliRunner().invoke(app, ["metrics"], env={"COLUMNS": "250"})
    assert done.exit_code == 0
    for metric in CATALOGUE:
        assert metric.exported in done.output


def test_it_prints_the_table_of_the_documentation() -> None:
    assert CliRunner().invoke(app, ["metrics", "--markdown"]).output == markdown_table()


def test_it_writes_the_files_that_belong_together(tmp_path: Path) -> None:
    config, grafana = tmp_path / "new" / "prometheus.yml", tmp_path / "tiebreak.json"
    done = CliRunner().invoke(
        app, ["metrics", "--prometheus", str(config), "--grafana", str(grafana)]
    )
    assert done.exit_code == 0
    (alerts,) = yaml.safe_load(config.read_text())["rule_files"]
    assert Path(alerts) == config.with_name("alerts.yml")
    assert yaml.safe_load(Path(alerts).read_text())["groups"]
    assert json.loads(grafana.read_text())["panels"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "tiebreak.json"
    with pytest.raises(OutputError, match=r"tiebreak\.json cannot be written"):
        CliRunner().invoke(app, ["metrics", "--grafana", str(path)], catch_exceptions=False)
