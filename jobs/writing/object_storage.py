"""A job's files in an object store."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow.fs as pafs

from jobs.errors import NO_ROOM, OutputError, OutputFullError, one_line
from jobs.writing.storage import Produce

_SPOOL_BYTES = 64 * 1024 * 1024
_COPY_BYTES = 8 * 1024 * 1024

PATIENCE_S = 900.0
"""How long a store that has answered before may be away."""

RETRY_S = 10.0
"""Pause before a store that is away is asked again; pyarrow's own attempts come on top."""

# pyarrow's object stores raise plain OSErrors without an errno: only their text tells them apart.
_MAY_PASS = re.compile(
    r"AWS Error (INTERNAL_FAILURE|NETWORK_CONNECTION|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|SLOW_DOWN"
    r"|THROTTLING)\b|HTTP status (429|500|502|503|504)\b"
)
_FULL = re.compile(r"HTTP status 507\b")

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class ObjectStorage:
    """An object store, where a file appears when its upload is complete.

    There is no lock: two drivers must not be given the same folder.

    A store that answered once and then is away, is overloaded or fails within itself is waited for:
    a job of hours need not end for it. One that never answered is taken for a wrong address.

    Args:
        uri: What messages call the folder.
        filesystem: A `pyarrow.fs.FileSystem`.
        path: The folder's path in it.
        patience_s: How long a store is waited for.
        retry_s: Pause before it is asked again.
    """

    def __init__(
        self,
        uri: str,
        filesystem: Any,
        path: str,
        *,
        patience_s: float = PATIENCE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self.uri = uri
        self._filesystem = filesystem
        self._path = path.rstrip("/")
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._has_answered = False

    def names(self, folder: str = "") -> list[str]:
        """Names below the prefix `folder`."""
        base = self._at(folder) if folder else self._path
        selector = pafs.FileSelector(base, allow_not_found=True)
        infos = self._ask(folder, lambda: self._filesystem.get_file_info(selector))
        return sorted(info.base_name for info in infos)

    def write(self, name: str, produce: Produce) -> None:
        """Make the content in full, then upload it as one object."""
        # A stream that is closed early would be taken for a whole object.
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            try:
                produce(spool)
            except OSError as error:
                raise self._error(name, error) from error
            self._ask(name, lambda: self._upload(self._at(name), spool))

    def _upload(self, path: str, content: IO[bytes]) -> None:
        content.seek(0)
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
        return self._ask(name, lambda: self._filesystem.open_input_file(self._at(name)))

    def delete(self, name: str) -> None:
        """Delete an object; it may be gone already."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(self._at(name))

        self._ask(name, delete)

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

    def _ask(self, name: str, question: Callable[[], _T]) -> _T:
        """The store's answer, which is waited for while it is away."""
        asked_s = time.monotonic()
        while True:
            try:
                answer = question()
            except OSError as error:
                left_s = asked_s + self._patience_s - time.monotonic()
                may_pass = self._has_answered and _MAY_PASS.search(str(error))
                if not may_pass or left_s <= 0:
                    raise self._error(name, error) from error
                told = f"{self.uri}: {name}: {one_line(error)}"
                logger.warning("%s; nothing is lost, trying again for %d s", told, left_s)
                time.sleep(min(self._retry_s, left_s))
            else:
                self._has_answered = True
                return answer

    def _error(self, name: str, error: OSError) -> OutputError:
        is_full = error.errno in NO_ROOM or _FULL.search(str(error))
        kind = OutputFullError if is_full else OutputError
        return kind(
            f"{self.uri}: {name}: {one_line(error)}; check the address, credentials and quota, "
            "then run the same command again"
        )
