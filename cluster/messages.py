"""Control-plane messages: sizes, counts and names, never per token."""

from __future__ import annotations

import msgspec

from policies.forecast import Forecast
from policies.request import RequestClass
from replicas.protocol import EngineLoad, Generation

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
    """

    generation: Generation
    prompt_tokens: int
    max_tokens: int
    request_class: RequestClass = RequestClass.ONLINE
    tenant: str = "default"


class Dispatched(msgspec.Struct, frozen=True):
    """Controller to client: the request runs on this replica now; ask there for its tokens."""

    request_id: str
    attempt: int
    replica_id: str
    queued_s: float
    forecast: Forecast


class Refused(msgspec.Struct, frozen=True):
    """Controller to client: the request will not run, for a reason that a retry cannot mend."""

    request_id: str
    error: str


class Orphaned(msgspec.Struct, frozen=True):
    """Controller to client: these requests' replica is gone; submit them again with what came."""

    replica_id: str
    request_ids: list[str]


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
    total_joules: float | None = None
    energy_source: str = ""
    error: str = ""


class ClusterStatus(msgspec.Struct, frozen=True):
    """What the controller knows now."""

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
