"""What a snapshot says in three sentences."""

from __future__ import annotations

from cluster.summary import by_pressure, summarise
from tests.cluster.snapshots import (
    points,
    replica,
    snapshot,
    without_work,
)


def test_replicas_that_take_no_more_come_first_and_those_that_come_last() -> None:
    views = [
        replica("loading", 0, 0, running=0, state="loading"),
        replica("half", 500, 510),
        replica("full", 900, 1000, bottleneck="memory"),
        replica("fuller but free", 900, 1020),
        replica("fuller", 900, 1024, bottleneck="memory"),
        replica("lost", 0, 0, running=0, state="lost"),
    ]
    names = [view.status.replica_id for view in by_pressure(views)]
    assert names == ["lost", "fuller", "full", "fuller but free", "half", "loading"]


def test_the_bottleneck_in_words() -> None:
    said = summarise(snapshot([replica("a", 900, 1010, running=15, bottleneck="memory")]))
    assert said.bottleneck.short == "a: KV memory"
    assert "900 of 1,024 KV blocks needed, 1,010 projected in 224 steps" in said.bottleneck.text
    assert said.bottleneck.level == "busy"
    free = summarise(snapshot([replica("a", 100, 200), replica("b", 90, 99, running=15)]))
    assert (free.bottleneck.level, free.bottleneck.short) == ("good", "None")
    assert "The fullest, b: 90 of 1,024 KV blocks" in free.bottleneck.text
    assert free.bottleneck.text.endswith(
        "slots taken. What waits is held back all the same: see the next box."
    )
    assert "15 of 16 slots taken" in free.bottleneck.text
    none = summarise(snapshot([replica("a", 0, 0, state="loading")])).bottleneck
    assert (none.level, none.text) == ("bad", "No replica serves. Replicas: 1 loading.")


def test_forecasts_in_words() -> None:
    good = summarise(snapshot()).forecasts
    assert "91% lay inside" in good.text
    assert "right 81% of the time (tau 0.62)" in good.text
    poor = summarise(snapshot(rank_correlation=0.05)).forecasts
    assert (poor.level, poor.short) == ("bad", "Poor: hardly better than chance")
    assert summarise(snapshot(forecasts=points(5))).forecasts.level == "unknown"
    exact = summarise(snapshot(forecasts=points(error=0.0))).forecasts
    assert "within a factor of 1.0 " in exact.text


def test_an_idle_cluster_in_words() -> None:
    idle = snapshot([without_work(replica("a"))], queues=[], head=[])
    said = summarise(idle)
    assert said.queue.short == "Empty"
    assert "0 of 1,024 KV blocks needed, and it will not need more" in said.bottleneck.text
    assert said.bottleneck.text.endswith("slots taken.")
