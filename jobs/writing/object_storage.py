"""A job's files in an object store."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.fs as pafs

from jobs.errors import NO_ROOM, OutputError, OutputFullError, one_line
from jobs.writing.storage import Produce

_SPOOL_BYTES = 64 * 1024 * 1024
_COPY_BYTES = 8 * 1024 * 1024


class ObjectStorage:
    """An object store, where a file appears when its upload is complete.

    There is no lock: two drivers must not be given the same folder.
    """

    def __init__(self, uri: str, filesystem: Any, path: str) -> None:
        self.uri = uri
        self._filesystem = filesystem
        self._path = path.rstrip("/")

    def names(self, folder: str = "") -> list[str]:
        """Names below the prefix `folder`."""
        base = self._at(folder) if folder else self._path
        selector = pafs.FileSelector(base, allow_not_found=True)
        try:
            infos = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise self._error(folder, error) from error
        return sorted(info.base_name for info in infos)

    def write(self, name: str, produce: Produce) -> None:
        """Make the content in full, then upload it as one object."""
        # A stream that is closed early would be taken for a whole object.
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            try:
                produce(spool)
                spool.seek(0)
                self._upload(self._at(name), spool)
            except OSError as error:
                raise self._error(name, error) from error

    def _upload(self, path: str, content: IO[bytes]) -> None:
        try:
            stream = self._filesystem.open_output_stream(path)
        except FileNotFoundError:
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self._filesystem.open_output_stream(path)
        try:
            shutil.copyfileobj(content, stream, _COPY_BYTES)
        except BaseException:
            with contextlib.suppress(OSError):
                stream.close()
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(path)
            raise
        stream.close()

    def open(self, name: str) -> Any:
        """An object as a seekable stream."""
        try:
            return self._filesystem.open_input_file(self._at(name))
        except OSError as error:
            raise self._error(name, error) from error

    def delete(self, name: str) -> None:
        """Delete an object; it may be gone already."""
        try:
            self._filesystem.delete_file(self._at(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._error(name, error) from error

    def delete_temporaries(self) -> None:
        """Nothing to do: uploads leave none."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nothing: object stores have no lock."""
        yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of the machine's temporary space."""
        with tempfile.TemporaryDirectory() as path:
            try:
                yield Path(path)
            except OSError as error:
                raise self._error(path, error) from error

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _error(self, name: str, error: OSError) -> OutputError:
        kind = OutputFullError if error.errno in NO_ROOM else OutputError
        return kind(
            f"{self.uri}: {name}: {one_line(error)}; check the address, credentials and quota, "
            "then run the same command again"
        )
