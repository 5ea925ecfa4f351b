from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import OutputError, OutputFullError
from jobs.writing.local_storage import LocalStorage
from jobs.writing.object_storage import ObjectStorage
from jobs.writing.output_uri import open_storage
from jobs.writing.storage import Produce, Storage
from tests.jobs.places import local, objects, small_disk

ROOT = Path(__file__).parents[2]


both = pytest.mark.parametrize("make", [local, objects])
Make = Callable[[Path], Storage]


def put(storage: Storage, name: str, content: bytes) -> None:
    storage.write(name, lambda out: out.write(content))


def get(storage: Storage, name: str) -> bytes:
    with storage.open(name) as stream:
        content: bytes = stream.read()
    return content


@both
def test_files_come_and_go(tmp_path: Path, make: Make) -> None:
    storage = make(tmp_path)
    assert storage.names() == []
    assert storage.names("parts") == []
    put(storage, "top", b"1")
    put(storage, "parts/b", b"2")
    put(storage, "parts/a", b"3")
    put(storage, "parts/b", b"replaced")
    assert storage.names() == ["parts", "top"]
    assert storage.names("parts") == ["a", "b"]
    assert get(storage, "parts/b") == b"replaced"
    storage.delete("parts/b")
    storage.delete("parts/b")
    assert storage.names("parts") == ["a"]


@both
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, make: Make) -> None:
    storage = make(tmp_path)
    put(storage, "file", b"old")

    def fail(error: BaseException) -> Produce:
        def produce(out: object) -> None:
            out.write(b"half")  # type: ignore[attr-defined]
            raise error

        return produce

    with pytest.raises(KeyError):
        storage.write("file", fail(KeyError("broken")))
    with pytest.raises(OutputError, match="file"):
        storage.write("file", fail(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OutputFullError):
        storage.write("file", fail(OSError(errno.ENOSPC, "No space left on device")))
    assert get(storage, "file") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@both
def test_missing_file(tmp_path: Path, make: Make) -> None:
    with pytest.raises(OutputError, match="nothing"):
        make(tmp_path).open("nothing")


@both
def test_scratch_is_deleted(tmp_path: Path, make: Make) -> None:
    with make(tmp_path).scratch() as folder:
        (folder / "spill").write_text("x")
    assert not folder.exists()


def test_uris(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), LocalStorage)
    assert isinstance(open_storage(f"file://{tmp_path}/out"), LocalStorage)
    assert isinstance(open_storage("mock://bucket/out"), ObjectStorage)
    with pytest.raises(OutputError, match="nosuch://x: cannot be opened: "):
        open_storage("nosuch://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: is a file, must be a folder; name another"):
        open_storage(str(tmp_path / "file"))


def test_temporaries_are_deleted(tmp_path: Path) -> None:
    storage = local(tmp_path)
    put(storage, "parts/a", b"whole")
    (tmp_path / "parts/.b.tmp").write_text("half")
    (tmp_path / ".scratch.tmp").mkdir()
    (tmp_path / ".scratch.tmp/spill").write_text("half")
    assert storage.names() == ["parts"]
    assert storage.names("parts") == ["a"]
    storage.delete_temporaries()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "parts"]


class TestLock:
    def test_a_second_driver_is_kept_out(self, tmp_path: Path) -> None:
        with local(tmp_path).lock(), pytest.raises(OutputError) as caught, local(tmp_path).lock():
            pass
        assert str(caught.value) == (
            f"{tmp_path}: process {os.getpid()} on {os.uname().nodename} is writing to this "
            "folder; wait for it, stop it, or name another output"
        )
        with local(tmp_path).lock():
            pass

    def test_a_file_system_without_locks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(OutputError) as caught, local(tmp_path).lock():
            pass
        assert str(caught.value) == (
            f"{tmp_path}: cannot be locked (No locks available), so two jobs could write to it at "
            "once; name a folder of a file system with locks"
        )

    def test_the_kernel_releases_the_lock_of_a_killed_driver(self, tmp_path: Path) -> None:
        hold = (
            "import sys, time\nfrom jobs.writing.local_storage import LocalStorage\n"
            "with LocalStorage(sys.argv[1]).lock():\n"
            "    print('locked', flush=True)\n    time.sleep(600)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            with (
                pytest.raises(OutputError, match=f"process {holder.pid} on "),
                local(tmp_path).lock(),
            ):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        with local(tmp_path).lock():
            pass


def test_an_upload_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        storage = objects(disk)
        put(storage, "kept", b"k" * 50_000)
        with pytest.raises(OutputFullError, match=r"s3://bucket/out: new: .*No space left"):
            put(storage, "new", b"n" * 300_000)
        assert storage.names() == ["kept"]


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        storage = local(disk / "out")
        put(storage, "kept", b"k" * 50_000)
        with pytest.raises(OutputFullError) as caught:
            put(storage, "parts/new", b"n" * 300_000)
        message = str(caught.value)
        assert message.startswith(
            f"{disk}/out/parts/new: no room to write (No space left on device"
        )
        assert message.endswith(
            " bytes free); what was written before is safe; make room and run the same command "
            "again"
        )
        assert storage.names("parts") == []
        assert not list(disk.rglob(".*.tmp"))
        put(storage, "parts/new", b"n" * 50_000)
        assert get(storage, "kept") == b"k" * 50_000
