"""`tiebreak replay`: a recorded journal through a new scheduling core, decision by decision."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from cluster import journal_events as events
from cluster.config import ConfigError, parse_config
from cluster.journal_events import Action, Event, Header, Length
from cluster.journal_reader import JournalError, JournalReader
from cluster.journaled_scheduler import recorded_actions
from cluster.scheduler import (
    ClusterScheduler,
    ImpossibleRequestError,
    PoisonedRequestError,
    QueueFullError,
    QueueLimits,
)
from jobs.errors import InputError
from policies.forecast import Forecast
from policies.ledger import Replica
from policies.request import Request, RequestClass

CONTEXT_LINES = 8
"""Events shown before the first difference."""

console = Console()


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision that came out otherwise.

    Attributes:
        line: Line of the journal.
        place: Index of the action among those of its `decide`.
        recorded: The action there; None: the replay decided more.
        replayed: The same, of the replay; None: the replay decided less.
        before: What was recorded up to it, the newest last, as JSON.
    """

    line: int
    place: int
    recorded: Action | None
    replayed: Action | None
    before: tuple[str, ...]


@dataclass(slots=True)
class Replayed:
    """What a replay came to.

    Attributes:
        policy: Of the session that was replayed last.
        sessions: Starts of a controller.
        events: Things the scheduling core was told.
        rounds: Calls of `decide` that came out equal.
        decisions: Actions that came out equal.
        torn: Lines that were cut off when a controller died.
        difference: The first one; the replay ended there.
    """

    policy: str = ""
    sessions: int = 0
    events: int = 0
    rounds: int = 0
    decisions: int = 0
    torn: int = 0
    difference: Difference | None = None


def replay(path: Path) -> Replayed:
    """Drive a new scheduling core through a journal and compare all that it decides.

    Raises:
        JournalError: The journal cannot be read.
        ConfigError: It was recorded under a policy that is not known here.
    """
    reader = JournalReader(path)
    outcome = Replayed()
    scheduler: ClusterScheduler | None = None
    context: deque[str] = deque(maxlen=CONTEXT_LINES)
    for entry in reader:
        if isinstance(entry, Header):
            scheduler = _core(entry)
            outcome.policy = scheduler.policy.name
            outcome.sessions += 1
            context.clear()
            continue
        assert scheduler is not None, "a reader yields a header first"
        if isinstance(entry, events.Decided):
            recorded = [_named(action, reader) for action in entry.actions]
            replayed = recorded_actions(scheduler.decide(entry.now))
            outcome.decisions += _equal(recorded, replayed)
            if recorded != replayed:
                outcome.difference = _difference(reader.line, recorded, replayed, context)
                break
            outcome.rounds += 1
        else:
            tell(scheduler, entry, reader)
            outcome.events += 1
        context.append(msgspec.json.encode(entry).decode())
    outcome.torn = reader.torn
    return outcome


def tell(scheduler: ClusterScheduler, event: Event, reader: JournalReader) -> None:
    """Tell a scheduling core what was recorded."""
    request_id, replica_id = reader.request_id, reader.replica_id
    match event:
        case events.Submitted():
            request = _request(event)
            # It was refused when it was recorded, too: nothing was queued.
            with contextlib.suppress(ImpossibleRequestError, QueueFullError, PoisonedRequestError):
                scheduler.submit(
                    request,
                    _forecast(event.forecast),
                    event.now,
                    attempt=event.attempt,
                    strikes=event.strikes,
                    accepted=event.accepted,
                )
        case events.Adopted():
            scheduler.adopt(
                _request(event),
                _forecast(event.forecast),
                event.now,
                replica_id=replica_id(event.replica),
                attempt=event.attempt,
                key=math.inf if event.key is None else event.key,
                tokens=event.tokens,
                strikes=event.strikes,
            )
        case events.Forecasted():
            scheduler.forecast(request_id(event.request), _forecast(event.forecast), event.now)
        case events.Cancelled():
            scheduler.cancel(request_id(event.request), event.now)
            reader.forget(event.request)
        case events.Joined():
            scheduler.replica_joined(
                Replica(
                    event.replica_id,
                    event.kv_blocks,
                    event.block_size,
                    event.slots,
                    event.max_model_len,
                    event.look_ahead,
                    event.gives_way,
                ),
                event.now,
            )
        case events.Lost():
            scheduler.replica_lost(replica_id(event.replica), event.now, blame=event.blame)
        case events.Draining():
            scheduler.replica_draining(replica_id(event.replica), event.now)
        case events.GaveBack():
            scheduler.give_back(replica_id(event.replica), event.now)
        case events.Progressed():
            tokens = {request_id(request): count for request, count in event.tokens}
            scheduler.progressed(replica_id(event.replica), tokens, event.now)
        case events.Stalled():
            tokens = {request_id(request): count for request, count in event.tokens}
            scheduler.stalled(replica_id(event.replica), tokens, event.now)
        case events.Evicted():
            replica, request_name = replica_id(event.replica), request_id(event.request)
            scheduler.evicted(replica, request_name, event.tokens, event.now, kept=event.kept)
        case events.Ended():
            replica, request_name = replica_id(event.replica), request_id(event.request)
            if scheduler.finished(replica, request_name, event.tokens, event.now):
                reader.forget(event.request)
        case events.Paced():
            scheduler.pace_offline(event.most_running, event.now)


