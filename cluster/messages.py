"""Control-plane messages: sizes, counts and names, never per token."""

from __future__ import annotations

import enum

import msgspec

from policies.forecast import Forecast
from policies.request import RequestClass
from predictor.messages import PredictorStats
from replicas.protocol import EnergyTotals, EngineLoad, Generation

NAMESPACE = "tiebreak"
"""Ray namespace of every actor of ours."""

CONTROLLER = "controller"
"""Name of the controller actor in `NAMESPACE`."""


class Submission(msgspec.Struct, frozen=True):
    """A client asks for one generation.

    Attributes:
        generation: What the engine will run; its `attempt` is the dispatch this asks for.
        prompt_tokens: Length of the original prompt, without earlier output.
        max_tokens: Cap on output tokens, counted from the original prompt.
        request_class: Online or offline.
        tenant: Whom the work is accounted to.
        text: What the predictor may read of the prompt (`predictor.excerpt`); empty: nothing, so
            that the prior forecasts. The controller passes it on and keeps none of it.
        evictions: Times engines evicted it in the attempts before this one.
        forecast: Of the answer's length; None: the cluster makes one.
        strikes: How far it is suspected of having killed engines (see `cluster.core.suspects`).
        trace: `traceparent` of W3C's Trace Context, as its caller gave it; empty: none.
        job: The offline job that it belongs to; empty: none.
        accepted: Whether an earlier controller had accepted this attempt: no full queue refuses it.
    """

    generation: Generation
    prompt_tokens: int
    max_tokens: int
    request_class: RequestClass = RequestClass.ONLINE
    tenant: str = "default"
    text: str = ""
    evictions: int = 0
    forecast: Forecast | None = None
    strikes: float = 0.0
    trace: str = ""
    job: str = ""
    accepted: bool = False


class Dispatched(msgspec.Struct, frozen=True):
    """Controller to client: the request runs on this replica now; ask there for its tokens."""

    request_id: str
    attempt: int
    replica_id: str
    queued_s: float
    forecast: Forecast


class Cause(enum.StrEnum):
    """Why a request ended with an error."""

    IMPOSSIBLE = "impossible"
    """No replica can ever run it, or the engine refuses it."""
    OVERLOADED = "overloaded"
    """The queue is full; later it may run."""
    UNAVAILABLE = "unavailable"
    """No replica serves, and none came in time."""
    EXPIRED = "expired"
    """Its own time limit passed."""
    POISON = "poison"
    """Engines die of it."""
    FAILED = "failed"
    """Anything else."""


class Refused(msgspec.Struct, frozen=True):
    """Controller to client: the request will not run.

    Attributes:
        request_id: Which.
        error: Why, in words.
        cause: Why.
        retry_after_s: When it may be asked again, for `Cause.OVERLOADED`.
        attempt: The attempt that is meant.
    """

    request_id: str
    error: str
    cause: Cause = Cause.IMPOSSIBLE
    retry_after_s: float = 0.0
    attempt: int = 0


class Orphaned(msgspec.Struct, frozen=True):
    """Controller to client: these requests' replica is gone; submit them again with what came.

    Attributes:
        replica_id: Which replica.
        attempts: The attempt that was lost, by request id.
        strikes: Suspicion of each that is suspected now (see `Submission.strikes`), by request id.
    """

    replica_id: str
    attempts: dict[str, int]
    strikes: dict[str, float] = {}


class Dropped(msgspec.Struct, frozen=True):
    """Controller to client: you were silent for so long that this was given up; submit it again.

    Attributes:
        attempts: The attempt that was given up, by request id.
    """

    attempts: dict[str, int]


class ClusterLoad(msgspec.Struct, frozen=True):
    """Controller to the clients that follow it: what a new online request would meet.

    Attributes:
        waiting: Online requests in the queue.
        waiting_tokens: Output tokens predicted for them.
        most_waiting: `waiting` from which on new ones are refused.
        most_waiting_tokens: `waiting_tokens` from which on new ones are refused.
        most_waiting_offline: Offline requests from which on new ones of theirs are refused.
        retry_after_s: Whole seconds in which all that waits now should have left the queue.
        serving: Replicas that run requests.
        coming: Replicas that are being started, or would be for a request that waits.
        largest_request: Tokens (prompt and output) of the largest request any replica can hold; 0:
            no replica has told yet.
    """

    waiting: int = 0
    waiting_tokens: int = 0
    most_waiting: int = 0
    most_waiting_tokens: int = 0
    most_waiting_offline: int = 0
    retry_after_s: int = 1
    serving: int = 0
    coming: int = 0
    largest_request: int = 0


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One replica in a status answer."""

    replica_id: str
    state: str
    node: str = ""
    cores: list[int] = []
    gpus: list[str] = []
    model: str = ""
    engine: str = ""
    kv_blocks: int = 0
    block_size: int = 0
    slots: int = 0
    running: int = 0
    used_blocks: int = 0
    projected_peak_blocks: int = 0
    engine_load: EngineLoad = EngineLoad()
    energy: EnergyTotals = EnergyTotals()
    error: str = ""


class ClusterStatus(msgspec.Struct, frozen=True):
    """What the controller knows now, with totals since it started.

    Attributes:
        policy: Name of the policy bundle.
        model: What the replicas run.
        waiting: Requests in the queue.
        running: Requests dispatched, and those on their way from one replica to another.
        finished: Requests that ended.
        refused: Requests that were refused, each time they were.
        preemptions: Times an engine evicted a request.
        recomputed_tokens: Tokens whose KV was computed again: after an eviction, or on the replica
            where a recalled request goes on.
        clients: Clients that are connected.
        replicas: Every replica.
        predictor: In words what `predictors` counted.
        journal: State of the journal; empty: none is kept.
        predictors: The latest news of each predictor.
        recalls: Times a request was taken back from the replica whose engine had it wait, because
            another one had room.
        dispatched: Times a request was sent to a replica.
        rows: State of the files of finished requests; empty: none are written.
    """

    policy: str
    model: str
    waiting: int
    running: int
    finished: int
    refused: int
    preemptions: int
    recomputed_tokens: int
    clients: int
    replicas: list[ReplicaStatus]
    predictor: str
    journal: str = ""
    predictors: list[PredictorStats] = []
    recalls: int = 0
    dispatched: int = 0
    rows: str = ""
