"""What the queue has lacked, and what is told of a request that waited meanwhile."""

from __future__ import annotations

import pytest

from cluster.control.past_wait import told
from cluster.core.lacks import COARSE_COUNT, FINE_COUNT, Lack, Lacked, QueueLacks
from tests.cluster.factories import dispatched, forecast, replica, request, scheduler


def test_totals_between_two_times() -> None:
    lacks = QueueLacks()
    lacks.note(None, 0.0)
    lacks.note(Lack.MEMORY, 10.0)
    lacks.note(Lack.PLACES, 14.0)
    lacks.note(None, 20.0)
    lacks.note(None, 30.0)
    assert lacks.between(0.0, 30.0) == Lacked({Lack.PLACES: 6.0, Lack.MEMORY: 4.0})
    assert list(lacks.between(0.0, 30.0).seconds) == [Lack.PLACES, Lack.MEMORY], "longest first"
    assert lacks.between(12.0, 16.0) == Lacked({Lack.MEMORY: 2.0, Lack.PLACES: 2.0})
    assert lacks.between(21.0, 29.0) == Lacked({})


def test_what_is_lacking_still_counts() -> None:
    lacks = QueueLacks()
    assert lacks.between(1.0, 5.0) == Lacked({}, unknown_s=4.0)
    lacks.note(Lack.REPLICAS, 5.0)
    assert lacks.between(3.0, 9.0) == Lacked({Lack.REPLICAS: 4.0}, unknown_s=2.0)
    assert lacks.between(3.0, 9.0) == lacks.between(3.0, 9.0), "asking changes nothing"
    assert lacks.between(2.0, 4.0) == Lacked({}, unknown_s=2.0)


@pytest.mark.parametrize("apart_s", [0.01, 1.0, 7.0])
def test_never_more_than_the_time_between(apart_s: float) -> None:
    lacks, causes = QueueLacks(), [Lack.MEMORY, None, Lack.KEPT, Lack.PLACES]
    for i in range(1000):
        lacks.note(causes[i * 7 % 4], i * apart_s)
    for since, until in ((0.0, 999.0), (3.5, 3.6), (17.2, 417.9), (998.0, 1200.0)):
        found = lacks.between(since * apart_s, until * apart_s)
        assert sum(found.seconds.values()) <= (until - since) * apart_s * (1 + 1e-9)
        assert found.unknown_s == 0


def test_an_old_wait_is_known_to_a_minute_and_memory_is_bounded() -> None:
    lacks = QueueLacks()
    for second in range(2 * FINE_COUNT):
        lacks.note(Lack.MEMORY if second % 600 < 300 else Lack.POWER, float(second))
    found = lacks.between(0.0, 1200.0)
    assert found.seconds[Lack.MEMORY] == pytest.approx(600, abs=60)
    assert found.seconds[Lack.POWER] == pytest.approx(600, abs=60)
    assert found.unknown_s == 0
    for minute in range(2 * COARSE_COUNT):
        lacks.note(Lack.MEMORY, 2.0 * FINE_COUNT + 60.0 * minute)
    assert lacks.between(0.0, 1200.0) == Lacked({}, unknown_s=1200.0), "forgotten"


def test_the_scheduler_tells_memory_from_places_and_from_no_replica() -> None:
    core = scheduler(policy_name="fcfs", admission="a_max", guard_band=0.0)
    core.submit(request("a"), forecast(), 0.0)
    assert dispatched(core) == []
    assert core.lacked(0.0, 2.0).seconds == {Lack.REPLICAS: 2.0}
    core.replica_joined(replica("r", blocks=16, slots=2), 2.0)
    core.submit(request("b"), forecast(), 2.0)
    assert dispatched(core, 2.0) == [("a", "r")]
    assert core.lacked(2.0, 5.0).seconds == {Lack.MEMORY: 3.0}
    core.cancel("b", 5.0)
    for name in ("c", "d"):
        core.submit(request(name, prompt=8, cap=8), forecast(8), 5.0)
    assert dispatched(core, 5.0) == [("c", "r")]
    assert core.lacked(5.0, 6.0).seconds == {Lack.PLACES: 1.0}
    core.finished("r", "a", 10, 6.0)
    assert dispatched(core, 6.0) == [("d", "r")]
    assert core.lacked(6.0, 7.0).seconds == {}


def test_the_scheduler_tells_memory_that_is_kept_for_online_requests() -> None:
    core = scheduler(replica("r", blocks=16), policy_name="fcfs", admission="a_max", guard_band=0.5)
    core.submit(request("a"), forecast(), 0.0)
    assert len(dispatched(core)) == 1
    core.submit(request("offline", prompt=100, cap=50, online=False), forecast(50), 1.0)
    assert dispatched(core, 1.0) == []
    standing = core.explain("offline", 1.0)
    assert standing is not None
    assert "% of each replica's memory is kept" in standing.reason
    assert core.lacked(1.0, 3.0).seconds == {Lack.GUARDED: 2.0}


def test_the_scheduler_tells_what_is_kept_for_online_requests_and_the_power_cap() -> None:
    core = scheduler(replica("r", slots=2), replica("s", slots=2), guard_band=0.05)
    for name in ("a", "b", "c"):
        core.submit(request(name), forecast(), 0.0)
    assert len(dispatched(core)) == 3
    core.submit(request("offline", online=False), forecast(), 1.0)
    assert dispatched(core, 1.0) == []
    assert core.lacked(1.0, 3.0).seconds == {Lack.KEPT: 2.0}
    assert [c.verdict for c in core.candidates(3.0)] == ["online only", "slots"]
    core.pace_offline(0, 3.0)
    assert dispatched(core, 3.0) == []
    assert core.lacked(3.0, 4.0).seconds == {Lack.POWER: 1.0}


@pytest.mark.parametrize(
    ("waited_s", "lacked", "ended", "words"),
    [
        (0.001, Lacked({}), True, "did not wait in the queue"),
        (
            0.2,
            Lacked({}),
            True,
            "waited 200 ms in the queue: 200 ms others were being started before it",
        ),
        (
            11.4,
            Lacked({Lack.MEMORY: 9.1, Lack.KEPT: 2.25, Lack.PLACES: 0.05}),
            True,
            "waited 11.4 s in the queue: 9.1 s no replica was projected to have the memory for the "
            "first of the queue; 2.2 s the last free places were kept for online requests",
        ),
        (
            4.0,
            Lacked({Lack.PLACES: 4.0}),
            False,
            "has waited 4.0 s in the queue: 4.0 s all places in the replicas' batches were taken",
        ),
        (
            9.0,
            Lacked({Lack.GUARDED: 3.0}, unknown_s=6.0),
            True,
            "waited 9.0 s in the queue: 3.0 s no replica had it beside the memory that is kept for "
            "online requests; 6.0 s not known why",
        ),
    ],
)
def test_in_words(waited_s: float, lacked: Lacked, ended: bool, words: str) -> None:
    assert told(waited_s, lacked, ended=ended) == words
