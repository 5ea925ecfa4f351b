"""The picture of the cluster equals what the controller's parts know."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import msgspec
import pytest

from cluster.control import open_requests, snapshots
from cluster.control.snapshots import (
    FRESH_S,
    SnapshotTaker,
    coverage,
    history_point,
    rank_correlation,
)
from cluster.messages import ClusterStatus
from cluster.snapshot import ClusterSnapshot, Explanation, ForecastPoint
from cluster.statistics.faults import Fault
from replicas.protocol import EnergyTotals, Finished, Stalled
from tests.cluster.controlled import CLIENT, Controlled

BOOKS = EnergyTotals("model:x", 100.0, 60.0, 6.0, 40.0, power_w=200.0)


@pytest.fixture(autouse=True)
def time_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a picture may take long, and that is not what tests here are about."""
    monkeypatch.setattr(snapshots, "MOST_TIME", 1e9)


async def busy() -> Controlled:
    """Two requests run on `a`, two wait for it, and `b` has not reported."""
    cluster = Controlled()
    cluster.join("a", slots=2)
    for number in range(4):
        await cluster.submit(f"r{number}", job="nightly" if number == 3 else "")
    assert len(await cluster.decide()) == 2
    return cluster


async def test_a_snapshot_says_what_runs_waits_and_why() -> None:
    cluster = await busy()
    running = [n for n in cluster.state.open.ids() if cluster.state.scheduler.placement(n)]
    await cluster.report("a", progress=dict.fromkeys(running, 10), energy=BOOKS)
    taken = await cluster.control.snapshot()
    (view,) = taken.replicas
    ledger = cluster.state.scheduler.fleet["a"]
    assert view.status == cluster.desk.status(cluster.members["a"])
    assert (view.status.running, view.status.used_blocks) == (2, ledger.used_blocks)
    assert max(view.projection.blocks) == ledger.profile.peak
    assert view.projection.steps[0] == 0
    assert (view.bottleneck, view.slow) == ("slots", False)
    assert view.report_age_s is not None
    online, offline = taken.queues
    assert (online.request_class, online.requests, online.running) == ("online", 1, 2)
    assert (offline.request_class, offline.requests, offline.running) == ("offline", 1, 0)
    assert online.predicted_tokens == cluster.state.scheduler.queue(0).tokens  # type: ignore[arg-type]
    first, second = taken.head
    assert first.reason == "waits for a place: the replica runs as many requests as may be"
    assert second.reason == "is behind 1 online request"
    assert [w.position for w in taken.head] == [1, 2]
    assert first.waited_s >= 0
    assert taken.energy.totals.metered_joules == 100.0
    assert taken.faults == cluster.state.faults.counts()
    assert msgspec.json.decode(msgspec.json.encode(taken), type=ClusterSnapshot) == taken


async def test_what_is_kept_free_for_online_work_is_told_from_what_is_full() -> None:
    cluster = Controlled(policy={"guard_band": 0.5})
    cluster.join("a", blocks=32, slots=4)
    await cluster.submit("online", prompt=100, cap=200)
    assert await cluster.decide() == {"online": "a"}
    await cluster.submit("offline", prompt=150, cap=200, job="nightly")
    assert await cluster.decide() == {}
    taken = await cluster.control.snapshot()
    assert taken.head[0].reason.startswith("waits because the last 50 % of each replica's memory")
    assert taken.replicas[0].bottleneck == "online only"
    await cluster.submit("large", prompt=400, cap=100)
    assert await cluster.decide() == {}
    taken = cluster.control._snapshots.take(time.monotonic() + FRESH_S)
    assert taken.head[0].request_id == "large"
    assert taken.replicas[0].bottleneck == "memory"


async def test_replicas_that_do_not_serve_are_shown_without_memory() -> None:
    cluster = Controlled()
    member = cluster.join("a")
    cluster.lose("a", "process")
    (view,) = (await cluster.control.snapshot()).replicas
    assert view.status.state == "lost"
    assert (view.projection.steps, view.projection.blocks) == ([0], [0])
    assert view.report_age_s is None
    assert member.replica_id == "a"


async def test_a_snapshot_is_taken_once_a_second_however_many_look() -> None:
    cluster = await busy()
    taker, now = cluster.control._snapshots, time.monotonic()
    first = taker.take(now)
    cluster.state.faults.count(Fault.ROWS_DROPPED)
    assert taker.take(now + 0.9 * FRESH_S) is first
    later = taker.take(now + FRESH_S)
    assert later.faults["rows_dropped"] == 1


