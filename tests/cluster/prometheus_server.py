"""A Prometheus server of the system's, for tests that ask it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.endpoint.listener import bind

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")

ATTEMPTS = 3
"""Times it is started: another program may take the port that was free before."""


@dataclass(frozen=True)
class Prometheus:
    """Where it answers."""

    http: httpx.Client

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        answer = self.http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The one value that an expression has; 0 while it has none."""
        found = self.query(expression)
        assert len(found) <= 1, f"{expression}: {found}"
        return float(found[0]["value"][1]) if found else 0.0

    def rules(self) -> list[dict[str, Any]]:
        """The alert rules, with what Prometheus thinks of each."""
        groups = self.http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """One that works in a folder, with this configuration."""
    path = folder / "prometheus.yml"
    path.write_text(config)
    for _ in range(ATTEMPTS):
        with bind("127.0.0.1", 0, shared=True) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        process = _started(folder, path, address)
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=30) as http:
                until(
                    lambda process=process, http=http: (
                        process.poll() is not None or _is_ready(http)
                    ),
                    "Prometheus does not answer",
                )
                if process.poll() is None:
                    yield Prometheus(http)
                    return
        finally:
            process.terminate()
            process.wait()
    raise AssertionError((folder / "prometheus.log").read_text())


def _started(folder: Path, config: Path, address: str) -> subprocess.Popen[bytes]:
    assert PROMETHEUS is not None
    command = [
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def until(holds: Callable[[], object], complaint: str, within_s: float = 60.0) -> None:
    """Wait for something that is about to happen."""
    for _ in range(int(within_s / 0.2)):
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError(complaint)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
