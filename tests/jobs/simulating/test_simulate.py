"""`tiebreak simulate`: policies side by side, end to end, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.jobs.simulating.factories import error_of, run_command

SMALL = ("simulate", "--requests", "150", "--kv-tokens", "8192", "--max-tokens", "1000")


def simulated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run_command(*SMALL, "--json", *words) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_every_arm_gets_the_same_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--policy", "fcfs,tiebreak,tiebreak@random", "--load", "3", "--out", str(tmp_path))
    report = simulated(capsys, *words)
    tables = {
        name: pq.read_table(tmp_path / f"rows-{name}-load-3.parquet")
        .to_pandas()
        .set_index("request")
        for name in ("fcfs", "tiebreak", "tiebreak@random")
    }
    given = ["arrival_s", "prompt_tokens", "output_tokens", "max_tokens", "request_class"]
    first = tables["fcfs"].sort_index()
    assert len(first) == 150
    for table in tables.values():
        assert table.sort_index()[given].equals(first[given])
    mu = {name: table.sort_index()["mu"] for name, table in tables.items()}
    assert mu["fcfs"].equals(mu["tiebreak"])
    assert sorted(mu["fcfs"]) != list(mu["fcfs"])
    assert not np.isclose(mu["fcfs"], mu["tiebreak@random"]).any()
    for summary in report["results"]:
        rows = tables[summary["policy"]]
        latency = rows["finished_s"] - rows["arrival_s"]
        assert summary["latency_s"]["mean"] == pytest.approx(latency.mean())
        assert summary["latency_s"]["p99"] == pytest.approx(np.percentile(latency, 99))
        assert summary["evictions"] == rows["evictions"].sum()
        assert summary["load_multiple"] == pytest.approx(3)
    assert [s["forecast"] for s in report["results"]] == ["noisy", "noisy", "random"]
    assert json.loads((tmp_path / "results.json").read_text()) == report


def test_load_is_in_multiples_of_what_the_same_requests_take_all_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """90 % of 150 requests over the time until the 135th has finished."""
    report = simulated(capsys, "--policy", "fcfs", "--load", "0.5,2")
    (capacity,) = report["capacities"]
    arm = "fcfs:admission=oracle"
    out = ("--arrivals", "at-once", "--out", str(tmp_path))
    assert simulated(capsys, "--policy", arm, *out)["capacities"] == []
    rows = pq.read_table(tmp_path / f"rows-{arm}-as-they-arrive.parquet")
    finished_s = np.sort(rows["finished_s"].to_numpy())
    assert capacity["requests_per_s"] == pytest.approx(135 / finished_s[134])
    rates = [s["rate_per_s"] for s in report["results"]]
    assert rates == pytest.approx([0.5 * 135 / finished_s[134], 2 * 135 / finished_s[134]])
    queues = [s["mean_waiting"] for s in report["results"]]
    assert queues[0] < queues[1]


def test_equal_commands_give_equal_results_and_other_seeds_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--policy", "tie", "--rate", "8", "--until", "100")
    first = simulated(capsys, *words, "--seed", "5")
    assert simulated(capsys, *words, "--seed", "5") == first
    both = simulated(capsys, *words, "--seed", "4", "--seeds", "2")
    assert [s["seed"] for s in both["results"]] == [4, 5]
    assert both["results"][1] == first["results"][0]
    assert both["results"][0]["latency_s"] != first["results"][0]["latency_s"]
    assert first["results"][0]["until_samples"] == 100


def test_the_parts_of_an_arm_can_be_exchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle with H-SF's parts does what H-SF does; another quantile does something else."""
    arms = (
        "h_sf,tie:ordering=oracle:ordering.gamma=1:admission=oracle,"
        "tiebreak,tiebreak:admission.q=0.05"
    )
    report = simulated(capsys, "--policy", arms, "--load", "4")
    h_sf, same, tiebreak, bold = ({**s, "policy": ""} for s in report["results"])
    assert same == h_sf
    assert bold["evictions"] > tiebreak["evictions"]


def test_a_trace_keeps_its_times_and_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{t},{50 + t},{10 + t}\n" for t in range(150))
    trace.write_text("at,in,out\n" + rows, encoding="utf-8")
    named = ("--trace", str(trace), "--trace-columns", "at,in,out")
    words = ("--lengths", "trace", "--arrivals", "trace", "--policy", "fcfs", *named)
    report = simulated(capsys, *words, "--forecast", "exact", "--out", str(tmp_path / "out"))
    (summary,) = report["results"]
    assert summary["rate_per_s"] == pytest.approx(1)
    assert summary["quality"]["kendall"] == pytest.approx(1)
    (file,) = (tmp_path / "out").glob("rows-*.parquet")
    table = pq.read_table(file).to_pandas().set_index("request").sort_index()
    assert list(table["arrival_s"]) == list(range(150))
    assert list(table["output_tokens"]) == list(range(10, 160))
    faster = simulated(capsys, *words, "--rate", "30")
    assert faster["results"][0]["makespan_s"] < summary["makespan_s"] / 5


def test_requests_too_large_are_refused_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--max-model-len", "1100", "--policy", "fcfs,tiebreak", "--rate", "5")
    for summary in simulated(capsys, *words)["results"]:
        assert summary["refused"] > 0
        assert summary["finished"] + summary["refused"] == 150


