"""Whose output a folder is: one job's, and only one driver's at a time.

`manifest.json` says which input and options the results in a folder came from. It is written
before the first result, so that the same command resumes and any other one is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from jobs.errors import OutputError, one_line
from jobs.writing.output_uri import open_storage
from jobs.writing.parts import ERRORS, PENDING, RESULTS, delete_errors
from jobs.writing.storage import Storage

MANIFEST = "manifest.json"
OUTPUT_FILES = (
    "output.parquet",
    "output.jsonl",
    "errors.jsonl",
    "labels.parquet",
    "labels-partial.parquet",
)
"""Files at the top of the folder that a job may make at its end."""

_VERSION = 1
_SHOWN_CHARACTERS = 80


class Manifest(msgspec.Struct, kw_only=True, frozen=True):
    """The content of `manifest.json`.

    Attributes:
        version: Of this layout.
        state: `clearing` while an older job's files are deleted, then `running`, then `complete`;
            or `paused`, until the same command goes on.
        input_uri: Where the input lay, for the reader; not part of the identity.
        identity: What the results depend on: `input` (`JobInput.identity`) and options such as
            model, sampling and chat template.
        started_unix_s: When the job was first started, in seconds since 1970.
        finished_unix_s: When it was complete.
        rows: Rows of the input, once known.
        result_rows: Rows with a result, once complete.
        error_rows: Rows with an error, once complete.
        report: What the job reports of itself at its end.
        paused: Why it pauses, in words.
        spent_joules: Energy that its requests had cost when it paused last, those that failed too.
    """

    version: int = _VERSION
    state: Literal["clearing", "running", "paused", "complete"]
    input_uri: str
    identity: dict[str, Any]
    started_unix_s: float
    finished_unix_s: float | None = None
    rows: int | None = None
    result_rows: int | None = None
    error_rows: int | None = None
    report: dict[str, Any] = {}
    paused: str = ""
    spent_joules: float = 0.0


class JobFolder:
    """A job's output folder, held by this process until `claim_folder` ends.

    Attributes:
        storage: Its files.
        manifest: What `manifest.json` holds.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.storage = storage
        self.manifest = manifest

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run finished the job."""
        return self.manifest.state == "complete"

    def complete(
        self,
        *,
        rows: int,
        result_rows: int,
        error_rows: int,
        now_unix_s: float,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that every row has ended.

        Raises:
            OutputError: The counts do not add up, or the manifest cannot be written.
        """
        if result_rows + error_rows != rows:
            raise OutputError(
                f"{self.storage.uri}: {result_rows:,} results and {error_rows:,} errors for "
                f"{rows:,} rows, must be one for each; run the same command again"
            )
        self._write(
            msgspec.structs.replace(
                self.manifest,
                state="complete",
                finished_unix_s=now_unix_s,
                rows=rows,
                result_rows=result_rows,
                error_rows=error_rows,
                report=dict(report or {}),
            )
        )

    def pause(self, why: str, *, spent_joules: float, report: Mapping[str, Any]) -> None:
        """Record that rows are left and that nobody works on them.

        Args:
            why: In words.
            spent_joules: What the job's requests have cost.
            report: What the job reports of itself so far.

        Raises:
            OutputError: The manifest cannot be written.
        """
        self._write(
            msgspec.structs.replace(
                self.manifest,
                state="paused",
                paused=why,
                spent_joules=spent_joules,
                report=dict(report),
            )
        )

    def resume(self) -> None:
        """Record that a job that paused goes on.

        Raises:
            OutputError: The manifest cannot be written.
        """
        if self.manifest.state == "paused":
            self._write(msgspec.structs.replace(self.manifest, state="running", paused=""))

    def _write(self, manifest: Manifest) -> None:
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        self.storage.write(MANIFEST, lambda out: out.write(content))
        self.manifest = manifest

    def _retry_errors(self) -> None:
        """Forget the errors, and the files that were made with them."""
        self._write(msgspec.structs.replace(self.manifest, state="running"))
        self._delete_output_files()
        delete_errors(self.storage)

    def _delete_output_files(self) -> None:
        for name in OUTPUT_FILES:
            self.storage.delete(name)

    def _clear(self, manifest: Manifest) -> None:
        """Delete an older job's files. Begun once, it is finished by whoever comes next."""
        self._write(msgspec.structs.replace(manifest, state="clearing"))
        self._delete_output_files()
        # Pending segments go first: those that are void must not come to life.
        for folder in (PENDING, RESULTS.folder, ERRORS.folder):
            for name in self.storage.names(folder):
                self.storage.delete(f"{folder}/{name}")
        self._write(msgspec.structs.replace(manifest, state="running"))


