"""`tiebreak replay`: what it prints and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main
from tests.cluster.factories import forecast, replica, request
from tests.cluster.test_journal import journaled


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def record(path: Path) -> None:
    """Two requests: one runs, is recalled, and the other takes the only slot."""
    core, journal = journaled(path)
    core.replica_joined(replica("first", slots=1), 0.0)
    core.submit(request("short"), forecast(10), 0.5)
    core.submit(request("long"), forecast(90), 0.5)
    core.decide(1.0)
    core.cancel("short", 2.0)
    core.decide(2.5)
    journal.close()


def test_equal_decisions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "journal")
    assert run("replay", str(tmp_path / "journal")) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "policy tiebreak: 3 decisions in 2 rounds equal, after 4 events in 1 sessions" in words


def test_a_difference_is_shown_with_what_came_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    record(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    # The one that was submitted as 0 and dispatched first: let the record say the other.
    assert lines[4].startswith('["decide",1.0,[[0,0,1,')
    lines[4] = lines[4].replace("[[0,0,1,", "[[1,0,1,")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run("replay", str(path)) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "0 decisions in 0 rounds equal" in words
    assert "line 5, action 1" in words
    assert "recorded: dispatch long to first, attempt 1" in words
    assert "replayed: dispatch short to first, attempt 1" in words
    assert '["submit",0.5,1,"long"' in words


def test_lines_that_were_cut_off_are_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    record(path)
    path.write_bytes(path.read_bytes()[:-4])
    assert run("replay", str(path)) == 0
    assert "1 lines were cut off" in " ".join(capsys.readouterr().out.split())


def test_an_unreadable_journal_is_a_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("replay", str(tmp_path / "nowhere")) == 2
    assert "cannot be read" in " ".join(capsys.readouterr().err.split())
