"""Files that a reader finds old or new, never in part, whenever the writer is killed."""

from __future__ import annotations

import glob
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside `path`, sync, rename over it, and sync its folder, made when it is missing.

    What killed writers of this file on this host left beside it is removed.

    Args:
        path: The file.
        write: Writes the new content to a stream.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Folders may be shared between hosts, and a process can be looked up on its own host only.
    stem = f".{path.name}.{socket.gethostname()}"
    _delete_stale(path.parent, stem)
    part = path.with_name(f"{stem}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or made in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_stale(folder: Path, stem: str) -> None:
    for part in folder.glob(f"{glob.escape(stem)}.*-*.part"):
        pid = part.name.removeprefix(f"{stem}.").partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            part.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
