"""Folders, object stores and small disks for output."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from jobs.writing.local_storage import LocalStorage
from jobs.writing.object_storage import ObjectStorage
from jobs.writing.storage import Storage


def local(folder: Path) -> Storage:
    return LocalStorage(str(folder))


def objects(folder: Path) -> Storage:
    """The code for object stores, on a folder: uploads go straight to the final name there too."""
    filesystem = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    return ObjectStorage("s3://bucket/out", filesystem, "out/")


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system of its own that can be filled; skips where mounting is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
