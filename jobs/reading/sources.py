"""The files of a job's input: found by path, folder, glob or URI, and opened as streams."""

from __future__ import annotations

import enum
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.fs as pafs

from jobs.errors import InputError, one_line

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longest line or CSV row that is held in memory; a longer one is a bad row."""

_BUFFER_BYTES = 1024 * 1024
_ECHO_BYTES = 2_000
_UTF8_BOM = b"\xef\xbb\xbf"


class InputFormat(enum.StrEnum):
    """How the input's files are read."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    OPENAI_BATCH = "openai-batch"
    CSV = "csv"
    TEXT = "text"


_FORMAT_OF_SUFFIX = {
    ".parquet": InputFormat.PARQUET,
    ".pq": InputFormat.PARQUET,
    ".jsonl": InputFormat.JSONL,
    ".ndjson": InputFormat.JSONL,
    ".json": InputFormat.JSONL,
    ".csv": InputFormat.CSV,
    ".tsv": InputFormat.CSV,
    ".txt": InputFormat.TEXT,
    ".text": InputFormat.TEXT,
}
_CODEC_OF_SUFFIX = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}

_FOREIGN_CONTENT = {
    b"PAR1": "is a Parquet file; name it .parquet or give that format",
    b"\x1f\x8b": "is gzip-compressed; name it .gz",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed; name it .zst",
    b"\xff\xfe": "is UTF-16 text, must be UTF-8; convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16 text, must be UTF-8; convert it (iconv -f UTF-16 -t UTF-8)",
}


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input.

    Attributes:
        filesystem: The `pyarrow.fs.FileSystem` that holds it.
        path: Its path there.
        name: What messages call it: the path below the folder or glob that was given.
        size_bytes: Its size as stored (compressed).
        modified_ns: Time of the last change in nanoseconds since 1970, 0 when unknown.
    """

    filesystem: Any
    path: str
    name: str
    size_bytes: int
    modified_ns: int

    @property
    def codec(self) -> str | None:
        """Compression by suffix: `gzip`, `zstd`, `bz2` or None."""
        return _CODEC_OF_SUFFIX.get(PurePosixPath(self.path).suffix.lower())

    @property
    def suffix(self) -> str:
        """The format's suffix in lower case, below a compression suffix; empty if there is none."""
        path = PurePosixPath(self.path.lower())
        return path.with_suffix("").suffix if path.suffix in _CODEC_OF_SUFFIX else path.suffix

    def open_stream(self) -> BinaryIO:
        """The decompressed bytes, buffered."""
        stream = self.filesystem.open_input_stream(self.path, compression=self.codec)
        return cast(BinaryIO, io.BufferedReader(stream, _BUFFER_BYTES))

    def open_bytes(self) -> Any:
        """The bytes as stored, as a seekable `pyarrow.NativeFile`."""
        return self.filesystem.open_input_file(self.path)


class Line(NamedTuple):
    """One line of a text file.

    Attributes:
        number: From 1.
        content: Without the newline; only its beginning when `too_long`.
        too_long: The line has more than `MAX_LINE_BYTES`.
    """

    number: int
    content: bytes
    too_long: bool


