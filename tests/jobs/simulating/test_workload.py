from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.workload import WorkloadError
from jobs.command import USER_ERRORS
from jobs.simulating.arrivals import AtOnceArrivals, GammaArrivals, TraceArrivals
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.forecasts import ExactForecast, NoisyForecast, OracleForecast, PriorForecast
from jobs.simulating.intervals import BinInterval
from jobs.simulating.lengths import LognormalLengths, TraceLengths
from jobs.simulating.traces import Trace, TraceFile, read_trace
from jobs.simulating.workload import CHUNK_REQUESTS, OfflineWork, WorkloadSpec, build
from policies.request import RequestClass
from tests.jobs.simulating.workloads import azure_file, castillo_file, columns_of, joined, spec

BATCH = OfflineWork(0.4, AtOnceArrivals())
BESIDE = OfflineWork(0.25, GammaArrivals(10.0))
OTHER = 3 * CHUNK_REQUESTS // 2


@pytest.mark.parametrize("requests", [1, 999, CHUNK_REQUESTS, OTHER])
@pytest.mark.parametrize("offline", [None, OfflineWork(0.3), BATCH, BESIDE])
def test_there_are_as_many_requests_as_asked_in_order(
    requests: int, offline: OfflineWork | None
) -> None:
    workload = build(spec(requests, offline=offline))
    chunks = list(workload)
    assert sum(map(len, chunks)) == len(workload) == requests
    assert all(0 < len(chunk) <= 2 * CHUNK_REQUESTS for chunk in chunks)
    for earlier, later in itertools.pairwise(chunks):
        assert earlier.arrival_s[-1] <= later.arrival_s[0]


@pytest.mark.parametrize("offline", [None, OfflineWork(0.3), BATCH, BESIDE])
def test_equal_specs_give_identical_chunks(offline: OfflineWork | None) -> None:
    workload = build(spec(OTHER, offline=offline))
    again = build(spec(OTHER, offline=offline))
    assert columns_of(workload) == columns_of(workload) == columns_of(again)
    drawn = "prompt_tokens", "output_tokens", "mu", "sigma"
    other = columns_of(build(spec(OTHER, offline=offline, seed=1)), *drawn)
    assert all(a != b for a, b in zip(columns_of(workload, *drawn), other, strict=True))


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib; from tests.jobs.simulating.workloads import *; "
        "from jobs.simulating.workload import build; "
        "print(hashlib.sha256(b''.join(columns_of(build(spec(100))))).hexdigest())"
    )
    root = Path(__file__).parents[3]
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    here = hashlib.sha256(b"".join(columns_of(build(spec(100))))).hexdigest()
    assert told.stdout.strip() == here


@pytest.mark.parametrize("offline", [None, OfflineWork(0.3)])
def test_fewer_requests_are_the_beginning_of_more(offline: OfflineWork | None) -> None:
    few = joined(build(spec(CHUNK_REQUESTS + 5, offline=offline)))
    many = joined(build(spec(2 * CHUNK_REQUESTS + 9, offline=offline)))
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "request_class", "mu", "lower"):
        assert (getattr(few, name) == getattr(many, name)[: len(few)]).all()


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"forecasts": PriorForecast()}, {"mu", "sigma", "lower", "upper"}),
        ({"forecasts": OracleForecast()}, {"mu", "sigma", "lower", "upper"}),
        ({"interval": BinInterval(10)}, {"lower", "upper"}),
        ({"arrivals": GammaArrivals(100.0, 4.0)}, {"arrival_s"}),
        ({"offline": OfflineWork(0.5)}, {"request_class"}),
        (
            {"lengths": LognormalLengths()},
            {"prompt_tokens", "output_tokens", "mu", "sigma", "lower", "upper"},
        ),
    ],
)
def test_concerns_draw_apart(change: dict[str, Any], changed: set[str]) -> None:
    before, after = (joined(build(s)) for s in (spec(OTHER), spec(OTHER, **change)))
    names = {
        name
        for name in before.__dataclass_fields__
        if np.any(getattr(before, name) != getattr(after, name))
    }
    assert names == changed


def test_columns_and_chunks_do_not_repeat_each_other() -> None:
    chunk = joined(build(spec(2 * CHUNK_REQUESTS, offline=OfflineWork(0.5))))
    first, second = chunk.output_tokens[:CHUNK_REQUESTS], chunk.output_tokens[CHUNK_REQUESTS:]
    assert abs(np.corrcoef(np.log(first), np.log(second))[0, 1]) < 0.02
    independent = (
        np.diff(chunk.arrival_s, prepend=0),
        np.log(chunk.prompt_tokens),
        chunk.request_class,
        chunk.mu,
    )
    assert np.corrcoef(independent) == pytest.approx(np.eye(4), abs=0.02)


def test_scaling_changes_the_load_only() -> None:
    slow = spec(OTHER, offline=OfflineWork(0.2))
    fast = slow.scaled(400.0)
    assert fast == replace(slow, arrivals=GammaArrivals(400.0))
    a, b = joined(build(slow)), joined(build(fast))
    np.testing.assert_allclose(b.arrival_s, a.arrival_s / 4)
    names = ("prompt_tokens", "output_tokens", "request_class", "mu", "sigma", "lower", "upper")
    assert columns_of([a], *names) == columns_of([b], *names)
    with pytest.raises(WorkloadError, match="all at once"):
        spec(arrivals=AtOnceArrivals()).scaled(3.0)