def test_offline_requests_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--offline-share", "0.5", "--policy", "fcfs", "--load", "4")
    (summary,) = simulated(capsys, *words)["results"]
    by_class = summary["latency_by_class_s"]
    assert by_class["online"]["mean"] < by_class["offline"]["mean"]


def test_the_tables_name_every_arm_and_load(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "fcfs,tie+a_min", "--load", "0.5", "--load", "2", "--seeds", "2")
    assert run_command(*SMALL, *words) == 0
    printed = capsys.readouterr().out
    for load in ("0.5", "2"):
        assert f"Latency, load {load}, means over seeds 0 to 1" in printed
    lines = printed.splitlines()
    assert sum(line.startswith("tie+a_min ") for line in lines) == 4
    assert all("…" not in line for line in lines)
    assert "capacity: " in printed


def test_the_report_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "fcfs,tiebreak", "--load", "1,3", "--out", str(tmp_path))
    report = simulated(capsys, *words)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "@import" not in page
    targets = re.findall(r'(?:href|src|action)\s*=\s*["\']([^"\']{0,40})', page)
    assert targets
    assert all(target.startswith(("#", "data:image/png")) for target in targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    addresses = set(re.findall(r"https?://[^\"'\s<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    figures = re.findall(r'<figure id="([^"]+)"', page)
    assert figures == [
        "per-token-latency",
        "latency-against-load",
        "memory",
        "queue",
        "completion-against-length",
    ]
    assert page.count("<svg") == len(figures)
    assert "#010203" not in page  # figures take the colour of the page's text
    for told in report["setup"]:
        assert f"<dt>{told}</dt>" in page
    for name in ("latency per output token (s)", "projected peak", "capacity (8,192 tokens)"):
        assert name in page


def test_names_in_the_report_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "a<b>&c.csv"
    trace.write_text("at,in,out\n0,5,5\n1,5,5\n", encoding="utf-8")
    named = ("--trace", str(trace), "--trace-columns", "at,in,out", "--lengths", "trace")
    simulated(capsys, *named, "--policy", "fcfs", "--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "a&lt;b&gt;&amp;c.csv" in page
    assert "a<b>&c.csv" not in page


def test_a_report_without_matplotlib_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    assert "tiebreak[simulation]" in error_of(capsys, *SMALL, "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--load", "0"), "--load is '0', must be a number above 0"),
        (("--load", "1,-2"), "--load is '-2'"),
        (("--load", "two"), "--load is 'two'"),
        (("--rate", "0"), "--rate is '0'"),
        (("--rate", "inf"), "--rate is 'inf'"),
        (("--rate", "1", "--load", "1"), "give one of them"),
        (("--arrivals", "at-once", "--load", "1"), "at-once has no rate"),
        (("--policy", "tiebraek"), "did you mean 'tiebreak'?"),
        (("--policy", "tie,tie"), "'tie' twice"),
        (("--policy", "tie@noizy"), "did you mean 'noisy'?"),
        (("--policy", "tie:order=sjf"), "'order=sjf' is not PART=NAME"),
        (("--policy", "tie:ordering.gama=1"), "did you mean 'gamma'?"),
        (("--policy", "tie:backfill=x"), "backfill is 'x', must be a whole number"),
        (("--policy", ","), "--policy names no policy"),
        (("--forecast", "noissy"), "did you mean 'noisy'?"),
        (("--lengths", "logt:x"), "only castillo takes a model"),
        (("--lengths", "log"), "did you mean 'logt'?"),
        (("--lengths", "trace"), "--lengths trace needs --trace FILE"),
        (("--trace-columns", "a,b,c"), "--trace-columns needs --trace FILE"),
        (("--trace", "t.csv", "--trace-columns", "a,b"), "must be TIMESTAMP,PROMPT,OUTPUT"),
        (("--castillo", "/tmp"), "--castillo needs --lengths castillo"),
        (("--arrivals", "gama"), "did you mean 'gamma'?"),
        (("--burst", "2"), "--burst needs --arrivals gamma"),
        (("--lengths", "lognormal", "--forecast", "oracle"), "which the oracle forecast needs"),
        (("--interval", "bin"), "must be bin:WIDTH"),
        (("--interval", "common:3"), "must be common"),
        (("--requests", "0"), "--requests is 0, must be at least 1"),
        (("--replicas", "0"), "--replicas is 0, must be at least 1"),
        (("--kv-tokens", "8"), "--kv-tokens is 8, must be at least 16"),
        (("--max-num-batched-tokens", "10"), "must be at least 256"),
        (("--max-model-len", "2"), "raise --kv-tokens or --max-model-len"),
        (("--max-tokens", "0"), "max_tokens is 0"),
        (("--offline-share", "1.5"), "the offline share is 1.5"),
        (("--r2-mu", "2"), "r2_mu is 2"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--until", "0"), "--until is 0"),
        (("--until", "151"), "must be at most --requests (150)"),
        (("--on-eviction", "forget"), "known are recompute, restart"),
        (("--step", "lienar"), "neither unit, linear or silicon nor a file"),
        (("--step", "silicon"), "needs --gpu and --model"),
        (("--gpu", "h100_sxm"), "describe --step silicon"),
        (("--ties", "random"), "--ties needs --instance FILE"),
        (("--out", "/dev/null/x"), "cannot be used as a folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in error_of(capsys, *SMALL, *words)
