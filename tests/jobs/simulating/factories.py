"""Small simulations and instances to test with, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from tests.policies.test_unit_step import generated_jobs


def run_command(*words: str) -> int:
    """Exit status of `tiebreak` with these words."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `tiebreak` says when it refuses these words, with the line breaks taken out."""
    assert run_command(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = " ".join(captured.err.split())
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def request_dict(prompt: int, output: int, lower: int, upper: int, **more: Any) -> dict[str, Any]:
    """One request of an instance file."""
    return {
        "prompt_tokens": prompt, "output_tokens": output, "lower": lower, "upper": upper, **more,
    }  # fmt: skip


def instance_dict(
    memory: int, prompt: int, lower: int, upper: int, outputs: Sequence[int]
) -> dict[str, Any]:
    """An instance whose requests share prompt length and interval."""
    return {
        "memory_tokens": memory,
        "requests": [request_dict(prompt, output, lower, upper) for output in outputs],
    }


V1 = instance_dict(8, 1, 1, 4, [4, 1, 2, 1])
V2 = instance_dict(9, 1, 2, 5, [5, 2, 2, 3, 2])
V3 = instance_dict(6, 0, 1, 3, [3, 3, 1, 1, 1, 2])
GENERATED = {
    "memory_tokens": 1500,
    "requests": [request_dict(j.prompt, j.output, j.lower, j.upper) for j in generated_jobs(200)],
}


def write_instance(folder: Path, value: Any) -> str:
    """A file with the instance; text is written as it is."""
    path = folder / "instance.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)
