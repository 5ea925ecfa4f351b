"""What the dashboards show: one picture of the cluster, taken at most once a second."""

from __future__ import annotations

import msgspec

from cluster.core.candidates import Candidate as Candidate
from cluster.messages import ClusterStatus, ReplicaStatus
from policies.forecast import Forecast
from replicas.protocol import EnergyTotals


class Projection(msgspec.Struct, frozen=True):
    """KV memory of a replica over its next steps, if nothing else is sent there.

    Attributes:
        steps: Steps from now, ascending from 0.
        blocks: Projected blocks in use at each.
    """

    steps: list[int]
    blocks: list[int]


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica.

    Attributes:
        status: What is known of it.
        projection: Its memory ahead.
        tokens_per_s: Output tokens per second over the last few seconds.
        slow: Whether work goes around it.
        report_age_s: Age of its last report in seconds; None: it has not reported.
        bottleneck: Why it would not take the first request of the queue, or without one any more
            requests: `memory`, `slots`, `draining`, `slow`, `too large`, `reserved` or
            `online only` (see `Candidate`); empty: it would.
    """

    status: ReplicaStatus
    projection: Projection
    tokens_per_s: float = 0.0
    slow: bool = False
    report_age_s: float | None = None
    bottleneck: str = ""


class QueueView(msgspec.Struct, frozen=True):
    """What waits of a class.

    Attributes:
        request_class: `online` or `offline`.
        requests: How many.
        predicted_tokens: Output tokens predicted for them.
        running: How many of the class run.
        retry_after_s: When all that waits now should have left the queue.
    """

    request_class: str
    requests: int
    predicted_tokens: int
    running: int
    retry_after_s: float


class WaitingView(msgspec.Struct, frozen=True):
    """A request that waits, with its place and why it waits.

    Attributes:
        request_id: Which.
        request_class: `online` or `offline`.
        tenant: Whose.
        position: Its place in the order of dispatch, from 1.
        key: Its ordering key, smaller first.
        waited_s: Seconds.
        prompt_tokens: Of its prompt, earlier output included.
        max_tokens: Its cap.
        forecast: Of its length.
        reason: Why it waits, in a sentence.
    """

    request_id: str
    request_class: str
    tenant: str
    position: int
    key: float
    waited_s: float
    prompt_tokens: int
    max_tokens: int
    forecast: Forecast
    reason: str


class Distribution(msgspec.Struct, frozen=True):
    """Percentiles of one measure; all 0 without values.

    Attributes:
        count: Values.
        mean: Their mean.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
    """

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


class LatencyView(msgspec.Struct, frozen=True):
    """Percentiles of a group of finished requests over a window.

    Attributes:
        by: What the group shares: `all`, `class`, `tenant`, `replica` or `policy`.
        name: Its value, such as `online`.
        window_s: Length of the window: 60, 300, 900, or 0 since the start.
        requests: Finished requests.
        output_tokens: Their output tokens.
        energy_joules: Energy attributed to them.
        measures: Distributions by name: `queue_s`, `ttft_s`, `latency_s`, `per_token_latency_s`.
        metered_tokens: Output tokens of those whose energy was metered.
    """

    by: str
    name: str
    window_s: int
    requests: int
    output_tokens: int
    energy_joules: float
    measures: dict[str, Distribution]
    metered_tokens: int = 0


class ForecastPoint(msgspec.Struct, frozen=True):
    """A finished request's forecast and what came.

    Attributes:
        median: Forecast median in tokens.
        lower: The interval's lower end.
        upper: The interval's upper end.
        actual: Output tokens.
        censored: Whether its cap ended it, so that it might have gone on.
    """

    median: float
    lower: int
    upper: int
    actual: int
    censored: bool


class HistoryPoint(msgspec.Struct, frozen=True):
    """The cluster at one moment, for curves over time; kept for an hour, ever more thinly.

    Attributes:
        unix_s: When, in seconds of the Unix epoch.
        waiting_online: Requests.
        waiting_offline: Requests.
        running: Requests.
        kv_usage: Share of all KV blocks in use, 0 to 1.
        tokens_per_s: Output tokens per second since the point before.
        ttft_p50_s: Of online requests that finished in the last minute; None: none did.
        ttft_p99_s: The same.
        latency_p50_s: Of all requests that finished in the last minute; None: none did.
        latency_p99_s: The same.
        power_w: Metered or modelled power; None: not measured.
    """

    unix_s: float
    waiting_online: int
    waiting_offline: int
    running: int
    kv_usage: float
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    latency_p50_s: float | None
    latency_p99_s: float | None
    power_w: float | None


class EnergyView(msgspec.Struct, frozen=True):
    """Energy of the cluster since the controller started, replicas that are gone included.

    Attributes:
        totals: Sum of the replicas' books.
        sources: Names of the meters; empty: not measured.
        power_w: Power now; None: not measured.
        power_cap_w: What offline work is paced to; None: no cap.
        joules_per_output_token: Of the requests whose energy was metered; None: not known.
        by_source: The books by meter, in the order of `sources`.
    """

    totals: EnergyTotals
    sources: list[str]
    power_w: float | None = None
    power_cap_w: float | None = None
    joules_per_output_token: float | None = None
    by_source: list[EnergyTotals] = []


class ClusterSnapshot(msgspec.Struct, frozen=True):
    """The cluster now.

    Attributes:
        unix_s: When it was taken, in seconds of the Unix epoch.
        uptime_s: Seconds since the controller's process started.
        status: Counts; its replicas are those of `replicas`.
        replicas: Every replica.
        queues: Both classes.
        head: The first requests of the queue, in their order.
        latencies: Percentiles by group and window.
        forecasts: The latest finished requests' forecasts.
        coverage: Share of recent answers inside their interval; None: not known.
        rank_correlation: Kendall's tau of recent forecasts and lengths; None: not known.
        energy: Energy.
        faults: Counts of what went wrong, by name (see `cluster.statistics.faults`).
        history: Curves over time, oldest first.
    """

    unix_s: float
    uptime_s: float
    status: ClusterStatus
    replicas: list[ReplicaView]
    queues: list[QueueView]
    head: list[WaitingView]
    latencies: list[LatencyView]
    forecasts: list[ForecastPoint]
    coverage: float | None
    rank_correlation: float | None
    energy: EnergyView
    faults: dict[str, int]
    history: list[HistoryPoint]


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a request.

    Attributes:
        at_s: Seconds since it arrived.
        what: `arrived`, `forecast`, `dispatched`, `first token`, `evicted`, `recalled`, `lost`,
            `refused` or `finished`.
        detail: In words, such as the replica and the numbers that decided.
    """

    at_s: float
    what: str
    detail: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """Everything that is known of one request: `tiebreak why`.

    Attributes:
        request_id: Which.
        state: `waiting`, `running`, `recalled` or `finished`.
        reason: In a sentence: why it waits, where it runs, or how it ended.
        request_class: `online` or `offline`.
        tenant: Whose.
        job: The offline job it belongs to; empty: none.
        prompt_tokens: Of the original prompt.
        max_tokens: Its cap.
        output_tokens: So far, as the replica reported last.
        forecast: Of its length; None: not kept.
        key: Its ordering key; None: not kept.
        position: Its place in the queue from 1; None: it does not wait.
        replica_id: Where it runs or ended; empty: nowhere.
        candidates: The replicas considered, the best first, no more than `candidates_of` many.
        candidates_of: How many replicas there are.
        events: What happened to it, in order.
        evictions: So far.
        recomputed_tokens: So far.
        energy_joules: Attributed to it so far; None: not measured or not known yet.
        wasted_joules: The part that computed tokens again.
        energy_source: The meter's name.
        position_is_exact: Whether `position` was found out rather than estimated.
        waited: In a sentence: how long it waited in the queue before its first dispatch, or has
            waited so far, and what the queue lacked; empty: not known.
        waited_s: That time in seconds; None: not known.
        lacked_s: Seconds of it in which the first request of the queue could not start, by what
            that lacked (`cluster.core.lacks.Lack`).
    """

    request_id: str
    state: str
    reason: str
    request_class: str
    tenant: str
    job: str
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    forecast: Forecast | None = None
    key: float | None = None
    position: int | None = None
    replica_id: str = ""
    candidates: list[Candidate] = []
    candidates_of: int = 0
    events: list[Event] = []
    evictions: int = 0
    recomputed_tokens: int = 0
    energy_joules: float | None = None
    wasted_joules: float | None = None
    energy_source: str = "none"
    position_is_exact: bool = True
    waited: str = ""
    waited_s: float | None = None
    lacked_s: dict[str, float] = {}
