"""What is made of the replicas' reports: progress, throughput, the number of replicas."""

from __future__ import annotations

import pytest

from cluster.config import parse_config
from cluster.membership.fleet_watch import FleetWatch
from cluster.membership.throughput import AVERAGED_S, Throughput
from replicas.protocol import EnergyTotals, EngineLoad, Finished, ReplicaReport
from tests.cluster.factories import forecast, replica, request, scheduler

FROZEN_AFTER_S = 5.0


def report(
    progress: dict[str, int] | None = None,
    finished: dict[str, int] | None = None,
    kv_usage: float = 0.0,
    name: str = "a",
) -> ReplicaReport:
    ended = [Finished(i, "client", 1, tokens, "stop") for i, tokens in (finished or {}).items()]
    load = EngineLoad(kv_usage=kv_usage)
    return ReplicaReport(name, progress or {}, ended, load, EnergyTotals(), sent_s=0.0)


def watching(**autoscale: float) -> FleetWatch:
    replicas = {"frozen_after_s": FROZEN_AFTER_S}
    return FleetWatch(parse_config({"replicas": replicas, "autoscale": autoscale}))


def frozen_with(reports: list[ReplicaReport]) -> list[str]:
    """Who counts as frozen after a report a second, the last for all that follow."""
    watch = watching()
    watch.dispatched("a", 0.0)
    now = 0.0
    while now <= 3 * FROZEN_AFTER_S:
        now += 1.0
        latest = reports[min(int(now) - 1, len(reports) - 1)]
        watch.reported(latest, True, now, made_tokens=0)
        if frozen := watch.frozen(now):
            return frozen
    return []


@pytest.mark.parametrize(
    ("reports", "frozen"),
    [
        ([report()], ["a"]),
        ([report({"r": 7})], ["a"]),
        ([report({"r": tokens}) for tokens in range(50)], []),
        ([report({"r": 7}), report({"r": 7, "s": 3})] * 25, ["a"]),
        ([report(finished={"r": 7})], []),
        ([report(kv_usage=number / 50) for number in range(50)], []),
        ([report(kv_usage=1 - number / 50) for number in range(50)], ["a"]),
    ],
)
def test_progress_is_tokens_ends_or_memory_that_fills(
    reports: list[ReplicaReport], frozen: list[str]
) -> None:
    assert frozen_with(reports) == frozen


def test_a_replica_without_work_or_that_is_gone_is_not_frozen() -> None:
    watch = watching()
    watch.dispatched("a", 0.0)
    watch.dispatched("b", 0.0)
    watch.reported(report(), False, 1.0, made_tokens=0)
    watch.forget("b")
    for now in range(2, 30):
        assert watch.frozen(float(now)) == []


def test_throughput_is_that_of_replicas_with_work() -> None:
    throughput = Throughput()
    assert throughput.tokens_s is None
    now, made = 0.0, 0
    for _ in range(8):
        throughput.reported("a", made, False, now)  # idle
        now += 1000.0
        for _ in range(40):  # 10 tokens in a quarter of a second
            throughput.reported("a", made, True, now)
            now += 0.25
            made += 10
        throughput.reported("a", made, False, now)
    assert throughput.tokens_s == pytest.approx(40.0, rel=1e-6)


def test_throughput_follows_a_change() -> None:
    throughput = Throughput()
    now = made = 0
    for rate in (100, 20):
        for _ in range(int(5 * AVERAGED_S)):
            throughput.reported("a", made, True, now)
            now += 1
            made += rate
        assert throughput.tokens_s == pytest.approx(rate, rel=0.05)


def test_many_replicas_forget_no_faster_than_one() -> None:
    throughput = Throughput()
    made = dict.fromkeys(map(str, range(100)), 0)
    for second in range(100):
        for name in made:
            throughput.reported(name, made[name], True, float(second))
            made[name] += 40 if second < 98 else 400
    assert throughput.tokens_s == pytest.approx(40 + 360 / AVERAGED_S, rel=0.05)


def test_throughput_counts_no_token_that_was_made_elsewhere_or_is_aborted() -> None:
    core, watch = scheduler(replica("a", blocks=1000)), watching()
    core.submit(request("first", cap=400), forecast(300), 0.0)
    core.decide(0.0)
    progress = {"first": 0}
    for second in range(40):
        now = float(second)
        if second % 10 == 3:  # another one comes from a replica that is gone
            core.submit(request("moved", cap=4000, generated=900), forecast(950), now, attempt=2)
            core.decide(now)
            progress["moved"] = 900
        if second % 10 == 6:  # and its client leaves
            core.cancel("moved", now)
            del progress["moved"]
        core.progressed("a", progress, now)
        watch.reported(report(progress), True, now, made_tokens=core.made["a"])
        progress = {name: tokens + 5 for name, tokens in progress.items()}
    tokens_s = watch._throughput.tokens_s
    assert tokens_s is not None
    assert 5.0 <= tokens_s <= 10.0


def test_the_measured_throughput_decides_how_many_replicas_are_wanted() -> None:
    watch = watching(max=10, min=1, target_wait_s=10.0, up_delay_s=0.0)
    assert watch.scales
    assert not watching().scales
    for second in range(60):
        made = 50 * second
        watch.reported(report({"r": made}), True, float(second), made_tokens=made)
    wanted = watch.wanted(60.0, current=1, queued_tokens=1501, busy=1.0)
    assert wanted == 4  # 500 tokens each in ten seconds
