"""Files replaced as a whole: what a killed writer leaves, and what outlives a power cut."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from predictor.atomic_file import replace_file

_KILLED = """
import os, signal, sys
from pathlib import Path
from predictor.atomic_file import replace_file
replace_file(Path(sys.argv[1]), lambda stream: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    file, other = tmp_path / "file[1]", tmp_path / "other"
    for path in (file, other):
        ended = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
        assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".file*.part")
    (kept,) = tmp_path.glob(".other*.part")
    pid = left.name.split(".")[-2].partition("-")[0]
    living = left.with_name(left.name.replace(f".{pid}-", f".{os.getppid()}-"))
    living.touch()
    replace_file(file, lambda stream: stream.write(b"new"))
    assert set(tmp_path.iterdir()) == {file, kept, living}
    assert file.read_bytes() == b"new"


def test_the_folder_is_synced_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((folder, (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "file", lambda stream: stream.write(b"new"))
    assert synced == [(False, False), (True, True)]