def read_lines(file: InputFile, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Every line of `file`, holding at most one of `max_bytes` in memory."""
    with file.open_stream() as stream:
        number = 0
        while line := stream.readline(max_bytes + 1):
            number += 1
            too_long = len(line) > max_bytes
            if too_long:
                line, end = line[:_ECHO_BYTES], line[-1:]
                while end not in (b"\n", b""):
                    end = stream.readline(_BUFFER_BYTES)[-1:]
            if number == 1:
                line = line.removeprefix(_UTF8_BOM)
            yield Line(number, line.removesuffix(b"\n"), too_long)


def find_files(uri: str, given: InputFormat | None) -> tuple[InputFormat, list[InputFile]]:
    """The files behind a path, a folder, a glob or a `pyarrow.fs` URI, sorted by path.

    In a folder or glob, names that begin with `.` or `_` and, unless a format is given, files of
    unknown suffix are left out.

    Args:
        uri: Where the input lies.
        given: The format, or None to take it from the suffixes.

    Raises:
        InputError: Nothing is there, or the format is unclear.
    """
    try:
        filesystem, base, infos, single = _look_up(uri)
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{uri}: cannot be opened: {one_line(error)}") from error
    files = [_input_file(filesystem, base, info) for info in infos]
    if single:
        return given or _format_of_single(uri, files[0]), files
    files = sorted((f for f in files if not _is_hidden(f.name)), key=lambda f: f.path)
    if given is None:
        files = [f for f in files if f.suffix in _FORMAT_OF_SUFFIX]
    if not files:
        wanted = "any" if given else ", ".join(_FORMAT_OF_SUFFIX)
        raise InputError(
            f"{uri}: no files found (looked for: {wanted}); check the path or give a format"
        )
    if given is not None:
        return given, files
    by_format = {_FORMAT_OF_SUFFIX[f.suffix]: f.name for f in files}
    if len(by_format) > 1:
        seen = ", ".join(f"{fmt} ({name})" for fmt, name in sorted(by_format.items()))
        raise InputError(
            f"{uri}: files of several formats: {seen}; pass a glob such as '*.parquet'"
        )
    return next(iter(by_format)), files


def check_content(file: InputFile, input_format: InputFormat) -> None:
    """Refuse a file whose first bytes show that it is not of `input_format`.

    Raises:
        InputError: What it seems to be and how to pass it.
    """
    if input_format is InputFormat.PARQUET:
        if file.codec:
            raise InputError(
                f"{file.name}: compressed Parquet cannot be read in part; decompress it "
                "(Parquet compresses its own pages)"
            )
        return
    with file.open_stream() as stream:
        head = stream.read(4096)
    for magic, message in _FOREIGN_CONTENT.items():
        if head.startswith(magic):
            raise InputError(f"{file.name}: {message}")
    is_json = input_format in (InputFormat.JSONL, InputFormat.OPENAI_BATCH)
    if is_json and head.removeprefix(_UTF8_BOM).lstrip()[:1] == b"[":
        raise InputError(
            f"{file.name}: begins with '[', must hold one JSON object per line; convert a JSON "
            "array with jq -c '.[]'"
        )


def _look_up(uri: str) -> tuple[Any, str, list[Any], bool]:
    """The filesystem, the folder that names are relative to, file infos, and whether it is one."""
    if "://" in uri:
        address, _, query = uri.partition("?")
        head, pattern = _split_glob(address, "*[")
        filesystem, root = pafs.FileSystem.from_uri(head + (f"?{query}" if query else ""))
    else:
        path = os.path.abspath(os.path.expanduser(uri))
        head, pattern = (path, ()) if os.path.exists(path) else _split_glob(path, "*?[")
        filesystem, root = pafs.LocalFileSystem(), head
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.File and not pattern:
        return filesystem, str(PurePosixPath(root).parent), [info], True
    if info.type == pafs.FileType.NotFound and not pattern:
        raise InputError(f"{uri}: no such file or folder; check the path")
    deep = len(pattern) != 1 or "**" in pattern
    selector = pafs.FileSelector(root, recursive=deep, allow_not_found=True)
    infos = [i for i in filesystem.get_file_info(selector) if i.type == pafs.FileType.File]
    if pattern:
        infos = [i for i in infos if _matches(pattern, _relative(i.path, root).split("/"))]
    return filesystem, root, infos, False


def _split_glob(path: str, wildcards: str) -> tuple[str, tuple[str, ...]]:
    """`path` up to the first segment with a wildcard, and the segments from there on."""
    segments = path.split("/")
    for i, segment in enumerate(segments):
        if any(c in segment for c in wildcards):
            return "/".join(segments[:i]) or "/", tuple(segments[i:])
    return path, ()


def _matches(pattern: tuple[str, ...], segments: list[str]) -> bool:
    if not pattern:
        return not segments
    if pattern[0] == "**":
        return any(_matches(pattern[1:], segments[i:]) for i in range(len(segments) + 1))
    return (
        bool(segments)
        and fnmatchcase(segments[0], pattern[0])
        and _matches(pattern[1:], segments[1:])
    )


def _relative(path: str, base: str) -> str:
    return path.removeprefix(base.rstrip("/") + "/")


def _input_file(filesystem: Any, base: str, info: Any) -> InputFile:
    return InputFile(
        filesystem, info.path, _relative(info.path, base), info.size or 0, info.mtime_ns or 0
    )


def _is_hidden(name: str) -> bool:
    return any(segment.startswith((".", "_")) for segment in name.split("/"))


def _format_of_single(uri: str, file: InputFile) -> InputFormat:
    if file.suffix not in _FORMAT_OF_SUFFIX:
        raise InputError(
            f"{uri}: format unclear from suffix {file.suffix!r}, must be one of "
            f"{', '.join(_FORMAT_OF_SUFFIX)} (before .gz, .zst or .bz2); give a format"
        )
    return _FORMAT_OF_SUFFIX[file.suffix]