async def test_a_picture_that_takes_long_is_taken_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "MOST_TIME", 0.05)
    cluster = await busy()

    def slow_status() -> ClusterStatus:
        time.sleep(0.15)
        return cluster.control._status()

    taker, now = SnapshotTaker(cluster.state, cluster.desk, slow_status), time.monotonic()
    first = taker.take(now)
    assert taker.take(now + 2.9) is first, "0.15 s are a twentieth of 3 s"
    assert taker.take(now + 1000) is not first


async def test_tokens_per_second_are_those_of_the_last_seconds() -> None:
    cluster = await busy()
    taker, now = cluster.control._snapshots, time.monotonic()
    running = [n for n in cluster.state.open.ids() if cluster.state.scheduler.placement(n)]
    assert taker.take(now).replicas[0].tokens_per_s == 0.0
    for second in range(1, 9):
        await cluster.report("a", progress=dict.fromkeys(running, 10 * second))
        assert taker.take(now + second).replicas[0].tokens_per_s == pytest.approx(20.0)
    for second in range(9, 20):
        idle = taker.take(now + second).replicas[0].tokens_per_s
    assert idle == 0.0


async def test_a_point_of_the_history_sums_the_picture() -> None:
    cluster = await busy()
    cluster.join("b", blocks=192)
    await cluster.report("a", energy=BOOKS, kv_usage=0.8)
    taker, now = cluster.control._snapshots, time.monotonic()
    taker.record(now)
    taken = taker.take(now + FRESH_S)
    (point,) = taken.history
    assert (point.waiting_online, point.waiting_offline, point.running) == (1, 1, 2)
    assert point.kv_usage == pytest.approx(0.2), "as the engines say, a quarter of all is 80 % full"
    assert point.power_w == 200.0
    assert point.latency_p50_s is None
    name = next(iter(cluster.state.scheduler.fleet["a"].request_ids))
    await cluster.end(name, "a", 10)
    point = history_point(taker.take(now + 2 * FRESH_S))
    assert point.latency_p50_s is not None
    assert point.latency_p99_s is not None


def point(median: float, actual: int, *, censored: bool = False) -> ForecastPoint:
    return ForecastPoint(median, lower=10, upper=100, actual=actual, censored=censored)


def test_coverage_counts_who_can_be_judged() -> None:
    assert coverage([]) is None
    assert coverage([point(50, 20, censored=True)]) is None, "it might have ended anywhere"
    assert coverage([point(50, 20), point(50, 9), point(50, 101)]) == pytest.approx(1 / 3)
    assert coverage([point(50, 20), point(50, 150, censored=True)]) == 0.5


def test_rank_correlation_needs_two_that_differ() -> None:
    assert rank_correlation([point(5, 5)]) is None
    assert rank_correlation([point(5, 5), point(5, 5)]) is None
    assert rank_correlation([point(n, n * n) for n in range(1, 9)]) == pytest.approx(1.0)
    assert rank_correlation([point(n, 100 - n) for n in range(1, 9)]) == pytest.approx(-1.0)


async def explained(cluster: Controlled, name: str) -> Explanation:
    explanation = await cluster.control.explain(name)
    assert explanation is not None
    return explanation


async def test_a_request_is_explained_from_the_queue_to_its_row() -> None:
    cluster = Controlled()
    cluster.join("a", slots=1)
    await cluster.submit("first", job="nightly")
    await cluster.decide()
    await cluster.submit("second", prompt=30, cap=50, job="nightly")
    await cluster.decide()
    waiting = await explained(cluster, "second")
    assert (waiting.state, waiting.position, waiting.position_is_exact) == ("waiting", 1, True)
    assert (waiting.prompt_tokens, waiting.max_tokens, waiting.job) == (30, 50, "nightly")
    assert [(c.replica_id, c.verdict) for c in waiting.candidates] == [("a", "slots")]
    assert [event.what for event in waiting.events] == ["arrived"]
    await asyncio.sleep(0.1)
    waiting = await explained(cluster, "second")
    assert waiting.waited.startswith("has waited ")
    assert waiting.waited_s == pytest.approx(waiting.lacked_s["places"], abs=0.05)
    await cluster.end("first", "a", 40, joules=8.0)
    await cluster.decide()
    running = await explained(cluster, "second")
    assert (running.state, running.replica_id, running.position) == ("running", "a", None)
    assert running.reason.startswith("runs on a: 0 output tokens so far, about ")
    assert running.waited.startswith("waited ")
    assert running.waited_s is not None
    assert running.waited_s >= 0.1
    assert "all places in the replicas' batches were taken" in running.waited
    await cluster.report("a", stalled={"second": Stalled(tokens=7, evictions=1)})
    stalled = await explained(cluster, "second")
    assert stalled.output_tokens == 7
    assert stalled.reason.endswith("evicted at 7 output tokens; there is no other replica")
    assert "evicted" in [event.what for event in stalled.events]
    await cluster.end("second", "a", 50, joules=5.0)
    ended = await explained(cluster, "second")
    assert (ended.state, ended.output_tokens, ended.job) == ("finished", 50, "nightly")
    assert ended.reason.startswith("ended by itself on a, 50 output tokens, ")
    assert (ended.energy_joules, ended.wasted_joules) == (5.0, 0.5)
    assert ended.energy_source == "model:x"
    assert ended.waited_s == pytest.approx(running.waited_s, abs=0.01)
    assert ended.lacked_s == pytest.approx(running.lacked_s, abs=0.02), "it is known afterwards"
    assert ended.forecast is not None
    assert [event.what for event in ended.events][-1] == "finished"
    assert msgspec.json.decode(msgspec.json.encode(ended), type=Explanation) == ended


