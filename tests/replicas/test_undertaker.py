"""What a process leaves behind when it is killed: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from replicas.undertaker import UndertakerError, watch

ROOT = Path(__file__).parent.parent.parent

PARENT = """
import os, subprocess, sys, time
from replicas import undertaker
if {watched}:
    undertaker.watch()
# A child that has a child, and one that was forked and shares all that its parent has open.
command = ["bash", "-c", "sleep 1000 & echo $!; wait"]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
forked = os.fork()
if not forked:
    time.sleep(1000)
print(child.pid, child.stdout.readline().strip(), forked, flush=True)
{end}
"""


class Family:
    """A process, its children and its grandchild."""

    def __init__(self, *, watched: bool = True, end: str = "time.sleep(1000)") -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(watched=watched, end=end)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self.parent.stdout is not None
        self.others = [int(pid) for pid in self.parent.stdout.readline().split()]
        assert len(self.others) == 3

    def undertakers(self) -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if (words := process.info["cmdline"]) and words[-1] == str(self.parent.pid)
            if words[-2].endswith("undertaker.py")
        ]

    def living(self) -> list[int]:
        return [pid for pid in self.others if lives(pid)]


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to hold")


@contextlib.contextmanager
def family(**options: object) -> Iterator[Family]:
    made = Family(**options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        for pid in [made.parent.pid, *made.others]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        made.parent.wait()


def test_all_descendants_end_with_a_process_that_is_killed() -> None:
    with family() as watched:
        watched.parent.kill()
        wait_until(lambda: not watched.living())
        wait_until(lambda: not watched.undertakers())


def test_suspended_ones_end_with_a_suspended_process_that_is_killed() -> None:
    with family() as watched:
        for pid in [watched.parent.pid, *watched.others]:
            os.kill(pid, signal.SIGSTOP)
        watched.parent.kill()
        wait_until(lambda: not watched.living())


def test_they_end_with_a_process_that_ends_by_itself() -> None:
    with family(end="os._exit(0)") as watched:
        wait_until(lambda: not watched.living())


def test_without_an_undertaker_they_stay() -> None:
    with family(watched=False) as unwatched:
        unwatched.parent.kill()
        unwatched.parent.wait()
        time.sleep(0.5)
        assert len(unwatched.living()) == 3


def test_nobody_else_is_harmed() -> None:
    with family() as other, family() as watched:
        watched.parent.kill()
        wait_until(lambda: not watched.living())
        assert lives(other.parent.pid)
        assert len(other.living()) == 3
        assert len(other.undertakers()) == 1


def test_it_is_small_and_nobodys_child() -> None:
    with family() as watched:
        (undertaker,) = watched.undertakers()
        assert undertaker.memory_info().rss < 16 << 20
        assert undertaker.ppid() != watched.parent.pid
        assert os.getsid(undertaker.pid) != os.getsid(watched.parent.pid)


def test_a_system_that_cannot_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    group = os.getpgid(0)
    try:
        with pytest.raises(UndertakerError, match=r"exit status 1.*Linux 5\.3"):
            watch()
    finally:
        if group != os.getpgid(0):
            os.setpgid(0, group)
