"""Everything that the controller knows of one request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.control import past_wait
from cluster.control.controller_state import ControllerState
from cluster.core.explanation import Standing
from cluster.messages import Submission
from cluster.snapshot import Event, Explanation
from cluster.statistics.finished_row import FinishedRow
from policies.forecast import Forecast

ENDS = {
    "stop": "ended by itself",
    "length": "ended at its cap",
    "abort": "its client wanted no more of it",
    "error": "ended with an error",
}
"""What finish reasons mean."""


class RequestExplainer:
    """Puts together what the scheduling core and the statistics know of a request.

    Args:
        state: The controller's; it is only read.
    """

    def __init__(self, state: ControllerState) -> None:
        self._state = state

    def explain(self, name: str, now: float, tenant: str | None = None) -> Explanation | None:
        """One request; None when nobody knows it.

        Args:
            name: Its id; or the part of it that an HTTP client knows (see `VisibleIds`): then the
                first of these is meant that is open, else the one that ended last.
            now: Seconds.
            tenant: Whose requests may be meant; None: everybody's.
        """
        request_id = self._find(name, tenant)
        if request_id is None:
            return None
        submission = self._state.open.get(request_id)
        standing = self._state.scheduler.explain(request_id, now)
        if submission is not None and standing is not None:
            return self._open(submission, standing, now)
        if (row := self._state.statistics.row(request_id)) is not None:
            return self._finished(row, now)
        orphan = self._state.open.orphaned(request_id)
        return None if orphan is None else self._orphaned(orphan)

    def _find(self, name: str, tenant: str | None) -> str | None:
        owner = self._owner(name)
        if owner is not None and tenant in (None, owner):
            return name
        first_open = self._state.open.visible.first(name, tenant)
        return first_open or self._state.statistics.latest_row(name, tenant)

    def _owner(self, request_id: str) -> str | None:
        """The tenant of a request; None: nobody knows it."""
        opened = self._state.open
        known = (
            opened.get(request_id)
            or opened.orphaned(request_id)
            or self._state.statistics.row(request_id)
        )
        return None if known is None else known.tenant

    def _orphaned(self, submission: Submission) -> Explanation:
        generation = submission.generation
        events = self._state.statistics.events(generation.request_id)
        return Explanation(
            request_id=generation.request_id,
            state="recalled",
            reason="its replica is gone; its client has been told and is to submit it again",
            request_class=submission.request_class.name.lower(),
            tenant=submission.tenant,
            job=submission.job,
            prompt_tokens=submission.prompt_tokens,
            max_tokens=submission.max_tokens,
            output_tokens=generation.generated_tokens,
            events=events,
            **self._so_far(submission),
        )

    def _so_far(self, submission: Submission) -> dict[str, Any]:
        """What its attempts that have ended cost."""
        record = self._state.statistics.record(submission.generation.request_id)
        if record is None:
            return {"evictions": submission.evictions}
        return {
            "evictions": max(submission.evictions, record.evictions, record.evictions_seen),
            "recomputed_tokens": record.recomputed_tokens,
            "energy_joules": record.energy_joules,
            "wasted_joules": record.wasted_joules,
            "energy_source": record.energy_source,
        }

    def _open(self, submission: Submission, standing: Standing, now: float) -> Explanation:
        request = standing.request
        return Explanation(
            request_id=request.request_id,
            state=standing.state,
            reason=standing.reason,
            request_class=request.request_class.name.lower(),
            tenant=request.tenant,
            job=submission.job,
            prompt_tokens=submission.prompt_tokens,
            max_tokens=request.max_tokens,
            output_tokens=standing.output_tokens,
            forecast=standing.forecast,
            key=standing.key,
            position=standing.position,
            position_is_exact=standing.position_is_exact,
            replica_id=standing.replica_id,
            candidates=list(standing.candidates),
            candidates_of=standing.candidates_of,
            events=self._state.statistics.events(request.request_id),
            **self._so_far(submission),
            **self._waited_so_far(request.request_id, now),
        )

    def _waited_so_far(self, request_id: str, now: float) -> dict[str, Any]:
        record = self._state.statistics.record(request_id)
        if record is None or record.is_adopted:
            return {}
        until_s = record.dispatched_s
        return self._waited(
            record.arrived_s, now if until_s is None else until_s, ended=until_s is not None
        )

    def _waited(self, since_s: float, until_s: float, *, ended: bool) -> dict[str, Any]:
        """Its wait in the queue, between seconds of the controller's clock."""
        waited_s = max(until_s - since_s, 0.0)
        lacked = self._state.scheduler.lacked(since_s, until_s)
        return {
            "waited": past_wait.told(waited_s, lacked, ended=ended),
            "waited_s": waited_s,
            "lacked_s": {lack.value: seconds for lack, seconds in lacked.seconds.items()},
        }

    def _finished(self, row: FinishedRow, now: float) -> Explanation:
        events = self._state.statistics.events(row.request_id)
        waited = {}
        if row.dispatched_s is not None:
            # A row has the wall clock's time, in which a step of that clock is an error.
            arrived_s = now - (time.time() - row.arrival_unix_s)
            waited = self._waited(arrived_s, arrived_s + row.dispatched_s, ended=True)
        return Explanation(
            request_id=row.request_id,
            state="finished",
            reason=_end(row, events),
            request_class=row.request_class,
            tenant=row.tenant,
            job=row.job,
            prompt_tokens=row.prompt_tokens,
            max_tokens=row.max_tokens,
            output_tokens=row.output_tokens,
            forecast=_forecast(row),
            replica_id=row.replica_id,
            events=events,
            evictions=row.evictions,
            recomputed_tokens=row.recomputed_tokens,
            energy_joules=row.energy_joules,
            wasted_joules=row.wasted_joules,
            energy_source=row.energy_source,
            **waited,
        )


def _end(row: FinishedRow, events: Sequence[Event]) -> str:
    ago_s = max(time.time() - row.arrival_unix_s - row.finished_s, 0.0)
    refused = [event.detail for event in events if event.what == "refused"]
    if row.finish_reason == "error" and refused:
        return f"was refused {ago_s:.0f} s ago: {refused[-1]}"
    how = ENDS.get(row.finish_reason, row.finish_reason)
    where = f" on {row.replica_id}" if row.replica_id else ""
    return f"{how}{where}, {row.output_tokens:,} output tokens, {ago_s:.0f} s ago"


def _forecast(row: FinishedRow) -> Forecast | None:
    mu, sigma = row.forecast_mu, row.forecast_sigma
    lower, upper = row.forecast_lower, row.forecast_upper
    if mu is None or sigma is None or lower is None or upper is None:
        return None
    return Forecast(mu, sigma, lower, upper, row.forecast_source)
