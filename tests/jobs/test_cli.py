"""The command line where no cluster is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config import ClusterConfig, parse_config
from jobs.cli import main


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_config_prints_yaml_that_is_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "--replicas.count", "5", "--policy.ordering_options", "{gamma: 0.8}") == 0
    printed = parse_config(yaml.safe_load(capsys.readouterr().out))
    assert printed.replicas.count == 5
    assert printed.policy.ordering_options == {"gamma": 0.8}
    assert printed.replicas.kv_cache_gib == ClusterConfig().replicas.kv_cache_gib


def test_config_reads_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("replicas: {engine: simulated}\n", encoding="utf-8")
    assert run("config", "--config", str(path)) == 0
    assert "engine: simulated" in capsys.readouterr().out


def test_an_unknown_option_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "--replicas.cuont", "5") == 2
    assert "--replicas.count" in capsys.readouterr().err


def test_status_without_a_cluster_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--ray.address", "127.0.0.1:1") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "no Ray cluster answers at '127.0.0.1:1'" in error
    assert "Traceback" not in error


def test_doctor_fails_on_what_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--model", "/no/such/model", "--replicas.kv_cache_gib", "100000") == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "lower replicas.kv_cache_gib" in words
    assert "/no/such/model" in words


def test_doctor_is_content_with_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("doctor", "--replicas.engine", "simulated", "--replicas.count", "1")
    assert code == 0, capsys.readouterr().out
