"""What becomes of requests: told of every event, it makes one row of each that ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from cluster.core.decisions import Dispatch
from cluster.messages import Submission
from cluster.snapshot import Event, ForecastPoint, LatencyView
from cluster.statistics.finished_requests import FinishedRequests, RowListener
from cluster.statistics.finished_row import FinishedRow
from cluster.statistics.latency_groups import LatencyGroups
from cluster.statistics.open_record import OpenRecord, in_words
from cluster.statistics.open_records import OpenRecords
from cluster.statistics.row_ring import RowRing
from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.protocol import Finished, Stalled

LAST_WORD_S = 2.0
"""How long the row of a cancelled request waits for what the attempt cost that ran."""


class Statistics:
    """Keeps a record of each open request, and hands on its row when it ends.

    No IO and no clock: times come in, in seconds of the controller's clock. Every event is O(1). A
    request that is lost or taken back and submitted again keeps its record, whatever its attempt;
    the record of one whose client does not come back is dropped after a while (`sweep`).

    Args:
        policy: Name of the policy bundle.
        rows_kept: Latest rows that can be asked for.
        tenants: Tenants with percentiles of their own.
        replicas: Replicas with percentiles of their own.
        away_s: How long a record waits for its client to submit the request again.

    """

    def __init__(
        self,
        policy: str,
        *,
        rows_kept: int = 10_000,
        tenants: int = 20,
        replicas: int = 64,
        away_s: float = 60.0,
    ) -> None:
        self._policy = policy
        self._away_s = away_s
        self._open = OpenRecords()
        self._closing: OrderedDict[str, tuple[OpenRecord, Submission, float]] = OrderedDict()
        self._finished = FinishedRequests(
            RowRing(rows_kept), LatencyGroups(policy, tenants, replicas)
        )

    # What happens to a request before it runs.

    def submitted(self, submission: Submission, now: float, unix_s: float) -> None:
        """A submission was accepted: a new request, or the next attempt of one that is known.

        Args:
            submission: What its client asked for.
            now: Seconds.
            unix_s: The same moment in seconds of the Unix epoch.
        """
        generation = submission.generation
        self._close_now(generation.request_id)
        record = self._open.get(generation.request_id)
        if record is not None and record.client_id == generation.client_id:
            self._open.came_back(generation.request_id)
            self._open.leave_replica(record)
            if generation.generated_tokens:
                tokens = submission.prompt_tokens + generation.generated_tokens
                record.recomputed_tokens += tokens
            return
        if record is not None:  # another client has taken the id over
            self._open.take(generation.request_id)
        self._open.add(generation.request_id, _new_record(submission, now, unix_s))

    def adopted(self, submission: Submission, replica_id: str, now: float, unix_s: float) -> None:
        """A restarted controller found a request running; what was before is not known."""
        generation = submission.generation
        record = _new_record(submission, now, unix_s)
        record.is_adopted = True
        record.attempts = generation.attempt
        record.evictions_seen = submission.evictions
        record.forecast = generation.terms.forecast if generation.terms else None
        record.note(now, "dispatched", f"{replica_id}, by an earlier controller")
        self._open.add(generation.request_id, record)
        self._open.enter_replica(record, replica_id)

    def forecast_arrived(self, request_id: str, forecast: Forecast, now: float) -> None:
        """The predictor has answered."""
        record = self._open.get(request_id)
        if record is None:
            return
        record.forecast_s = now
        if record.attempts:
            record.note(now, "forecast", in_words(forecast))
        else:
            record.forecast = forecast

    def refused(
        self,
        submission: Submission,
        error: Exception,
        now: float,
        unix_s: float,
        *,
        may_return: bool = False,
    ) -> None:
        """A request will not run.

        Args:
            submission: Which.
            error: Why.
            now: Seconds.
            unix_s: The same moment in seconds of the Unix epoch.
            may_return: Whether its client may submit it again later: a new request then leaves no
                row, so that a flood costs nothing, and one that has run waits for its client.
        """
        request_id = submission.generation.request_id
        record = self._open.take(request_id) or _new_record(submission, now, unix_s)
        if may_return and not record.attempts:
            return
        record.note(now, "refused", str(error))
        if may_return:
            self._open.add(request_id, record)
            self._open.wait_for_client(request_id, now)
        else:
            self._finish(record, submission, now, "error")

    # What happens to it on replicas.

    def dispatched(self, dispatch: Dispatch, now: float) -> None:
        """It is sent to a replica."""
        record = self._open.get(dispatch.request.request_id)
        if record is None:
            return
        record.note(
            now,
            "dispatched",
            f"{dispatch.replica_id}, attempt {dispatch.attempt}, after {dispatch.queued_s:.3f} s "
            f"in the queue, key {dispatch.key:.4g}; projected peak there {dispatch.peak_blocks:,} "
            "blocks",
        )
        if not record.attempts:
            record.dispatched_s = now
            record.forecast = dispatch.forecast
        record.sent_s = now
        record.attempts += 1
        self._open.enter_replica(record, dispatch.replica_id)

    def stalled(self, replica_id: str, stalled: Mapping[str, Stalled], now: float) -> None:
        """What waits inside a replica's engine, evicted there or not started."""
        for request_id, state in stalled.items():
            record = self._open.get(request_id)
            if record is not None and state.evictions > record.evictions_seen:
                record.evictions_seen = state.evictions
                record.note(now, "evicted", f"{replica_id}, with {state.tokens} tokens")

    def recalled(self, request_id: str, from_: str, to: str, now: float) -> None:
        """It is taken back from a replica to go on elsewhere; `to` is empty while nowhere yet."""
        record = self._open.get(request_id)
        if record is None:
            return
        record.recalls += 1
        record.note(now, "recalled", f"from {from_} to {to or 'the queue'}")
        self._open.leave_replica(record)

    def lost(self, request_id: str, replica_id: str, now: float) -> None:
        """Its replica is gone; its client is to submit it again."""
        record = self._open.get(request_id)
        if record is None:
            return
        record.note(now, "lost", f"{replica_id} is gone")
        self._open.leave_replica(record)
        self._open.wait_for_client(request_id, now)

    # How it ends.

    def attempt_ended(self, replica_id: str, finished: Finished, source: str, now: float) -> None:
        """An attempt ended on a replica, whatever becomes of the request: book what it cost.

        Args:
            replica_id: Where.
            finished: The replica's word; the same one again changes nothing.
            source: The replica's meter.
            now: Seconds.
        """
        closing = self._closing.get(finished.request_id)
        record = closing[0] if closing else self._open.get(finished.request_id)
        if record is None or record.client_id != finished.client_id:
            return
        record.book(finished, source, now)
        if closing is not None:
            self._close_now(finished.request_id)

    def ended(
        self, replica_id: str, finished: Finished, submission: Submission, now: float
    ) -> None:
        """The request has ended; `attempt_ended` has been told before."""
        record = self._open.take(finished.request_id)
        if record is None:
            return
        record.replica_id = replica_id
        record.note(
            now, "finished", f"{finished.finish_reason}, {finished.output_tokens} tokens in all"
        )
        self._finish(record, submission, now, finished.finish_reason)

    def cancelled(self, submission: Submission, now: float) -> None:
        """Its client wants no more of it; the row waits a moment for what the attempt cost."""
        request_id = submission.generation.request_id
        record = self._open.get(request_id)
        if record is None:
            return
        runs = record.runs and not record.has_cost(submission.generation.attempt)
        self._open.take(request_id)
        record.note(now, "finished", "its client wants no more of it")
        self._closing[request_id] = record, submission, now
        if not runs:
            self._close_now(request_id)

    def sweep(self, now: float) -> None:
        """Let go what has waited long enough; to be called about once a second."""
        self._open.drop_those_away_since(now - self._away_s)
        while self._closing:
            request_id, (*_, since_s) = next(iter(self._closing.items()))
            if since_s + LAST_WORD_S > now:
                break
            self._close_now(request_id)

    # What is known.

    @property
    def on_row(self) -> list[RowListener]:
        """Called with every row, in this order; one that fails is logged."""
        return self._finished.listeners

    @property
    def dropped(self) -> int:
        """Records whose clients did not come back."""
        return self._open.dropped

    def is_open(self, request_id: str) -> bool:
        """Whether a request is known and has not ended."""
        return request_id in self._open

    def record(self, request_id: str) -> OpenRecord | None:
        """What is kept of a request that has not ended; to be read only."""
        return self._open.get(request_id)

    def running(self, request_class: RequestClass) -> int:
        """Requests of a class that are on a replica and not taken back from it."""
        return self._open.running[request_class]

    def row(self, request_id: str) -> FinishedRow | None:
        """The row of a request that ended; None: it has not, or too long ago."""
        found = self._finished.rows.get(request_id)
        return None if found is None else found[0]

    def rows(self) -> Iterator[str]:
        """The ids of the rows that are kept, the latest first."""
        return iter(self._finished.rows)

    def latest_row(self, name: str, tenant: str | None) -> str | None:
        """The id of the latest row with a name (see `VisibleIds.latest`); None: there is none."""
        return self._finished.rows.visible.latest(name, tenant)

    def events(self, request_id: str) -> list[Event]:
        """What happened to a request, in order; empty for one that is not known."""
        if (record := self._open.get(request_id)) is not None:
            return record.all_events()
        if (closing := self._closing.get(request_id)) is not None:
            return closing[0].all_events()
        found = self._finished.rows.get(request_id)
        return [] if found is None else found[1]

    def latencies(self, now: float) -> list[LatencyView]:
        """Percentiles by group and window; see `LatencyGroups`."""
        return self._finished.latencies.views(now)

    def forecasts(self, count: int) -> list[ForecastPoint]:
        """Forecasts and lengths of the requests that ended last, at most so many."""
        return self._finished.forecasts(count)

    # Its own business.

    def _close_now(self, request_id: str) -> None:
        closing = self._closing.pop(request_id, None)
        if closing is not None:
            record, submission, ended_s = closing
            self._finish(record, submission, ended_s, "abort")

    def _finish(
        self, record: OpenRecord, submission: Submission, ended_s: float, reason: str
    ) -> None:
        row = record.row(submission, self._policy, ended_s, reason)
        events = record.all_events()
        is_timed = not record.is_adopted
        self._finished.add(row, events, submission, ended_s, is_timed=is_timed)


def _new_record(submission: Submission, now: float, unix_s: float) -> OpenRecord:
    is_offline = submission.request_class is RequestClass.OFFLINE
    return OpenRecord(now, unix_s, submission.generation.client_id, is_offline)
