from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import OutputError
from jobs.reading.inputs import InputOptions, open_input
from jobs.writing.manifest import JobFolder, claim_folder
from jobs.writing.outputs import ResultWriter
from tests.jobs.factories import error, lines_file, result, stored_errors, stored_results

NOW_S = 1_700_000_000.0


def claim(folder: Path, identity: Any = None, **options: Any) -> AbstractContextManager[JobFolder]:
    identity = {"model": "m"} if identity is None else identity
    return claim_folder(str(folder), identity, input_uri="in.jsonl", now_unix_s=NOW_S, **options)


def refusal(folder: Path, identity: Any = None, **options: Any) -> str:
    with pytest.raises(OutputError) as caught, claim(folder, identity, **options):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}: ")
    return message.removeprefix(f"{folder}: ")


def finish(folder: Path, identity: Any = None, rows: int = 3) -> None:
    with claim(folder, identity) as job:
        writer = ResultWriter(job.storage)
        for i in range(rows - 1):
            writer.add(result(i))
        writer.add_error(error(rows - 1))
        writer.close()
        job.complete(rows=rows, result_rows=rows - 1, error_rows=1, now_unix_s=NOW_S + 9)


def test_life_of_a_job(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    with claim(folder) as job:
        assert not job.is_complete
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest == {
            "version": 1,
            "state": "running",
            "input_uri": "in.jsonl",
            "identity": {"model": "m"},
            "started_unix_s": NOW_S,
            "finished_unix_s": None,
            "rows": None,
            "result_rows": None,
            "error_rows": None,
            "report": {},
            "paused": "",
            "spent_joules": 0.0,
        }
        job.complete(
            rows=3, result_rows=2, error_rows=1, now_unix_s=NOW_S + 9, report={"joules": None}
        )
    with claim(folder) as job:
        assert job.is_complete
        assert job.manifest.started_unix_s == NOW_S
        assert job.manifest.finished_unix_s == NOW_S + 9
        assert (job.manifest.rows, job.manifest.result_rows, job.manifest.error_rows) == (3, 2, 1)
        assert job.manifest.report == {"joules": None}


def test_a_paused_job_says_why_and_goes_on(tmp_path: Path) -> None:
    with claim(tmp_path) as job:
        job.pause("energy budget: 7 J spent of 5 J", spent_joules=7.0, report={"rows": 2})
    with claim(tmp_path) as job:
        assert not job.is_complete
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["state"] == "paused"
        assert manifest["paused"] == "energy budget: 7 J spent of 5 J"
        assert manifest["report"] == {"rows": 2}
        job.resume()
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert (manifest["state"], manifest["paused"]) == ("running", "")
        assert manifest["spent_joules"] == 7.0
    assert refusal(tmp_path, {"model": "other"}).startswith("belongs to another job")
    with claim(tmp_path, overwrite=True) as job:
        assert job.manifest.spent_joules == 0.0


def test_counts_must_add_up(tmp_path: Path) -> None:
    with claim(tmp_path) as job:
        with pytest.raises(OutputError, match="2 results and 1 errors for 4 rows, must be one for"):
            job.complete(rows=4, result_rows=2, error_rows=1, now_unix_s=NOW_S)
        assert not job.is_complete


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({"model": "a"}, {"model": "b"}, "model was 'a', now is 'b'"),
        ({"sampling": {"seed": 1}}, {"sampling": {}}, "sampling.seed was 1, now is None"),
        ({}, {"template": "t" * 500}, "template was None, now is '" + "t" * 79 + "..."),
        ({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [2]}}, "b.c was [1], now is [2]"),
    ],
)
def test_another_job_is_refused_naming_the_difference(
    tmp_path: Path, old: Any, new: Any, difference: str
) -> None:
    with claim(tmp_path, old):
        pass
    assert refusal(tmp_path, new) == (
        f"belongs to another job: {difference}; name another output folder, or pass --overwrite "
        "to delete its results"
    )
    with claim(tmp_path, old):
        pass


def test_the_identity_is_compared_as_json(tmp_path: Path) -> None:
    with claim(tmp_path, {"stop": ("a", "b"), "top_p": 1.0}):
        pass
    with claim(tmp_path, {"stop": ["a", "b"], "top_p": 1}):
        pass


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    mine = {"thesis.tex": "years of work", ".draft.tmp": "more work", ".lock": "held by tex"}
    for name, content in mine.items():
        (tmp_path / name).write_text(content)
    for overwrite in (False, True):
        assert refusal(tmp_path, overwrite=overwrite) == (
            "is not empty and holds no job (no manifest.json; there is 'thesis.tex'); name an "
            "empty or new folder"
        )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == mine


