import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Stands where Python would: makes an environment of itself, and notes what pip was asked for.
STUB = """#!/bin/bash
case "$1 $2" in
    -c*) "$REAL_PYTHON" -c "import sys; sys.version_info = (3, ${MINOR:-11}, 1); $2" ;;
    -V*) echo "Python 3.${MINOR:-11}.1" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" ;;
    "-m pip")
        echo "Collecting ${*:3}"
        echo "${*:3}" >> "$NOTES"
        if [[ "$*" == *"${BROKEN:-none}"* ]]; then echo "ERROR: no such wheel"; exit 1; fi ;;
esac
"""


class Setup:
    """`make setup` in a virtual environment of its own, with a stub for Python."""

    def __init__(self, folder: Path) -> None:
        self.venv, self.notes = folder / "venv", folder / "notes"
        self.python = folder / "python3.11"
        self.python.write_text(STUB)
        self.python.chmod(0o755)

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        own = ("MAKE", "MFLAGS", "ENGINE")  # what a `make` that runs the tests was told
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(own)}
        return subprocess.run(
            ["make", f"VENV={self.venv}", f"PYTHON={self.python}", *arguments, "setup"],
            cwd=ROOT,
            env=inherited | {"NOTES": str(self.notes), "REAL_PYTHON": sys.executable} | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def asked_of_pip(self) -> list[str]:
        """The requests since the last call."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return lines


def test_installs_torch_first_and_the_lock_without_dependencies(tmp_path):
    setup = Setup(tmp_path)
    assert setup.make().returncode == 0
    torch, rest, project = setup.asked_of_pip()
    assert torch.endswith("torch -c requirements-cpu.lock")
    assert rest.endswith("--no-deps -r requirements-cpu.lock")
    assert project.endswith("--editable .")


def test_installs_nothing_the_second_time(tmp_path):
    setup = Setup(tmp_path)
    setup.make()
    setup.asked_of_pip()
    assert setup.make().returncode == 0
    assert setup.asked_of_pip() == []


def test_changed_lock_is_installed(tmp_path):
    setup = Setup(tmp_path)
    setup.make()
    setup.asked_of_pip()
    setup.make("--what-if=requirements-cpu.lock")
    assert len(setup.asked_of_pip()) == 3


def test_changed_project_alone_does_not_touch_its_dependencies(tmp_path):
    setup = Setup(tmp_path)
    setup.make()
    setup.asked_of_pip()
    setup.make("--what-if=pyproject.toml")
    assert len(setup.asked_of_pip()) == 1


@pytest.mark.parametrize("broken", ["torch -c", "--no-deps -r", "--editable"])
def test_failed_install_is_reported_and_begun_again(tmp_path, broken):
    setup = Setup(tmp_path)
    failed = setup.make(BROKEN=broken)
    assert failed.returncode != 0
    assert "ERROR: no such wheel" in failed.stdout + failed.stderr
    assert broken in setup.asked_of_pip()[-1]
    assert setup.make().returncode == 0
    assert setup.asked_of_pip()[-1].endswith("--editable .")


@pytest.mark.parametrize("minor", ["9", "10", "12"])
def test_wrong_python_is_refused_with_the_fix(tmp_path, minor):
    setup = Setup(tmp_path)
    refused = setup.make(MINOR=minor)
    assert refused.returncode != 0
    assert f"needs Python 3.11, but {setup.python} is Python 3.{minor}.1" in refused.stderr
    assert "make PYTHON=" in refused.stderr
    assert not setup.venv.exists()


def test_engines_do_not_share_an_environment(tmp_path):
    setup = Setup(tmp_path)
    setup.make()
    setup.asked_of_pip()
    refused = setup.make("ENGINE=gpu")
    assert refused.returncode != 0
    assert "holds cpu" in refused.stderr
    assert setup.asked_of_pip() == []
