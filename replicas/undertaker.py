"""Ends what a process leaves behind when it dies, whatever it died of.

An engine's own processes hold accelerators. When their parent is killed they are left alone: those
of vLLM wait for orders that never come, and suspended ones could not even notice. A process that
calls `watch` gets an undertaker: a process of a few megabytes, in a session of its own, which waits
until the other one has ended and then kills all that is left of its process group.
"""

# The undertaker runs this file as a script: it imports nothing that is not Python's own.
from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

LOOK_AGAIN_S = 0.05
ROUNDS = 200


class UndertakerError(RuntimeError):
    """No undertaker could be started."""


def watch() -> None:
    """Have all processes that this one starts, and those that they start, end with it.

    This process becomes the leader of a process group, if it is not already. A process that leaves
    the group is not found again.

    Raises:
        UndertakerError: This system has no `pidfd_open` (Linux 5.3).
    """
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid())]
    # It returns once the process that it has forked watches; that one is nobody's child, so that
    # who ends all children of this process does not end it first.
    done = subprocess.run(
        command,
        start_new_session=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UndertakerError(
            f"processes of an engine may outlive its replica: no undertaker could be started "
            f"({lines[-1]}); it needs Linux 5.3 or later"
        )


def main(pid: int) -> None:
    """Watch a process that called `watch`; returns in the process that it called."""
    ended = os.pidfd_open(pid)
    if os.fork():
        return
    os.close(2)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.poll()
    _end_group(pid)


def _end_group(group: int) -> None:
    """Kill until nobody is left: one that is being started now is there in the next round."""
    for _ in range(ROUNDS):
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(LOOK_AGAIN_S)


if __name__ == "__main__":
    main(int(sys.argv[1]))
