"""The simulator's bench, with runs of a few hundred requests."""

import math

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.bench import bench
from jobs.bench_simulation import LENGTH_SCALES, Requests, capacity, fleet, peaks


def columns_of(work: Requests, name: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, name) for chunk in work.chunks()])


def test_a_workload_has_its_rate_and_its_scale() -> None:
    work = Requests(25_000, rate=50.0)
    arrivals = columns_of(work, "arrival_s")
    assert len(arrivals) == 25_000
    assert (np.diff(arrivals) >= 0).all()
    assert len(arrivals) / arrivals[-1] == pytest.approx(50, rel=0.05)
    longer = columns_of(Requests(25_000, rate=50.0, scale=4), "output_tokens")
    assert longer.mean() / columns_of(work, "output_tokens").mean() == pytest.approx(4, rel=0.02)


def test_a_workload_is_the_same_each_time() -> None:
    first, second = (columns_of(Requests(300, 50.0), "output_tokens") for _ in range(2))
    assert (first == second).all()


def test_memory_is_read_before_each_chunk_and_at_the_end() -> None:
    work = Requests(25_000, rate=50.0)
    list(work.chunks())
    assert len(work.resident) == 4
    assert min(work.resident) > 0


def test_early_and_late_peaks() -> None:
    assert peaks([3, 5, 4, 9, 7], 20_000) == (5, 9)
    assert peaks([3, 5, 4], 10) == (5, 5)


def test_capacity_falls_with_length() -> None:
    rates = [capacity(scale) for scale in LENGTH_SCALES]
    assert math.inf > rates[0] > rates[1] > rates[2] > 0


def test_the_cache_is_scaled() -> None:
    assert fleet(2, 4).limits.kv_blocks == 4 * fleet(2).limits.kv_blocks


def test_the_command_tells_speed_growth_and_memory() -> None:
    words = ["simulation", "--requests", "150", "--replicas", "1,2", "--memory-requests", "100"]
    result = CliRunner().invoke(bench, [*words, "--policies", "fcfs"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in result.output.splitlines()]
    speeds = [row for row in cells if len(row) == 5]
    assert [row[:3] for row in speeds] == [["fcfs", "1", "150"], ["fcfs", "2", "200"]]
    assert all(float(row[3].replace(",", "")) > 0 for row in speeds)
    assert speeds[0][4] == "1.00"
    lengths = [row for row in cells if len(row) == 6]
    assert [row[1] for row in lengths] == ["x1", "x4", "x16"]
    assert lengths[0][3] == "1.00"
    assert all(float(row[4]) > 0 for row in lengths)
    assert "up to 100 requests" in result.output
    assert "up to 400: growth" in result.output


@pytest.mark.parametrize("replicas", ["0", "1,x", ""])
def test_a_number_of_replicas_that_is_none_is_refused(replicas: str) -> None:
    result = CliRunner().invoke(bench, ["simulation", "--replicas", replicas])
    assert result.exit_code == 2
    assert "number of replicas" in result.output
