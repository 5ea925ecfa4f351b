"""A recorded trace can be replayed through the core and gives the same decisions."""

from __future__ import annotations

import contextlib
import json
import math
import random
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.journal import Journal
from cluster.journal_events import Decided, Header, Submitted
from cluster.journal_reader import JournalError, JournalReader
from cluster.journaled_scheduler import JournaledScheduler, recorded_actions
from cluster.scheduler import (
    ClusterScheduler,
    Dispatch,
    ImpossibleRequestError,
    PoisonedRequestError,
    QueueFullError,
    QueueLimits,
    Recall,
)
from jobs.replay import replay, tell
from policies.bundle import policy, policy_names
from policies.request import Request
from tests.cluster.factories import forecast, replica, request


def journaled(
    path: Path,
    policy_name: str = "tiebreak",
    *,
    limits: QueueLimits | None = None,
    fair_share: bool = False,
    **options: Any,
) -> tuple[JournaledScheduler, Journal]:
    header = Header(
        model="m",
        policy={"name": policy_name, "fair_share": fair_share, **options},
        limits=None if limits is None else asdict(limits),
        started_unix_s=0.0,
    )
    journal = Journal(path, header)
    rules = policy(policy_name, guard_band=0.05, **options)
    core = ClusterScheduler(rules, limits=limits, fair_share=fair_share)
    return JournaledScheduler(core, journal), journal


def random_history(core: JournaledScheduler, seed: int) -> tuple[int, int]:
    """Everything that can be told to a core, in random order; dispatches and recalls decided."""
    rng = random.Random(seed)
    now, dispatches, recalls = rng.uniform(0, 1e6), 0, 0
    running: dict[str, tuple[str, int]] = {}
    attempts: dict[str, int] = {}
    recalled: dict[str, Request] = {}
    alive: list[str] = []
    for number in range(rng.randint(1, 120)):
        now += rng.expovariate(20.0)
        event = rng.random()
        known = [*running, f"q{rng.randrange(number + 1)}"]
        if not alive or event < 0.05:
            alive.append(f"replica-{number}")
            one = replica(alive[-1], blocks=24, slots=6, longest=300)
            core.replica_joined(replace(one, look_ahead=rng.choice([0, 2])), now)
        elif event < 0.5:
            sizes = request(
                f"q{number}",
                rng.randint(1, 100),
                rng.choice([64, 64, 64, 400]),
                arrival_s=now,
                online=rng.random() < 0.5,
                generated=rng.choice([0, 0, 7]),
            )
            sizes = replace(sizes, tenant=rng.choice("tuv"))
            attempt, strikes = rng.randint(1, 2), rng.choice([0.0] * 9 + [2.0, 3.0])
            known = forecast(rng.uniform(1, 60))
            try:
                core.submit(sizes, known, now, attempt=attempt, strikes=strikes)
            except ImpossibleRequestError:
                assert sizes.max_tokens == 400
            except PoisonedRequestError:
                assert strikes == 3.0
            except QueueFullError:
                assert attempt == 1
        elif event < 0.6:
            core.forecast(rng.choice(known), forecast(rng.uniform(1, 60)), now)
        elif event < 0.65:
            core.cancel(rng.choice(known), now)
        elif event < 0.66:
            where, blame = alive.pop(rng.randrange(len(alive))), rng.choice([0.0, 1.0])
            assert set(core.replica_lost(where, now, blame=blame).values()) <= {blame, 2.0 + blame}
        elif event < 0.67:
            core.replica_draining(rng.choice(alive), now)
        elif event < 0.68:
            core.give_back(rng.choice(alive), now)
        elif event < 0.685:
            core.pace_offline(rng.choice([None, 0, 1, 2]), now)
        elif event < 0.695:
            name, where = rng.choice([*known, f"q{number}"]), rng.choice(alive)
            tokens = rng.randint(0, 9)
            if core.adopt(
                request(name, 20, 64),
                forecast(20),
                now,
                replica_id=where,
                attempt=rng.randint(1, 3),
                key=rng.choice([1.5, math.inf]),
                tokens=tokens,
                strikes=rng.choice([0.0, 0.0, 2.0]),
            ):
                running[name] = (where, tokens)
        elif event < 0.72 and running:
            name, (where, tokens) = rng.choice(list(running.items()))
            core.evicted(where, name, min(tokens, 63), now, kept=rng.choice([None, 0]))
        elif event < 0.74 and recalled:
            name, sizes = recalled.popitem()
            sizes = replace(sizes, generated_tokens=min(7, sizes.max_tokens - 1))
            core.submit(sizes, forecast(20), now, attempt=attempts.get(name, 3) + 1)
        elif event < 0.8 and running:
            where = rng.choice(alive)
            counts = {n: t for n, (w, t) in running.items() if w == where and rng.random() < 0.5}
            core.stalled(where, {**counts, "never-heard-of": 3}, now)
        elif event < 0.86 and running:
            name, (where, tokens) = rng.choice(list(running.items()))
            core.finished(where, name, tokens + 1, now)
        else:
            where = rng.choice(alive)
            running = {n: (w, t + 5 * (w == where)) for n, (w, t) in running.items()}
            counts = {n: t for n, (w, t) in running.items() if w == where}
            core.progressed(where, {**counts, "never-heard-of": 3}, now)
        for action in core.decide(now):
            if isinstance(action, Dispatch):
                name = action.request.request_id
                running[name] = (action.replica_id, action.request.generated_tokens)
                attempts[name] = action.attempt
                dispatches += 1
            else:
                recalls += 1
                if action.hand_back:
                    recalled[action.request_id] = request(action.request_id, 20, 64)
        running = {n: w for n, w in running.items() if core.state(n) == "running"}
    return dispatches, recalls


