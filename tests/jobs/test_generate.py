"""Offline jobs through the command line, on a running cluster of simulated engines."""

from __future__ import annotations

import contextlib
import json
import random
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

from cluster.config import parse_config
from jobs.cli import main
from jobs.errors import OutputError
from tests.local_ray import joinable_cluster

ROOT = Path(__file__).parents[2]
KILLS = 5


@pytest.fixture(scope="module", autouse=True)
def running_cluster() -> Iterator[None]:
    """A cluster that the jobs below join; engines fast enough for a thousand rows."""
    config = parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "count": 2,
                "max_num_seqs": 32,
                "engine_args": {"time_scale": 2.0},
            }
        }
    )
    with joinable_cluster(config):
        yield


def command(*arguments: object) -> list[str]:
    address = ray.get_runtime_context().gcs_address
    return [sys.executable, "-m", "jobs.generate", "--ray.address", address, *map(str, arguments)]


def generate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def write_prompts(path: Path, count: int, **fields: Any) -> Path:
    lines = (json.dumps({"id": f"p{i}", "prompt": f"Say {i}.", **fields}) for i in range(count))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in sorted((folder / "parts").glob("*.parquet")):
        rows += pq.read_table(part).to_pylist()
    return rows


def errors(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in sorted((folder / "errors").glob("*.parquet")):
        rows += pq.read_table(part).to_pylist()
    return rows


def test_every_row_is_answered_and_the_report_adds_up(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl", 50)
    done = generate("--input", source, "--output", tmp_path / "out", "--json", "--ordered")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = results(tmp_path / "out")
    assert sorted(r["row_id"] for r in rows) == sorted(f"p{i}" for i in range(50))
    assert report["rows"] == report["run"]["rows"] == 50
    tokens = [r["output_tokens"] for r in rows]
    assert report["totals"]["output_tokens"] == report["run"]["output_tokens"] == sum(tokens)
    assert report["distributions"]["output_tokens"]["mean"] == pytest.approx(sum(tokens) / 50)
    assert report["energy"]["rows"]["joules"] is report["energy"]["cluster"]["joules"] is None
    assert {energy["source"] for energy in report["energy"].values()} == {"not measured"}
    assert {r["forecast_source"] for r in rows} == {"prior"}
    ordered = pq.read_table(tmp_path / "out" / "output.parquet").column("row_id").to_pylist()
    assert ordered == [f"p{i}" for i in range(50)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["state"], manifest["rows"]) == ("complete", 50)


def test_columns_that_only_look_like_sampling_parameters_can_be_left_alone(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl", 3, seed="poppy", max_tokens=4)
    out = tmp_path / "out"
    done = generate("--input", source, "--output", out, "--sampling-columns", "max_tokens")
    assert done.returncode == 0, done.stderr
    assert errors(out) == []
    assert [row["output_tokens"] <= 4 for row in results(out)] == [True] * 3


def test_an_energy_budget_without_a_meter_is_refused_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.energy_budget.FIRST_REPORT_S", 0.5)
    source = write_prompts(tmp_path / "in.jsonl", 3)
    words = command("--input", source, "--output", tmp_path / "out", "--energy-budget", 15)[3:]
    with pytest.raises(SystemExit) as ended:
        main(["generate", *words])
    assert ended.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "is 15 J, but no energy is measured on replica-0, replica-1: declare" in error
    assert not list((tmp_path / "out").glob("parts/*"))


def test_a_complete_job_is_left_alone_and_another_job_is_refused(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl", 5)
    out = tmp_path / "out"
    assert generate("--input", source, "--output", out).returncode == 0
    again = generate("--input", source, "--output", out)
    assert again.returncode == 0
    assert "complete already: 5 results" in " ".join(again.stderr.split())
    assert not (out / "output.parquet").exists()
    assert generate("--input", source, "--output", out, "--ordered").returncode == 0
    ordered = pq.read_table(out / "output.parquet").column("row_id").to_pylist()
    assert ordered == [f"p{i}" for i in range(5)], "without generating anything again"
    other = generate("--input", source, "--output", out, "--max-tokens", 7)
    assert other.returncode == 2
    assert "max_tokens" in other.stderr
    assert len(other.stderr.strip().splitlines()) <= 4, "one message, not a traceback"


def test_bad_rows_are_isolated(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"prompt": "good"}\n{"prompt": \n{"prompt": "huge", "max_tokens": 100000}\n'
        '{"prompt": "none", "max_tokens": 0}\n{"prompt": ""}\n{"prompt": "good too"}\n'
    )
    done = generate("--input", source, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(r["row_index"] for r in results(tmp_path / "out")) == [0, 5]
    found = {r["row_index"]: r["error"] for r in errors(tmp_path / "out")}
    assert sorted(found) == [1, 2, 3, 4]
    assert "max_tokens to" in found[2]
    assert "max_tokens is 0" in found[3]


def test_openai_batch_lines_in_give_openai_batch_lines_out(tmp_path: Path) -> None:
    source = tmp_path / "batch.jsonl"
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    source.write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": f"c{i}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
            )
            + "\n"
            for i in range(3)
        )
    )
    done = generate("--input", source, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["c0", "c1", "c2"]
    answer = lines[0]["response"]["body"]
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 1 <= answer["usage"]["completion_tokens"] <= 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--input", "in.jsonl", "--prompt-column", "promt"], "promt"),
        (["--input", "in.jsonl", "--sampling-columns", "id"], "column 'id' is not a sampling"),
        (["--input", "in.jsonl", "--model", "/no/such/model"], "/no/such/model"),
        (["--input", "in.jsonl", "--sampling", "top_q=1"], "top_q"),
        (["--input", "in.jsonl", "--policy.name", "tiebreack"], "did you mean 'tiebreak'"),
        (["--input", "in.jsonl", "--replicas.count", "-3"], "replicas.count is -3"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", 2)
    arguments = [str(source) if a == "in.jsonl" else a for a in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["generate", *arguments, "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "parts").exists()


def test_a_job_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    rows = 2500
    source = write_prompts(tmp_path / "in.jsonl", rows, max_tokens=40)
    out = tmp_path / "out"
    rng = random.Random(7)
    ended_before: dict[str, float] = {}
    for kill in range(KILLS):
        driver = subprocess.Popen(
            command("--input", source, "--output", out, "--flush-s", 0.2),
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        if kill:  # the first one dies while it starts, the others at work
            wait_for_more_than(len(ended_before), out, driver)
        time.sleep(rng.uniform(0.0, 1.5))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        now = {r["row_id"]: r["finished_unix_s"] for r in _durable(out)}
        for row_id, finished_s in ended_before.items():
            assert now[row_id] == finished_s, f"{row_id} was generated twice"
        ended_before = now
    done = generate("--input", source, "--output", out)
    assert done.returncode == 0, done.stderr
    final = results(out)
    assert sorted(r["row_index"] for r in final) == list(range(rows))
    times = {r["row_id"]: r["finished_unix_s"] for r in final}
    assert all(times[row_id] == finished_s for row_id, finished_s in ended_before.items())
    assert ended_before, "no kill left anything durable: the test proves nothing"


def wait_for_more_than(ended: int, folder: Path, driver: subprocess.Popen[bytes]) -> None:
    """Wait until more rows are durable, or the job is done: this test was slow to look."""
    deadline_s = time.monotonic() + 100
    while time.monotonic() < deadline_s:
        # Merging replaces the file that is being read.
        with contextlib.suppress(OutputError):
            if len(_durable(folder)) > ended:
                return
        if driver.poll() is not None:
            assert driver.returncode == 0
            return
        time.sleep(0.05)
    raise AssertionError("nothing was finished within 100 s")


def _durable(folder: Path) -> list[dict[str, Any]]:
    """What a resumed run would find."""
    from jobs.writing.output_uri import open_storage
    from jobs.writing.parts import RESULTS, live_files, read_batches

    if not folder.exists():
        return []
    storage = open_storage(str(folder))
    return [
        row
        for name in live_files(storage, RESULTS)
        for batch in read_batches(storage, name, ["row_id", "finished_unix_s"])
        for row in batch.to_pylist()
    ]
