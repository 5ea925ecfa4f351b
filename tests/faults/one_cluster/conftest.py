"""One cluster for all tests here, in any order: each leaves it as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.aftermath import assert_nothing_left, wait_until_whole
from tests.faults.clusters import local_cluster, simulated
from tests.faults.one_cluster import CLIENT_TIMEOUT_S, FROZEN_AFTER_S, REPLICAS, SLOTS
from tests.faults.poison import DEATHS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a line for each engine that died of poison."""
    file = tmp_path_factory.mktemp("poison") / "deaths"
    file.touch()
    return file


@pytest.fixture(scope="package")
def cluster(deaths: Path) -> Iterator[Any]:
    config = simulated(
        REPLICAS, SLOTS, {"frozen_after_s": FROZEN_AFTER_S}, client_timeout_s=CLIENT_TIMEOUT_S
    )
    poisonable = {
        "worker_process_setup_hook": "tests.faults.poison.install",
        "env_vars": {"PYTHONPATH": str(ROOT), DEATHS: str(deaths)},
    }
    with local_cluster(config, runtime_env=poisonable) as controller:
        yield controller


@pytest.fixture
def whole(cluster: Any) -> Iterator[Any]:
    """The cluster with all replicas serving, whatever the test before did."""
    wait_until_whole(cluster, REPLICAS)
    yield cluster
    assert_nothing_left(cluster, REPLICAS)
