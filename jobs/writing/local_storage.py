"""A job's files in a local folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.errors import NO_ROOM, OutputError, OutputFullError, one_line
from jobs.writing.storage import Produce
from predictor.atomic_file import sync_folder

_TEMPORARY = ".tmp"
"""Ends the names of unfinished files, which begin with a dot: no glob for data finds them."""

_LOCK = ".lock"


class LocalStorage:
    """A folder of a POSIX file system: write aside, sync, rename, sync the folder."""

    def __init__(self, path: str) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(path)))
        self.uri = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"{self.uri}: is a file, must be a folder; name another output")

    def names(self, folder: str = "") -> list[str]:
        """Names in `folder`; the lock and temporary files are left out."""
        try:
            entries = os.listdir(self.root / folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(folder, error) from error
        return sorted(n for n in entries if n != _LOCK and not n.endswith(_TEMPORARY))

    def write(self, name: str, produce: Produce) -> None:
        """Write beside the file, sync, rename over it, and sync the folder."""
        path = self.root / name
        temporary = path.with_name(f".{path.name}{_TEMPORARY}")
        try:
            self._make_folder(path.parent)
            with open(temporary, "wb") as stream:
                produce(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError as error:
            _delete_quietly(temporary)
            raise self._error(name, error) from error
        except BaseException:
            _delete_quietly(temporary)
            raise

    def open(self, name: str) -> Any:
        """A file as a seekable stream."""
        try:
            return pa.OSFile(str(self.root / name))
        except OSError as error:
            raise self._error(name, error) from error

    def delete(self, name: str) -> None:
        """Delete a file; it may be gone already."""
        try:
            os.remove(self.root / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._error(name, error) from error

    def delete_temporaries(self) -> None:
        """Delete what interrupted `write` and `scratch` left."""
        for path in [*self.root.glob(f".*{_TEMPORARY}"), *self.root.glob(f"*/.*{_TEMPORARY}")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                _delete_quietly(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder until the block or the process ends."""
        try:
            self._make_folder(self.root)
            file = open(self.root / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise self._error(_LOCK, error) from error
        # The kernel ends the lock with the process, however that ends. The file stays: deleting it
        # would let two drivers lock two files of the same name.
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise OutputError(
                    f"{self.uri}: {owner} is writing to this folder; wait for it, stop it, or "
                    "name another output"
                ) from error
            except OSError as error:
                raise OutputError(
                    f"{self.uri}: cannot be locked ({error.strerror}), so two jobs could write to "
                    "it at once; name a folder of a file system with locks"
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder inside this one, on the same disk."""
        self._make_folder(self.root)
        path = self.root / f".scratch{_TEMPORARY}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        except OSError as error:
            raise self._error(path.name, error) from error
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _make_folder(self, path: Path) -> None:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent)

    def _error(self, name: str, error: OSError) -> OutputError:
        place = self.root / name
        if error.errno in NO_ROOM:
            free = shutil.disk_usage(self.root if self.root.exists() else self.root.parent).free
            return OutputFullError(
                f"{place}: no room to write ({os.strerror(error.errno or 0)}, {free:,} bytes "
                "free); what was written before is safe; make room and run the same command again"
            )
        return OutputError(f"{place}: {error.strerror or one_line(error)}; check the folder")


def _delete_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
