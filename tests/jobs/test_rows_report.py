"""`tiebreak report`: what it says is what the rows say."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.simulated_rows import ROW_SCHEMA as SIMULATED_SCHEMA
from cluster.statistics.finished_row import ROW_SCHEMA, FinishedRow
from cluster.statistics.row_files import record_batch
from jobs.cli import app
from jobs.errors import InputError
from jobs.finished.row_figures import draw_rows
from jobs.finished.row_summary import MOST_GROUPS, RowSummary, summaries
from jobs.finished.row_table import COLUMNS, read_rows
from tests.cluster.simulated import chunk, fleet, rows_of

ROW = FinishedRow(
    request_id="r", request_class="online", tenant="acme", job="", policy="tie",
    arrival_unix_s=1.7e9, forecast_s=0.1, dispatched_s=0.5, first_token_s=1.0, finished_s=4.0,
    prompt_tokens=30, max_tokens=100, output_tokens=20, finish_reason="stop",
    forecast_mu=math.log(25), forecast_sigma=0.4, forecast_lower=10, forecast_upper=50,
    forecast_source="prior", replica_id="a", attempts=1, evictions=0, recalls=0,
    recomputed_tokens=0, energy_joules=None, wasted_joules=None, energy_source="none",
)  # fmt: skip


@dataclass
class Folder:
    """Rows on disk, a file for each addition."""

    path: Path
    files: int = field(default=0)

    def add(self, *rows: dict[str, Any]) -> None:
        batch = record_batch([msgspec.structs.replace(ROW, **row) for row in rows])
        pq.write_table(pa.Table.from_batches([batch]), self.path / f"rows-1-{self.files}.parquet")
        self.files += 1


def said(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["report", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_sums_and_percentiles_are_those_of_the_rows(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    rng = np.random.default_rng(0)
    latencies = rng.exponential(5.0, 300)
    tokens = rng.integers(1, 90, 300)
    folder.add(
        *(
            {"finished_s": latency, "output_tokens": int(n), "tenant": f"t{i % 3}"}
            for i, (latency, n) in enumerate(zip(latencies[:200], tokens[:200], strict=True))
        )
    )
    folder.add(
        *(
            {"finished_s": latency, "output_tokens": int(n), "tenant": f"t{i % 3}"}
            for i, (latency, n) in enumerate(zip(latencies[200:], tokens[200:], strict=True))
        )
    )
    report = said(tmp_path)
    assert report["all"]["requests"] == 300
    assert report["all"]["output_tokens"] == tokens.sum()
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert report["all"]["latency_s"][name] == pytest.approx(np.percentile(latencies, share))
        per_token = np.percentile(latencies / tokens, share)
        assert report["all"]["per_token_latency_s"][name] == pytest.approx(per_token)
    assert [group["requests"] for group in report["groups"]["tenant"]] == [101, 100, 99]
    assert sum(group["output_tokens"] for group in report["groups"]["tenant"]) == tokens.sum()
    assert "class" not in report["groups"], "there is but one"
    assert [g["name"] for g in said(tmp_path, "--by", "class")["groups"]["class"]] == ["online"]


def test_energy_is_of_the_requests_that_were_measured(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add(
        {"energy_joules": 30.0, "wasted_joules": 6.0, "energy_source": "zeus:gpu", "job": "a"},
        {"energy_joules": 10.0, "wasted_joules": 0.0, "energy_source": "model:x", "job": "b"},
        {"output_tokens": 1000, "job": "b"},
    )
    report = said(tmp_path)
    assert report["all"]["energy"] == {
        "source": "model:x, zeus:gpu", "measured": 2, "joules": 40.0, "wasted_joules": 6.0,
        "per_request": 20.0, "per_output_token": 1.0,
    }  # fmt: skip
    b, a = report["groups"]["job"]
    assert (a["name"], a["energy"]["per_request"], b["energy"]["per_output_token"]) == (
        "a",
        30,
        0.5,
    )
    text = CliRunner().invoke(app, ["report", str(tmp_path)]).stdout
    assert "40 J for 2 requests (model:x, zeus:gpu)" in text
    assert "15.0 % wasted" in text


def test_what_was_not_measured_is_not_nought(tmp_path: Path) -> None:
    Folder(tmp_path).add({}, {})
    report = said(tmp_path)
    assert report["all"]["energy"]["joules"] is None
    assert "energy: not measured" in CliRunner().invoke(app, ["report", str(tmp_path)]).stdout


def test_forecasts_are_judged_by_the_answers(tmp_path: Path) -> None:
    Folder(tmp_path).add(
        {"output_tokens": 20, "forecast_mu": math.log(20)},
        {"output_tokens": 60, "forecast_mu": math.log(30)},
        # Known from below only: says nothing unless it left the interval.
        {"output_tokens": 40, "finish_reason": "length", "forecast_mu": math.log(40)},
        {"output_tokens": 80, "finish_reason": "length", "forecast_mu": math.log(50)},
        {"output_tokens": 5, "finish_reason": "abort"},
        {"forecast_mu": None, "forecast_lower": None, "forecast_upper": None},
    )
    quality = said(tmp_path)["all"]["forecast"]
    assert quality["forecasts"] == 4
    assert quality["coverage"] == pytest.approx(1 / 3)
    assert quality["kendall"] == pytest.approx(4 / 6)
    assert quality["median_error"] == pytest.approx(math.sqrt(1.6))


def test_durations_are_of_answers_whose_arrival_is_known(tmp_path: Path) -> None:
    Folder(tmp_path).add(
        {"finished_s": 2.0},
        {"finished_s": 99.0, "finish_reason": "abort"},
        {"finished_s": 99.0, "dispatched_s": None, "first_token_s": None},
        {"finished_s": 4.0, "finish_reason": "length"},
    )
    report = said(tmp_path)["all"]
    assert (report["requests"], report["latency_s"]["mean"]) == (4, 3.0)
    assert report["finish_reasons"] == {"stop": 2, "abort": 1, "length": 1}


def test_small_groups_are_added_up() -> None:
    frame = pd.DataFrame([msgspec.structs.asdict(ROW)] * 100)
    frame["tenant"] = [f"t{min(i, 90 - i if i < 50 else i)}" for i in range(100)]
    found = list(summaries(frame, "tenant"))
    assert len(found) == MOST_GROUPS + 1
    assert sum(group.requests for group in found) == 100
    assert found[-1].name == f"{frame['tenant'].nunique() - MOST_GROUPS} others"


def test_a_simulation_s_rows_are_read_too(tmp_path: Path) -> None:
    workload = [chunk(60, rate=5.0, offline_share=0.3)]
    _, rows = rows_of(workload, fleet(kv_blocks=200))
    table = pa.Table.from_pandas(rows, schema=SIMULATED_SCHEMA, preserve_index=False)
    pq.write_table(table, tmp_path / "rows-load-1-tiebreak.parquet")
    read = read_rows(tmp_path)
    assert list(read.columns) == COLUMNS == ROW_SCHEMA.names
    assert set(read["policy"]) == {"load-1-tiebreak"}
    assert set(read["request_class"]) == {"online", "offline"}
    summary = RowSummary.of("all", "all", read)
    latency = rows["finished_s"] - rows["arrival_s"]
    assert summary.latency_s.p50 == pytest.approx(latency.median())
    assert summary.ttft_s.mean == pytest.approx((rows["first_token_s"] - rows["arrival_s"]).mean())
    assert summary.evictions == rows["evictions"].sum()
    assert "virtual time" in CliRunner().invoke(app, ["report", str(tmp_path)]).stdout


def test_figures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `simulation`")
    folder = Folder(tmp_path)
    folder.add(*({"finished_s": 1.0 + i, "arrival_unix_s": 1.7e9 + i} for i in range(20)))
    names = [drawing.name for drawing in draw_rows(read_rows(tmp_path))]
    assert names == ["per-token-latency", "over-time", "forecasts"]
    folder.add({"energy_joules": 3.0, "wasted_joules": 0.0, "energy_source": "model:x"})
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure") == 4
    assert "joules (model:x)" in page
    assert "virtual" not in page
    folder = Folder(tmp_path / "aborted")
    folder.path.mkdir()
    folder.add({"finish_reason": "abort", "dispatched_s": None})
    assert draw_rows(read_rows(folder.path)) == []


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "nowhere")
    with pytest.raises(InputError, match="set statistics"):
        read_rows(tmp_path)
    (tmp_path / "rows-1-0.parquet").write_text("torn")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_rows(tmp_path)
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "rows-1-0.parquet")
    with pytest.raises(InputError, match="no columns arrival_unix_s"):
        read_rows(tmp_path)
    pq.write_table(ROW_SCHEMA.empty_table(), tmp_path / "rows-1-0.parquet")
    with pytest.raises(InputError, match="no request has ended yet"):
        read_rows(tmp_path / "rows-1-0.parquet")