def test_offline_requests_are_mixed_in() -> None:
    chunk = joined(build(spec(OTHER, offline=OfflineWork(0.3))))
    offline = chunk.request_class == RequestClass.OFFLINE
    assert offline.mean() == pytest.approx(0.3, abs=0.01)
    half = len(chunk) // 2
    assert offline[:half].mean() == pytest.approx(offline[half:].mean(), abs=0.02)
    assert set(chunk.request_class) == {RequestClass.ONLINE, RequestClass.OFFLINE}


def test_an_offline_batch_is_there_from_the_start() -> None:
    chunk = joined(build(spec(OTHER, offline=BATCH)))
    offline = chunk.request_class == RequestClass.OFFLINE
    assert offline.sum() == round(0.4 * OTHER)
    assert offline[: offline.sum()].all()
    assert not chunk.arrival_s[offline].any()
    online = joined(build(spec(OTHER - offline.sum())))
    assert (chunk.arrival_s[~offline] == online.arrival_s).all()
    assert (chunk.output_tokens[~offline] == online.output_tokens).all()
    assert (chunk.output_tokens[offline][:1000] != online.output_tokens[:1000]).any()


def test_offline_requests_with_arrivals_of_their_own_go_between() -> None:
    chunk = joined(build(spec(OTHER, offline=BESIDE)))
    offline = chunk.request_class == RequestClass.OFFLINE
    assert offline.sum() == round(0.25 * OTHER)
    assert 10 * chunk.arrival_s[offline][-1] == pytest.approx(offline.sum(), rel=0.05)
    assert 100 * chunk.arrival_s[~offline][-1] == pytest.approx((~offline).sum(), rel=0.05)
    alone = joined(build(spec(int((~offline).sum()))))
    assert (chunk.arrival_s[~offline] == alone.arrival_s).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.01, 1.0, 1e4]))
def test_no_request_is_lost_between_two_arrival_processes(
    requests: int, share: float, rate_per_s: float
) -> None:
    offline = OfflineWork(share, GammaArrivals(rate_per_s))
    chunk = joined(build(spec(requests, offline=offline, forecasts=ExactForecast())))
    assert len(chunk) == requests
    assert (chunk.request_class == RequestClass.OFFLINE).sum() == round(share * requests)
    assert (chunk.upper == chunk.output_tokens).all()


def test_a_trace_keeps_its_rows_together_and_begins_again(tmp_path: Path) -> None:
    rows = [(i * i, 10 + i, 20 + i) for i in range(1000)]
    file = azure_file(tmp_path, rows)
    workload = build(spec(CHUNK_REQUESTS + 500, TraceLengths(file), TraceArrivals(file)))
    chunk = joined(workload)
    row = np.arange(len(chunk)) % 1000
    assert (chunk.prompt_tokens == 10 + row).all()
    assert (chunk.output_tokens == 20 + row).all()
    assert (chunk.arrival_s[:1000] == row[:1000] ** 2).all()
    lap_s = 999**2 + 999**2 / 999
    np.testing.assert_allclose(chunk.arrival_s, row**2 + np.arange(len(chunk)) // 1000 * lap_s)
    assert "was repeated to make 66,036 requests" in workload.notes[0]


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = azure_file(tmp_path, [(i, 1, 2) for i in range(5)])
    reads: list[TraceFile] = []

    def read(trace: TraceFile) -> Trace:
        reads.append(trace)
        return read_trace(trace)

    monkeypatch.setattr("jobs.simulating.workload.read_trace", read)
    build(spec(10, TraceLengths(file), TraceArrivals(file)))
    assert reads == [file]


def test_answers_end_at_max_tokens() -> None:
    free = joined(build(spec(5000, max_tokens=1 << 20))).output_tokens
    chunk = joined(build(spec(5000, max_tokens=200)))
    assert (chunk.output_tokens == np.minimum(free, 200)).all()
    assert (chunk.max_tokens == 200).all()
    assert chunk.upper.max() <= 200


def test_memory_does_not_grow_with_the_requests() -> None:
    def peak(requests: int) -> int:
        workload = build(spec(requests, offline=BESIDE, forecasts=NoisyForecast()))
        tracemalloc.start()
        for chunk in workload:
            assert len(chunk)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20 * CHUNK_REQUESTS) < 1.5 * peak(4 * CHUNK_REQUESTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requests": 0}, "has 0 requests"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1 << 25}, "max_tokens is 33554432"),
        ({"max_tokens": None}, "no cap of their own"),
        ({"seed": -1}, "the seed is -1"),
        (
            {"lengths": LognormalLengths(), "forecasts": OracleForecast()},
            "without the distributions",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkloadError, match=words) as caught:
        build(spec(**change))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, USER_ERRORS)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(WorkloadError, match="offline share is"):
        OfflineWork(share)


def test_the_cap_of_the_runs_is_the_largest(tmp_path: Path) -> None:
    answers = [5, 6, 7, 8, 9, 10, 11, 12, 13, 15_001]
    lengths = CastilloLengths("m", castillo_file(tmp_path, [("m", 3, answers)]))
    chunk = joined(build(WorkloadSpec(500, lengths, GammaArrivals(1), max_tokens=None)))
    assert set(chunk.max_tokens) == {15_001}
    assert chunk.output_tokens.max() == 15_001
    with pytest.raises(WorkloadError, match=r"max_tokens is 15002.*give at most 15001"):
        build(spec(lengths=lengths, max_tokens=15_002))