def replay_command(
    path: Annotated[Path, typer.Argument(metavar="JOURNAL", help="A cluster's `journal` file.")],
) -> None:
    """Decide again what a journal recorded; exit status 1 when a decision differs."""
    try:
        outcome = replay(path)
    except (JournalError, ConfigError) as error:
        raise InputError(str(error)) from None
    console.print(
        f"policy {outcome.policy}: {outcome.decisions:,} decisions in {outcome.rounds:,} rounds "
        f"equal, after {outcome.events:,} events in {outcome.sessions:,} sessions",
        highlight=False,
    )
    if outcome.torn:
        console.print(
            f"{outcome.torn:,} lines were cut off when their controller died, and left out",
            highlight=False,
        )
    if outcome.difference is not None:
        _print_difference(path, outcome.difference)
        raise typer.Exit(1)


def _print_difference(path: Path, difference: Difference) -> None:
    lines = [
        f"first difference: {path}, line {difference.line}, action {difference.place + 1}",
        f"  recorded: {_told(difference.recorded)}",
        f"  replayed: {_told(difference.replayed)}",
        "before it:",
        *(f"  {line}" for line in difference.before),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _told(action: Action | None) -> str:
    if action is None:
        return "nothing"
    if not action.attempt:
        goes_on = f", to go on at {action.to}" if action.to else ""
        how = "hand back" if action.hand_back else "abort"
        return f"{how} {action.request} on {action.replica}{goes_on}"
    return (
        f"dispatch {action.request} to {action.replica}, attempt {action.attempt}, "
        f"key {action.key!r}, peak {action.peak_blocks} blocks"
    )


def _core(header: Header) -> ClusterScheduler:
    config = parse_config({"policy": header.policy}, "the journal")
    return ClusterScheduler(
        config.build_policy(),
        limits=None if header.limits is None else QueueLimits(**header.limits),
        fair_share=config.policy.fair_share,
    )


def _named(action: Action, reader: JournalReader) -> Action:
    return msgspec.structs.replace(
        action,
        request=reader.request_id(action.request),
        replica=reader.replica_id(action.replica),
        to=reader.replica_id(action.to),
    )


def _equal(recorded: list[Action], replayed: list[Action]) -> int:
    """How many actions are equal before the first that is not."""
    for place, (one, other) in enumerate(zip(recorded, replayed, strict=False)):
        if one != other:
            return place
    return min(len(recorded), len(replayed))


def _difference(
    line: int, recorded: list[Action], replayed: list[Action], context: deque[str]
) -> Difference:
    place = _equal(recorded, replayed)
    return Difference(
        line,
        place,
        recorded[place] if place < len(recorded) else None,
        replayed[place] if place < len(replayed) else None,
        tuple(context),
    )


def _request(event: events.Submitted | events.Adopted) -> Request:
    sizes = event.sizes
    return Request(
        request_id=event.request_id,
        prompt_tokens=sizes.prompt_tokens,
        max_tokens=sizes.max_tokens,
        arrival_s=sizes.arrival_s,
        request_class=RequestClass(sizes.request_class),
        tenant=sizes.tenant,
        generated_tokens=sizes.generated_tokens,
        output_tokens=sizes.output_tokens,
    )


def _forecast(length: Length) -> Forecast:
    return Forecast(length.mu, length.sigma, length.lower, length.upper, length.source)
