"""What tells whether the files of an input are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from jobs.reading.sources import InputFile

HASHED_BYTES = 1024 * 1024 * 1024
"""Inputs up to this size in all are known by their content, larger ones by size and time."""

_CHUNK_BYTES = 4 * 1024 * 1024


def fingerprints(
    files: Sequence[InputFile], hashed_bytes: int = HASHED_BYTES
) -> list[dict[str, Any]]:
    """One JSON-ready fingerprint per file, in order.

    Names are kept for messages but files are compared by content: a moved or copied input stays
    the same, down to the order of its files. Above `hashed_bytes` the time of the last change
    stands for the content.

    Raises:
        OSError: A file cannot be read.
    """
    small = sum(file.size_bytes for file in files) <= hashed_bytes
    return [
        {"name": file.name, "size_bytes": file.size_bytes}
        | ({"blake2b": _digest(file)} if small else {"modified_ns": file.modified_ns})
        for file in files
    ]


def _digest(file: InputFile) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open_bytes() as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
