"""Jobs with an energy budget: they pause when it is spent, and go on with a larger one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from cluster.config import ConfigError, parse_config
from jobs.energy_budget import EnergyBudget, check_budget, joules_in
from jobs.generate import PAUSED_STATUS
from jobs.writing.local_storage import LocalStorage
from jobs.writing.outputs import ResultWriter
from jobs.writing.parts import RESULTS
from tests.jobs.factories import result
from tests.jobs.simulating.factories import run_command
from tests.jobs.test_generate import results, write_prompts
from tests.local_ray import joinable_cluster

POWER = {"idle_w": 50.0, "max_w": 400.0, "peak_flops_per_s": 1e14, "flops_per_token": 1.6e10}
ROWS = 40


@contextlib.contextmanager
def metered_cluster() -> Iterator[None]:
    """Simulated engines that run four requests at once, each of 40 tokens or so.

    They take half a second each, so that few end before a job on a busy machine has seen that its
    budget is spent.
    """
    config = parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "count": 2,
                "max_num_seqs": 4,
                "engine_args": {
                    "time_scale": 0.5,
                    "output_median_tokens": 40.0,
                    "output_log_sigma": 0.3,
                },
            },
            "energy": {"power_model": POWER},
        }
    )
    with joinable_cluster(config):
        yield


def generate(source: Path, out: Path, *words: str) -> int:
    address = ray.get_runtime_context().gcs_address
    place = ("--input", str(source), "--output", str(out), "--ray.address", address)
    return run_command("generate", *place, "--json", *words)


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def test_a_job_pauses_at_its_budget_and_a_larger_one_finishes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_prompts(tmp_path / "in.jsonl", ROWS), tmp_path / "out"
    with metered_cluster():
        assert generate(source, out, "--energy-budget", "15") == PAUSED_STATUS
        said = capsys.readouterr()
        assert "paused: energy budget: " in said.err
        assert "J spent of 15 J" in said.err
        report = json.loads(said.out)
        rows = results(out)
        assert 0 < len(rows) < ROWS - 8, "more than what runs at once is left"
        spent = sum(row["energy_joules"] for row in rows)
        dearest = max(row["energy_joules"] for row in rows)
        # Two replicas run four each, with two ahead of them in each engine's queue.
        assert 15 <= spent <= 15 + 12 * dearest
        assert joules_in(LocalStorage(out)) == pytest.approx(spent)
        assert (manifest(out)["state"], report["run"]["paused"]) == ("paused", "energy budget")
        assert manifest(out)["paused"].startswith("energy budget: ")
        assert manifest(out)["spent_joules"] == pytest.approx(spent)

        assert {row["energy_source"] for row in rows} == {"model:declared"}
        energy = report["energy"]["rows"]
        assert energy["source"] == "model:declared"
        assert energy["joules"] == pytest.approx(spent)
        assert energy["joules_per_request"] == pytest.approx(spent / len(rows))
        tokens = sum(row["output_tokens"] for row in rows)
        assert energy["joules_per_output_token"] == pytest.approx(spent / tokens)
        assert energy["wasted_share"] == pytest.approx(
            sum(row["wasted_joules"] for row in rows) / spent
        )
        meanwhile = report["energy"]["cluster"]
        assert meanwhile["source"] == "model:declared"
        assert 0 < meanwhile["idle_joules"] < meanwhile["joules"]

        # What was spent counts, so that the same budget buys nothing more.
        assert generate(source, out, "--energy-budget", "15") == PAUSED_STATUS
        assert len(results(out)) == len(rows)
        assert generate(source, out, "--energy-budget", "1e9") == 0
        assert sorted(row["row_index"] for row in results(out)) == list(range(ROWS))
        assert (manifest(out)["state"], manifest(out)["error_rows"]) == ("complete", 0)


@pytest.mark.parametrize(
    ("limit", "energy", "words"),
    [
        (0.0, {}, "--energy-budget is 0 J, must be above 0"),
        (5.0, {"meter": "none"}, "energy.meter is none: set it to auto"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_before_anything_starts(
    limit: float, energy: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_budget(limit, parse_config({"energy": energy}))


def test_parts_of_a_program_that_told_no_energy_cost_nothing(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    older = pa.table({"row_index": [0]})
    storage.write(RESULTS.part(0), lambda out: pq.write_table(older, out))
    writer = ResultWriter(storage)
    writer.add(result(1, energy_joules=2.5))
    writer.add(result(2))
    writer.close()
    assert joules_in(storage) == 2.5


def test_a_budget_counts_what_it_was_told() -> None:
    budget = EnergyBudget(10.0, spent_joules=4.0)
    budget.spend(5.0)
    budget.spend(None)
    assert not budget.is_spent
    assert budget.told() == "energy budget: 9 J spent of 10 J; 1 answers not metered"
    budget.spend(1.0)
    assert budget.is_spent
    assert not EnergyBudget(None, spent_joules=1e12).is_spent
