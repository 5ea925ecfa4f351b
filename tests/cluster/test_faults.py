"""What went wrong is counted, once, where it happens."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from cluster.control.upkeep import Upkeep
from cluster.core.suspects import FAIL_AT
from cluster.membership.member import Ended
from cluster.statistics.faults import Fault, Faults
from tests.cluster.controlled import CLIENT, Controlled


def risen(cluster: Controlled) -> dict[str, int]:
    return {name: count for name, count in cluster.state.faults.counts().items() if count}


def test_counts_begin_at_nothing_and_name_everything() -> None:
    faults = Faults()
    assert faults.counts() == dict.fromkeys([fault.value for fault in Fault], 0)
    assert faults.unsaved() is None
    faults.count(Fault.ROWS_DROPPED, 3)
    assert faults[Fault.ROWS_DROPPED] == 3
    assert faults.unsaved() == faults.counts()
    assert faults.unsaved() is None


def test_the_documentation_names_what_is_counted() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    (paragraph,) = [p for p in text.split("\n\n") if p.startswith("**What is counted.**")]
    named = re.findall(r"`(\w+)`", paragraph)
    assert named == [fault.value for fault in Fault]


def test_a_successor_goes_on_from_what_was_written_down() -> None:
    faults = Faults()
    faults.count(Fault.CLIENT_LOST)
    faults.load({"client_lost": 4, "replica_frozen": 2, "no_more_counted": 7})
    assert (faults[Fault.CLIENT_LOST], faults[Fault.REPLICA_FROZEN]) == (5, 2)
    assert faults.inherited == {"client_lost": 4, "replica_frozen": 2}
    assert "no_more_counted" not in faults.counts()


@pytest.mark.parametrize(
    ("ended", "name"),
    [
        ("frozen", "replica_frozen"),
        ("process", "replica_process_died"),
        ("engine", "replica_engine_died"),
        ("node", "replica_node_lost"),
    ],
)
def test_the_end_of_a_replica_and_its_replacement(ended: Ended, name: str) -> None:
    cluster = Controlled()
    cluster.join("replica-0")
    cluster.lose("replica-0", ended)
    assert risen(cluster) == {name: 1}
    cluster.join("replica-1", index=1)
    assert risen(cluster) == {name: 1}, "it is another one, and replaces nobody"
    cluster.join("replica-0.1", index=0)
    assert risen(cluster) == {name: 1, "replica_replaced": 1}


def test_a_replica_that_leaves_is_no_fault() -> None:
    cluster = Controlled()
    cluster.join("replica-0")
    cluster.lose("replica-0", "left")
    cluster.join("replica-0.1", index=0)
    assert risen(cluster) == {}


async def test_suspicion_is_counted_when_it_grows() -> None:
    cluster = Controlled()
    for name, ended, suspected in (("a", "engine", 1), ("b", "node", 1), ("c", "frozen", 2)):
        cluster.join(name, index=0)
        await cluster.submit("r", attempt=1 + "abc".index(name), strikes=float(suspected - 1))
        assert await cluster.decide() == {"r": name}
        cluster.lose(name, ended)  # type: ignore[arg-type]
        assert cluster.state.faults[Fault.REQUEST_SUSPECTED] == suspected


async def test_a_poisoned_request_is_counted_when_it_is_refused() -> None:
    cluster = Controlled()
    cluster.join("a")
    await cluster.submit("r", attempt=4, strikes=FAIL_AT)
    assert risen(cluster) == {"request_poisoned": 1}


def upkeep(cluster: Controlled) -> Upkeep:
    control = cluster.control
    return Upkeep(cluster.state, control._intake, cluster.desk, control._watch, cluster.replicas)


async def test_a_lost_client_counts_when_it_had_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Controlled()
    await cluster.submit("r")
    cluster.state.clients.meet("idle")
    monkeypatch.setattr(cluster.state.clients, "_timeout_s", -1.0)
    upkeep(cluster)._look(time.monotonic())
    assert risen(cluster) == {"client_lost": 1}
    assert CLIENT not in cluster.state.clients._outboxes


async def test_a_frozen_replica_gets_nothing_more_though_it_is_not_gone_yet() -> None:
    cluster = Controlled(replicas={"frozen_after_s": 5.0})
    cluster.join("frozen", blocks=64)
    await cluster.submit("before")
    assert await cluster.decide() == {"before": "frozen"}
    cluster.join("other", blocks=32)  # smaller, so that the frozen one would be preferred
    now = time.monotonic()
    look = upkeep(cluster)
    killed = []
    cluster.replicas.kill = lambda name, ended: killed.append((name, ended))  # type: ignore[method-assign]
    for seconds in range(7):
        look._look(now + seconds)
    assert killed == [("frozen", "frozen")], "once"
    await cluster.submit("after")
    assert await cluster.decide() == {"after": "other"}
    await cluster.report("frozen", progress={"before": 5})
    await cluster.submit("later")
    assert await cluster.decide() == {"later": "other"}, "it woke up, and is given up all the same"
    cluster.lose("frozen", "frozen")
    assert [orphaned.attempts for orphaned in await cluster.orphans()] == [{"before": 1}]
    await cluster.submit("before", attempt=2, strikes=1.0)
    assert await cluster.decide() == {"before": "other"}
    assert risen(cluster) == {"replica_frozen": 1, "request_suspected": 1}


async def test_what_a_replica_says_after_its_end_is_not_kept() -> None:
    cluster = Controlled()
    cluster.join("a")
    await cluster.submit("r")
    await cluster.decide()
    cluster.lose("a", "frozen")
    await cluster.report("a", progress={"r": 9})
    assert not cluster.desk._reports
    assert not cluster.desk._heard_s
    assert not cluster.control._watch._watchdog._marks
