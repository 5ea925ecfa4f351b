"""Where a job's files lie: a folder whose files appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

Produce = Callable[[IO[bytes]], object]
"""Writes the content of a file to the stream it is given."""


class Storage(Protocol):
    """A folder of files that appear whole or not at all.

    Names are relative, with at most one `/`. `uri` is what messages call the folder.
    """

    uri: str

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in `folder`, sorted; temporary ones left out."""

    def write(self, name: str, produce: Produce) -> None:
        """Create or replace a file at once: readers see all of it or nothing.

        When it returns, the file survives a crash of the machine.

        Raises:
            OutputFullError: There is no room.
            OutputError: It cannot be written.
        """

    def open(self, name: str) -> Any:
        """A file as a seekable stream that pyarrow reads.

        Raises:
            OutputError: It cannot be opened.
        """

    def delete(self, name: str) -> None:
        """Delete a file; it may be gone already.

        Raises:
            OutputError: It cannot be deleted.
        """

    def delete_temporaries(self) -> None:
        """Delete what interrupted writers left. Only for the one who holds the lock."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep every other driver out, where the storage can.

        Raises:
            OutputError: Another driver is at work.
        """

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A local folder for intermediate files, deleted afterwards."""
