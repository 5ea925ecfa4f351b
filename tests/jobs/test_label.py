"""Labelling through the command line, on a running cluster of simulated engines."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import typer

from cluster.config import ConfigError, parse_config
from cluster.prompts import PromptEncoder
from jobs.command import run
from jobs.errors import OutputError
from jobs.label import RepeatedPromptEncoder, check_seeds, label
from jobs.options import with_config
from jobs.writing.finished import FinishedRows
from jobs.writing.output_uri import open_storage
from jobs.writing.parts import finished_rows
from predictor.labels import read_labels
from replicas.embedded_model import EMBEDDED_MODEL
from tests.local_ray import joinable_cluster

ROOT = Path(__file__).parents[2]
KILLS = 3


@pytest.fixture(scope="module", autouse=True)
def running_cluster() -> Iterator[None]:
    """A cluster that the jobs below join; engines fast enough for a thousand samples."""
    config = parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "count": 2,
                "max_num_seqs": 32,
                "engine_args": {"time_scale": 2.0, "output_median_tokens": 40.0},
            }
        }
    )
    with joinable_cluster(config):
        yield


def command(*arguments: object) -> list[str]:
    address = ray.get_runtime_context().gcs_address
    return [sys.executable, "-m", "jobs.label", "--ray.address", address, *map(str, arguments)]


def run_label(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def write_rows(path: Path, rows: list[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def labels(folder: Path, name: str = "labels.parquet") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / name).to_pylist()
    return rows


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted((folder / kind).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def ended(folder: Path) -> FinishedRows:
    """What a resumed run would find."""
    return finished_rows(open_storage(str(folder))) if folder.exists() else FinishedRows()


def wait_for_more_than(count: int, folder: Path, driver: subprocess.Popen[Any]) -> None:
    """Wait until more samples are durable, or the job is done: this test was slow to look."""
    deadline_s = time.monotonic() + 100
    while time.monotonic() < deadline_s:
        # Merging replaces the file that is being read.
        with contextlib.suppress(OutputError):
            if len(ended(folder)) > count:
                return
        if driver.poll() is not None:
            assert driver.returncode == 0
            return
        time.sleep(0.05)
    raise AssertionError("nothing ended within 100 s")


def test_every_sample_ends_once_and_every_good_prompt_has_its_label(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl",
        [
            {"id": "plain", "prompt": "Say something."},
            {"id": "short", "prompt": "Say more.", "max_tokens": 2, "temperature": 0.3},
            '{"id": "broken", "prompt": ',
            {"id": "huge", "prompt": "Say much.", "max_tokens": 1_000_000},
            {"id": "greedy", "prompt": "Say it.", "temperature": 0},
            {"id": "chat", "messages": [{"role": "user", "content": "Hi"}], "top_p": 0.5},
        ],
    )
    out = tmp_path / "out"
    arguments = ["--input", source, "--output", out, "--samples", 3, "--max-tokens", 500]
    done = run_label(*arguments, "--seed", 7, "--top-k", 50, "--json")
    assert done.returncode == 0, done.stderr

    parts, errors = rows_of(out, "parts"), rows_of(out, "errors")
    good = ["plain", "short", "chat"]
    assert sorted(row["row_id"] for row in parts) == sorted(
        ["greedy#0", *(f"{row_id}#{k}" for row_id in good for k in range(3))]
    )
    assert sorted(row["row_id"] for row in errors) == sorted(
        f"{row_id}#{k}" for row_id in ("huge", "row-00000002") for k in range(3)
    )
    assert {(row["prompt"], row["text"]) for row in parts} == {("", "")}

    found = {row["prompt_id"]: row for row in labels(out)}
    assert list(found) == ["plain", "short", "greedy", "chat"]
    by_id = {row["row_id"]: row for row in parts}
    for row_id, row in found.items():
        own = [by_id[f"{row_id}#{k}"] for k in range(len(row["output_tokens"]))]
        assert row["output_tokens"] == [sample["output_tokens"] for sample in own]
        assert row["censored"] == [sample["finish_reason"] == "length" for sample in own]
        assert {row["prompt_tokens"]} == {sample["prompt_tokens"] for sample in own}
    names = ("temperature", "top_p", "top_k", "max_tokens")
    assert {row_id: tuple(row[n] for n in names) for row_id, row in found.items()} == {
        "plain": (1.0, 1.0, 50, 500),
        "short": (0.3, 1.0, 50, 2),
        "greedy": (0.0, 1.0, 50, 500),
        "chat": (1.0, 0.5, 50, 500),
    }
    assert len(set(found["plain"]["output_tokens"])) > 1, "samples differ"
    assert max(found["short"]["output_tokens"]) == 2
    assert any(found["short"]["censored"])
    assert found["chat"]["prompt"] == "Hi"
    assert {row["model"] for row in found.values()} == {EMBEDDED_MODEL}
    assert len(read_labels([out / "labels.parquet"])) == 4

    report = json.loads(done.stdout)
    manifest = json.loads((out / "manifest.json").read_text())
    assert report["labels"] == manifest["report"]["labels"]
    assert report["labels"]["samples"] == len(parts) == 10
    assert report["labels"]["failed_prompts"] == 2
    assert (manifest["state"], manifest["rows"]) == ("complete", 16)
    (out / "labels.parquet").unlink()
    again = run_label(*arguments, "--seed", 7, "--top-k", 50)
    assert "complete already" in " ".join(again.stderr.split())
    assert {row["prompt_id"]: row for row in labels(out)} == found
    other = run_label(*arguments, "--seed", 8, "--top-k", 50)
    assert other.returncode == 2
    assert "seed was 7, now is 8" in " ".join(other.stderr.split())


def test_kills_change_nothing(tmp_path: Path) -> None:
    prompts, samples = 400, 5
    source = write_rows(
        tmp_path / "in.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}."} for i in range(prompts)]
    )
    out = tmp_path / "out"
    arguments = ["--input", source, "--output", out, "--samples", samples, "--max-tokens", 60]
    assert run_label(*arguments).returncode == 0
    undisturbed = labels(out)
    assert len(undisturbed) == prompts
    assert all(len(row["output_tokens"]) == samples for row in undisturbed)

    shutil.rmtree(out)  # the same place: a simulated answer's length follows from it
    rng = random.Random(7)
    counts = [0]
    for _ in range(KILLS):
        driver = subprocess.Popen(
            command(*arguments, "--flush-s", 0.2), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        wait_for_more_than(counts[-1], out, driver)
        time.sleep(rng.uniform(0.0, 0.3))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        counts.append(len(ended(out)))
        assert counts[-1] == prompts * samples or not (out / "labels.parquet").exists()
    assert 0 < counts[1] < prompts * samples, "no kill came in the middle: nothing is proven"
    done = run_label(*arguments)
    assert done.returncode == 0, done.stderr
    assert labels(out) == undisturbed
    assert len(rows_of(out, "parts")) == len(ended(out)) == prompts * samples


def test_an_interrupted_job_gives_the_labels_it_has(tmp_path: Path) -> None:
    prompts, samples = 400, 4
    source = write_rows(
        tmp_path / "in.jsonl", [{"id": f"p{i}", "prompt": f"Say {i}."} for i in range(prompts)]
    )
    out = tmp_path / "out"
    arguments = ["--input", source, "--output", out, "--samples", samples, "--max-tokens", 300]
    driver = subprocess.Popen(
        command(*arguments, "--flush-s", 0.1, "--window", 64),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_more_than(20 * samples, out, driver)
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "--partial" in " ".join(told.split())
    there = ended(out)
    whole = [
        f"p{p}"
        for p in range(prompts)
        if all(row in there for row in range(p * samples, (p + 1) * samples))
    ]
    assert whole
    assert len(whole) < prompts
    done = run_label(*arguments, "--partial", "--json")
    assert done.returncode == 0, done.stderr
    partial = labels(out, "labels-partial.parquet")
    assert [row["prompt_id"] for row in partial] == whole
    counts = json.loads(done.stdout)["labels"]
    assert counts["prompts"] == len(whole)
    assert counts["unfinished_prompts"] == prompts - len(whole)
    assert len(ended(out)) == len(there), "--partial generates nothing"
    assert json.loads((out / "manifest.json").read_text())["state"] == "running"

    assert run_label(*arguments).returncode == 0
    final = {row["prompt_id"]: row for row in labels(out)}
    assert len(final) == prompts
    assert all(final[row["prompt_id"]] == row for row in partial)
    assert not (out / "labels-partial.parquet").exists()


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must refuse."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(with_config(label))
    with pytest.raises(SystemExit) as stopped:
        run(app, words)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "0"], "--samples"),
        (["--top-p", "1.5"], "top_p is 1.5, must be a number > 0 and <= 1"),
        (["--partial", "--overwrite"], "--partial is given with --overwrite"),
        (["--prompt-column", "promt"], "promt"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "x"}])
    places = ["--input", str(source), "--output", str(tmp_path / "out")]
    assert message in run_here(capsys, *places, *words)
    assert not (tmp_path / "out" / "parts").exists()


def test_seeds_are_refused_where_they_would_end_the_engines() -> None:
    def config(**replicas: Any) -> Any:
        return parse_config({"replicas": replicas})

    chunked = {"enable_chunked_prefill": True}
    with pytest.raises(ConfigError, match=r"--seed is 3 and .*enable_chunked_prefill is True"):
        check_seeds(config(device="cpu", engine_args=chunked), 3)
    with pytest.raises(ConfigError, match="long_prefill_token_threshold is 256"):
        check_seeds(config(engine_args={"long_prefill_token_threshold": 256}), 3)
    check_seeds(config(device="cpu", engine_args=chunked), None)
    check_seeds(config(device="gpu", engine_args=chunked), 3)
    check_seeds(config(device="cpu"), 3)


def test_a_repeated_prompt_is_encoded_once_and_right() -> None:
    plain, repeated = PromptEncoder(EMBEDDED_MODEL), RepeatedPromptEncoder(EMBEDDED_MODEL)
    first, second = "Count the stars.", [{"role": "user", "content": "Name them."}]
    for prompt in (first, first, second, second, first):
        assert repeated.encode(prompt) == plain.encode(prompt)
    assert repeated.encode(first) is repeated.encode(first)
    assert repeated.encode(first, chat_template=False) == plain.encode(first, chat_template=False)