async def test_an_id_may_be_given_as_an_http_client_knows_it() -> None:
    cluster = Controlled()
    cluster.join("a", slots=1)
    for name in ("chatcmpl-abc-11-0", "chatcmpl-abc-11-1"):
        await cluster.submit(name)
    await cluster.decide()
    assert (await explained(cluster, "chatcmpl-abc")).request_id == "chatcmpl-abc-11-0"
    where = next(iter(cluster.state.scheduler.fleet["a"].request_ids))
    await cluster.end(where, "a", 5)
    (other,) = set(cluster.state.open.ids())
    assert (await explained(cluster, "chatcmpl-abc")).request_id == other, "who is open comes first"
    assert (await explained(cluster, where)).state == "finished"
    assert await cluster.control.explain("chatcmpl-ab") is None
    assert await cluster.control.explain("nobody") is None


async def test_a_request_between_two_replicas_is_waited_for() -> None:
    cluster = Controlled()
    cluster.join("a")
    await cluster.submit("r")
    await cluster.decide()
    cluster.lose("a", "process")
    lost = await explained(cluster, "r")
    assert (lost.state, lost.replica_id) == ("recalled", "")
    assert lost.reason == "its replica is gone; its client has been told and is to submit it again"
    assert [event.what for event in lost.events] == ["arrived", "dispatched", "lost"]
    await cluster.submit("r", attempt=2, generated=5)
    again = await explained(cluster, "r")
    assert (again.state, again.position, again.output_tokens) == ("waiting", 1, 5)
    assert again.reason == "waits for a replica: none is ready"
    assert cluster.state.open.orphaned("r") is None


async def test_who_was_refused_is_told_why() -> None:
    cluster = Controlled()
    cluster.join("a")
    await cluster.submit("large", prompt=900, cap=900)
    refused = await explained(cluster, "large")
    assert (refused.state, refused.replica_id) == ("finished", "")
    said = r"was refused \d+ s ago: request 'large' needs 1800 tokens"
    assert re.match(said, refused.reason), refused.reason


async def test_a_controller_with_a_journal_answers_too(tmp_path: Path) -> None:
    cluster = Controlled(journal=str(tmp_path / "journal"))
    cluster.join("a", slots=1)
    for number in range(2):
        await cluster.submit(f"r{number}")
    assert await cluster.decide() == {"r0": "a"}
    taken = await cluster.control.snapshot()
    assert [waiting.request_id for waiting in taken.head] == ["r1"]
    assert taken.replicas[0].bottleneck == "slots"
    assert (await explained(cluster, "r1")).position == 1


async def test_a_client_that_never_comes_back_leaves_a_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_requests, "MOST_ORPHANS", 3)
    cluster = Controlled()
    cluster.join("a")
    for number in range(8):
        await cluster.submit(f"r{number}")
    assert len(await cluster.decide()) == 8
    cluster.lose("a", "process")
    known = [n for n in range(8) if await cluster.control.explain(f"r{n}") is not None]
    assert len(known) == 3


async def test_what_earlier_attempts_cost_is_known_while_a_request_runs() -> None:
    cluster = Controlled()
    cluster.join("a")
    await cluster.submit("r")
    await cluster.decide()
    cluster.join("b")
    cluster.desk.replica_gives_back(cluster.members["a"])
    await cluster.decide()
    ended = Finished("r", CLIENT, 1, 7, "abort", 2, 30, energy_joules=4.0, wasted_joules=1.0)
    await cluster.report("a", finished=[ended], energy=EnergyTotals("model:x"))
    recalled = await explained(cluster, "r")
    assert (recalled.state, recalled.energy_joules) == ("recalled", 4.0)
    await cluster.submit("r", attempt=2, generated=7)
    await cluster.decide()
    running = await explained(cluster, "r")
    assert (running.state, running.replica_id, running.evictions) == ("running", "b", 2)
    assert running.recomputed_tokens >= 30
    assert (running.energy_joules, running.wasted_joules) == (4.0, 1.0)
    assert running.energy_source == "model:x"