def test_overwrite_deletes_the_job_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path, {"model": "a"})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "output.jsonl").write_text("old")
    with claim(tmp_path, {"model": "b"}, overwrite=True) as job:
        assert not job.is_complete
        assert job.manifest.identity == {"model": "b"}
        assert len(ResultWriter(job.storage).finished) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "output.jsonl").exists()


def test_errors_are_tried_again_when_asked(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "output.parquet").write_text("made with the errors")
    with claim(tmp_path) as job:
        assert job.is_complete
        assert stored_errors(job.storage) == [2]
    with claim(tmp_path, retry_errors=True) as job:
        assert not job.is_complete
        assert stored_errors(job.storage) == []
        assert stored_results(job.storage) == [0, 1]
        assert ResultWriter(job.storage).add(result(2))
    assert not (tmp_path / "output.parquet").exists()


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1')
    assert refusal(tmp_path) == (
        "manifest.json cannot be read: Input data was truncated; name another folder or pass "
        "--overwrite to delete its results"
    )
    with claim(tmp_path, overwrite=True) as job:
        assert stored_results(job.storage) == []


def test_a_manifest_of_a_newer_program(tmp_path: Path) -> None:
    finish(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    assert refusal(tmp_path) == (
        "manifest.json has version 2, this program knows up to 1; use the newer program or name "
        "another folder"
    )


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    with claim(tmp_path):
        assert "is writing to this folder; wait for it" in refusal(tmp_path, overwrite=True)


class TestInputIdentity:
    """The same input resumes wherever it lies; a changed one is refused."""

    def start(self, tmp_path: Path) -> Path:
        source = tmp_path / "in"
        source.mkdir()
        for name in ("a", "b"):
            lines_file(source / f"{name}.jsonl", [{"prompt": name, "id": name}])
        with claim(tmp_path / "out", self.identity(source)):
            pass
        return source

    def identity(self, source: Path, **options: Any) -> dict[str, Any]:
        return {"input": open_input(str(source), InputOptions(**options)).identity()}

    def test_moved_and_touched(self, tmp_path: Path) -> None:
        source = self.start(tmp_path)
        moved = source.rename(tmp_path / "elsewhere")
        (moved / "a.jsonl").touch()
        (moved / "b.jsonl").rename(moved / "c.jsonl")
        with claim(tmp_path / "out", self.identity(moved)):
            pass

    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            (
                lambda source: lines_file(source / "b.jsonl", [{"prompt": "c", "id": "b"}]),
                "input file 'b.jsonl' has changed",
            ),
            (
                lambda source: lines_file(source / "b.jsonl", [{"prompt": "longer", "id": "b"}]),
                "input file 'b.jsonl' had 27 bytes, now has 32",
            ),
            (
                lambda source: lines_file(source / "c.jsonl", [{"prompt": "c", "id": "c"}]),
                "the input had 2 files, now has 3",
            ),
        ],
    )
    def test_changed(
        self, tmp_path: Path, change: Callable[[Path], object], difference: str
    ) -> None:
        source = self.start(tmp_path)
        change(source)
        message = refusal(tmp_path / "out", self.identity(source))
        assert message.startswith(f"belongs to another job: {difference}; name another output")

    def test_other_columns(self, tmp_path: Path) -> None:
        source = self.start(tmp_path)
        message = refusal(tmp_path / "out", self.identity(source, prompt_column="id"))
        assert "input.prompt_column was 'prompt', now is 'id'" in message

    def test_large_inputs_are_known_by_size_and_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.reading.fingerprint.fingerprints.__defaults__", (10,))
        source = self.start(tmp_path)
        with claim(tmp_path / "out", self.identity(source)):
            pass
        path = source / "b.jsonl"
        path.write_bytes(path.read_bytes())
        # The file system's clock may not have ticked since the file was made.
        later_s = path.stat().st_mtime + 1
        os.utime(path, (later_s, later_s))
        message = refusal(tmp_path / "out", self.identity(source))
        assert "input file 'b.jsonl' has changed" in message