@contextlib.contextmanager
def claim_folder(
    output_uri: str,
    identity: Mapping[str, Any],
    *,
    input_uri: str,
    now_unix_s: float,
    overwrite: bool = False,
    retry_errors: bool = False,
) -> Iterator[JobFolder]:
    """Hold the output folder for one job: a new one, or one to resume.

    On a local path the folder is locked until the end of the block or of the process. An object
    store has no lock: do not run two drivers on one folder there.

    Args:
        output_uri: A local path or a `pyarrow.fs` URI.
        identity: What the results depend on, JSON-ready.
        input_uri: Where the input lies.
        now_unix_s: Seconds since 1970.
        overwrite: Delete the results of another job, or of this one.
        retry_errors: Forget the errors of earlier runs, so that their rows run again.

    Raises:
        OutputError: The folder belongs to another job, to no job, or to another driver at work.
    """
    storage = open_storage(output_uri)
    _has_manifest(storage)  # before the lock, which is a file in the folder
    with storage.lock():
        normal = msgspec.json.decode(msgspec.json.encode(identity))
        new = Manifest(
            state="running", input_uri=input_uri, identity=normal, started_unix_s=now_unix_s
        )
        old = _read_manifest(storage, overwrite=overwrite)
        storage.delete_temporaries()
        folder = JobFolder(storage, old or new)
        if old is None:
            folder._write(new)
        elif overwrite or old.state == "clearing":
            if not overwrite:
                _check_same(storage.uri, old.identity, normal)
            folder._clear(new)
        else:
            _check_same(storage.uri, old.identity, normal)
            if retry_errors:
                folder._retry_errors()
        yield folder


def _has_manifest(storage: Storage) -> bool:
    """Whether the folder is a job's; False if it is empty.

    Raises:
        OutputError: It is something else's.
    """
    names = storage.names()
    if names and MANIFEST not in names:
        raise OutputError(
            f"{storage.uri}: is not empty and holds no job (no {MANIFEST}; there is "
            f"{names[0]!r}); name an empty or new folder"
        )
    return bool(names)


def _read_manifest(storage: Storage, *, overwrite: bool) -> Manifest | None:
    """The folder's manifest; None if the folder is empty."""
    if not _has_manifest(storage):
        return None
    try:
        with storage.open(MANIFEST) as stream:
            manifest = msgspec.json.decode(stream.read(), type=Manifest)
    except (OSError, ValueError) as error:
        if overwrite:
            return Manifest(state="clearing", input_uri="", identity={}, started_unix_s=0.0)
        raise OutputError(
            f"{storage.uri}: {MANIFEST} cannot be read: {one_line(error)}; name another folder or "
            "pass --overwrite to delete its results"
        ) from error
    if manifest.version > _VERSION and not overwrite:
        raise OutputError(
            f"{storage.uri}: {MANIFEST} has version {manifest.version}, this program knows up to "
            f"{_VERSION}; use the newer program or name another folder"
        )
    return manifest


def _check_same(uri: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    difference = _difference("", old, new)
    if difference is not None:
        raise OutputError(
            f"{uri}: belongs to another job: {difference}; name another output folder, or pass "
            "--overwrite to delete its results"
        )


def _difference(path: str, old: Any, new: Any) -> str | None:
    """The first difference in words, or None."""
    if path == "input.files":
        return _file_difference(old or [], new or [])
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else key
            difference = _difference(inner, old.get(key), new.get(key))
            if difference is not None:
                return difference
        return None
    return None if old == new else f"{path} was {_shown(old)}, now is {_shown(new)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _file_difference(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str | None:
    if len(old) != len(new):
        return f"the input had {len(old):,} files, now has {len(new):,}"
    for before, after in zip(old, new, strict=True):
        if before["size_bytes"] != after["size_bytes"]:
            return (
                f"input file {after['name']!r} had {before['size_bytes']:,} bytes, now has "
                f"{after['size_bytes']:,}"
            )
        if {**before, "name": ""} != {**after, "name": ""}:
            return f"input file {after['name']!r} has changed"
    return None
