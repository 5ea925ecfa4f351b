"""The curves over time stay short, in order, and true where they get thin."""

from __future__ import annotations

import itertools

import msgspec

from cluster.snapshot import HistoryPoint
from cluster.statistics.history import COARSE_POINTS, FINE_POINTS, FINE_S, MERGED, History, merged

EMPTY = HistoryPoint(0.0, 0, 0, 0, 0.0, 0.0, None, None, None, None, None)


def point(number: int) -> HistoryPoint:
    return msgspec.structs.replace(
        EMPTY, unix_s=number * FINE_S, running=number, tokens_per_s=float(number)
    )


def test_an_hour_is_kept_in_a_bounded_number_of_points() -> None:
    history = History()
    for number in range(3000):
        history.add(point(number))
        assert len(history.points()) <= COARSE_POINTS + FINE_POINTS + MERGED
    points = history.points()
    times = [p.unix_s for p in points]
    assert times == sorted(times)
    assert times[-1] == 2999 * FINE_S
    assert 3500 <= times[-1] - times[0] <= 3700
    gaps = [round(b - a, 6) for a, b in itertools.pairwise(times)]
    assert set(gaps) == {FINE_S, MERGED * FINE_S}
    assert gaps == sorted(gaps, reverse=True), "older ones lie further apart"
    assert gaps.count(FINE_S) >= FINE_POINTS - 1


def test_a_merged_point_has_the_means_and_the_worst_99th_percentiles() -> None:
    first = msgspec.structs.replace(
        EMPTY,
        unix_s=5.0,
        waiting_online=2,
        kv_usage=0.2,
        ttft_p50_s=1.0,
        ttft_p99_s=9.0,
        latency_p99_s=4.0,
        power_w=100.0,
    )
    second = msgspec.structs.replace(
        EMPTY, unix_s=10.0, waiting_online=4, kv_usage=0.4, ttft_p50_s=3.0, ttft_p99_s=3.0
    )
    one = merged([first, second])
    assert one == msgspec.structs.replace(
        EMPTY,
        unix_s=10.0,
        waiting_online=3,
        kv_usage=one.kv_usage,
        ttft_p50_s=2.0,
        ttft_p99_s=9.0,
        latency_p99_s=4.0,
        power_w=100.0,
    )
    assert abs(one.kv_usage - 0.3) < 1e-9
