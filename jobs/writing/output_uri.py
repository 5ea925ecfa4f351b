"""From the address of an output to its storage."""

from __future__ import annotations

import pyarrow.fs as pafs

from jobs.errors import OutputError, one_line
from jobs.writing.local_storage import LocalStorage
from jobs.writing.object_storage import ObjectStorage
from jobs.writing.storage import Storage


def open_storage(uri: str) -> Storage:
    """The storage behind a local path or a `pyarrow.fs` URI; nothing is created yet.

    Raises:
        OutputError: The URI is not understood, or the path is a file.
    """
    if "://" not in uri:
        return LocalStorage(uri)
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{uri}: cannot be opened: {one_line(error)}; check the address and credentials"
        ) from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return LocalStorage(path)
    return ObjectStorage(uri, filesystem, path)