@given(st.integers(0, 2**32), st.sampled_from([n for n in policy_names() if n != "h_sf"]))
@settings(max_examples=60, deadline=None)
def test_a_replay_decides_what_was_decided(seed: int, policy_name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        limits = random.Random(seed).choice([None, QueueLimits(4, 200, 3, 150)])
        core, journal = journaled(path, policy_name, limits=limits, fair_share=seed % 2 == 0)
        dispatches, recalls = random_history(core, seed)
        journal.close()
        outcome = replay(path)
    assert outcome.difference is None
    assert outcome.decisions == dispatches + recalls
    assert (outcome.policy, outcome.sessions, outcome.torn) == (policy_name, 1, 0)


def test_the_random_histories_reach_all_kinds_of_events(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    decided = [0, 0]
    for seed in range(40):
        core, journal = journaled(path)
        for kind, count in enumerate(random_history(core, seed)):
            decided[kind] += count
        journal.close()
    kinds = {type(entry).__name__ for entry in JournalReader(path)}
    assert kinds == {
        *("Header", "Submitted", "Forecasted", "Cancelled", "Joined", "Lost"),
        *("Adopted", "Draining", "GaveBack"),
        *("Progressed", "Stalled", "Evicted", "Ended", "Paced", "Decided"),
    }
    to = [action.to for e in JournalReader(path) if isinstance(e, Decided) for action in e.actions]
    assert len(to) - to.count("") > 10, "requests are recalled to other replicas"
    assert min(decided) > 10
    outcome = replay(path)
    assert outcome.sessions == 40, "a journal goes on in the same file, a new core each time"
    assert outcome.decisions == sum(decided)


def recorded(path: Path) -> list[Any]:
    """A journal of one history, as parsed lines."""
    core, journal = journaled(path)
    random_history(core, seed=7)
    journal.close()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def dispatching(lines: list[Any]) -> int:
    """Index of a line in the middle that has a dispatch."""
    found = [i for i, line in enumerate(lines) if i and line[0] == "decide" and line[2]]
    return found[len(found) // 2]


# Fields of a recorded action: request, replica, attempt, key, peak in blocks.
@pytest.mark.parametrize(
    ("field", "value"), [(0, "another"), (1, "nobody"), (2, 77), (3, 0.25), (4, 9999)]
)
def test_a_changed_decision_is_found(tmp_path: Path, field: int, value: object) -> None:
    path = tmp_path / "journal"
    lines = recorded(path)
    at = dispatching(lines)
    before = sum(len(line[2]) for line in lines[1:at] if line[0] == "decide")
    lines[at][2][0][field] = value
    write(path, lines)
    outcome = replay(path)
    assert outcome.difference is not None
    assert (outcome.difference.line, outcome.difference.place) == (at + 1, 0)
    assert outcome.decisions == before
    assert outcome.difference.recorded != outcome.difference.replayed
    assert outcome.difference.before[-1] == json.dumps(lines[at - 1], separators=(",", ":"))


def test_another_destination_of_a_recall_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    core, journal = journaled(path, "a_max")
    core.replica_joined(replica("home", blocks=16), 0.0)
    core.submit(request("big"), forecast(), 0.0)
    core.submit(request("waits", cap=60), forecast(20), 0.0)
    core.decide(0.0)
    core.progressed("home", {"big": 190}, 0.0)
    core.replica_joined(replica("other"), 0.0)
    core.stalled("home", {"waits": 0}, 0.0)
    assert core.decide(5.0) == [Recall("waits", "home", to="other")]
    journal.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert replay(path).difference is None
    lines[-1][2][0][5] = "home"
    write(path, lines)
    difference = replay(path).difference
    assert difference is not None
    assert difference.recorded is not None
    assert difference.replayed is not None
    assert (difference.recorded.to, difference.replayed.to) == ("home", "other")


def test_a_missing_and_an_invented_decision_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = recorded(path)
    at = dispatching(lines)
    (action, *_) = lines[at][2]
    lines[at][2] = []
    write(path, lines)
    missing = replay(path).difference
    lines[at][2] = [action, action]
    write(path, lines)
    invented = replay(path).difference
    assert missing is not None
    assert missing.recorded is None
    assert invented is not None
    assert invented.recorded is not None
    assert (invented.place, invented.replayed) == (1, None)


def test_a_changed_event_changes_a_later_decision(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = recorded(path)
    number = lines[dispatching(lines)][2][0][0]
    submit = next(line for line in lines[1:] if line[0] == "submit" and line[2] == number)
    submit[4][0] += 7  # prompt tokens
    write(path, lines)
    assert replay(path).difference is not None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    recorded(path)
    whole = path.read_bytes()
    left = whole[: -min(cut, len(whole.splitlines(keepends=True)[-1]))]
    path.write_bytes(left)
    outcome = replay(path)
    assert outcome.difference is None
    assert outcome.torn == (not left.endswith((b"]", b"]\n")))
    assert outcome.events + outcome.rounds == len(left.splitlines()) - 1 - outcome.torn
    # The next controller goes on in the same file, after the torn line.
    core, journal = journaled(path)
    random_history(core, seed=8)
    journal.close()
    again = replay(path)
    assert (again.sessions, again.torn, again.difference) == (2, outcome.torn, None)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = recorded(path)
    lines[5] = ["decide", "soon"]
    write(path, lines)
    with pytest.raises(JournalError, match="line 6 is damaged"):
        replay(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("hello\n", "line 1 is no header of a journal"),
        (
            '{"tiebreak_journal": 1}\n',
            "journal format 1, but this Tiebreak reads 5: replay it with",
        ),
        ('{"tiebreak_journal": 99}\n', "journal format 99, but this Tiebreak reads 5"),
    ],
)
def test_what_is_no_journal_is_said(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(JournalError, match=words):
        replay(path)


def test_a_missing_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        replay(tmp_path / "nowhere")


def test_keys_that_are_not_finite_are_recorded(tmp_path: Path) -> None:
    endless = Dispatch(request("a"), "b", 1, forecast(), math.inf, 0.0, 3)
    (action,) = recorded_actions([endless])
    journal = Journal(tmp_path / "journal", Header(model="m", policy={}, started_unix_s=0.0))
    journal.add(Decided(0.0, [action]))
    journal.close()
    _, decided = JournalReader(tmp_path / "journal")
    assert decided == Decided(0.0, [action])


@pytest.mark.parametrize("where", ["full", "folder", "forbidden"])
def test_a_file_that_cannot_be_written_costs_the_recording_only(tmp_path: Path, where: str) -> None:
    paths = {
        "full": Path("/dev/full"),
        "folder": tmp_path,
        "forbidden": Path("/proc/none/journal"),
    }
    reasons = {"full": "No space", "folder": "directory", "forbidden": "No such file|denied"}
    core, journal = journaled(paths[where])
    core.replica_joined(replica(), 0.0)
    core.submit(request("a"), forecast(), 0.0)
    assert [type(action) for action in core.decide(0.0)] == [Dispatch]
    for _ in range(6000):
        if not journal.recording:
            break
        time.sleep(0.01)
        core.decide(1.0)
    assert not journal.recording
    assert any(reason in journal.state for reason in reasons[where].split("|"))
    assert core.cancel("a", 2.0)
    assert core.decide(2.0) == [Recall("a", "a")]
    journal.close()


def test_a_request_that_ended_gives_its_number_up(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    core, journal = journaled(path)
    core.replica_joined(replica(), 0.0)
    for end in ("finished", "cancelled", "lost", "refused", "lives"):
        cap = 50_000 if end == "refused" else 200
        with contextlib.suppress(ImpossibleRequestError):
            core.submit(request("a", cap=cap), forecast(), 0.0)
        core.decide(0.0)
        if end == "finished":
            assert core.finished("a", "a", 5, 0.0)
        elif end == "cancelled":
            assert core.cancel("a", 0.0)
        elif end == "lost":
            assert core.replica_lost("a", 0.0) == {"a": 0.0}
            core.replica_joined(replica(), 0.0)
    journal.close()
    numbers = [e.number for e in JournalReader(path) if isinstance(e, Submitted)]
    assert numbers == [0, 1, 2, 3, 4], "the controller keeps no name of what has ended"


def test_a_replay_keeps_no_name_of_what_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    core, journal = journaled(path)
    core.replica_joined(replica(), 0.0)
    for name in ("finished", "waits", "cancelled", "runs"):
        core.submit(request(name), forecast(), 0.0)
        core.decide(0.0)
    assert not core.finished("elsewhere", "runs", 5, 0.0)
    assert core.finished("a", "finished", 5, 0.0)
    assert core.cancel("cancelled", 0.0)
    core.progressed("a", {"runs": 1, "finished": 6, "cancelled": 1}, 0.0)  # told too late
    journal.close()
    reader, again = JournalReader(path), ClusterScheduler(policy("tiebreak"))
    for entry in reader:
        if isinstance(entry, Decided):
            again.decide(entry.now)
        elif not isinstance(entry, Header):
            tell(again, entry, reader)
    assert sorted(reader._requests.values()) == ["runs", "waits"]
