"""The lines of a journal: a header, and events in the words of the scheduling core."""

from __future__ import annotations

from typing import Any

import msgspec

FORMAT = 5
"""Version of the file format; it grows when an older reader would misunderstand a line."""

Ref = int | str
"""A request or replica by its number, or by its id when it is not known (any more)."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Begins a session: what follows was told to a new scheduling core.

    Attributes:
        tiebreak_journal: Version of the format.
        model: Model of the cluster.
        policy: The configuration's `policy` section.
        limits: What may wait (`QueueLimits`); None: everything.
        started_unix_s: Wall-clock time of the start; all other times are the core's own.
    """

    tiebreak_journal: int = FORMAT
    model: str
    policy: dict[str, Any]
    limits: dict[str, int] | None = None
    started_unix_s: float


class Sizes(msgspec.Struct, frozen=True, array_like=True):
    """A `policies.request.Request` without its id."""

    prompt_tokens: int
    max_tokens: int
    arrival_s: float
    request_class: int
    tenant: str
    generated_tokens: int
    output_tokens: int | None


class Length(msgspec.Struct, frozen=True, array_like=True):
    """A `policies.forecast.Forecast`."""

    mu: float
    sigma: float
    lower: int
    upper: int
    source: str


class Submitted(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """`ClusterScheduler.submit`; gives the request its number."""

    now: float
    number: int
    request_id: str
    sizes: Sizes
    forecast: Length
    attempt: int
    strikes: float = 0.0
    accepted: bool = False


class Adopted(msgspec.Struct, frozen=True, array_like=True, tag="adopt"):
    """`ClusterScheduler.adopt`; gives the request its number. An infinite key is None."""

    now: float
    number: int
    request_id: str
    sizes: Sizes
    forecast: Length
    attempt: int
    replica: Ref
    key: float | None
    tokens: int
    strikes: float


class Forecasted(msgspec.Struct, frozen=True, array_like=True, tag="forecast"):
    """`ClusterScheduler.forecast`."""

    now: float
    request: Ref
    forecast: Length


class Cancelled(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """`ClusterScheduler.cancel`."""

    now: float
    request: Ref


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """`ClusterScheduler.replica_joined`; gives the replica its number."""

    now: float
    number: int
    replica_id: str
    kv_blocks: int
    block_size: int
    slots: int
    max_model_len: int
    look_ahead: int
    gives_way: bool = False


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """`ClusterScheduler.replica_lost`."""

    now: float
    replica: Ref
    blame: float


class Draining(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """`ClusterScheduler.replica_draining`."""

    now: float
    replica: Ref


class GaveBack(msgspec.Struct, frozen=True, array_like=True, tag="give_back"):
    """`ClusterScheduler.give_back`."""

    now: float
    replica: Ref


class Progressed(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """`ClusterScheduler.progressed`: (request, output tokens) in the order of the report."""

    now: float
    replica: Ref
    tokens: list[tuple[Ref, int]]


class Stalled(msgspec.Struct, frozen=True, array_like=True, tag="stall"):
    """`ClusterScheduler.stalled`: (request, output tokens) in the order of the report."""

    now: float
    replica: Ref
    tokens: list[tuple[Ref, int]]


class Evicted(msgspec.Struct, frozen=True, array_like=True, tag="evict"):
    """`ClusterScheduler.evicted`."""

    now: float
    replica: Ref
    request: Ref
    tokens: int
    kept: int | None


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="finish"):
    """`ClusterScheduler.finished`."""

    now: float
    replica: Ref
    request: Ref
    tokens: int


class Paced(msgspec.Struct, frozen=True, array_like=True, tag="pace"):
    """`ClusterScheduler.pace_offline`."""

    now: float
    most_running: int | None


class Action(msgspec.Struct, frozen=True, array_like=True):
    """A decided dispatch, or a recall.

    Attributes:
        request: Which request.
        replica: Where.
        attempt: Number of the dispatch; 0 is a recall.
        key: Ordering key of the dispatch; None where it is not finite, and for a recall.
        peak_blocks: Projected peak of the replica with it; 0 for a recall.
        to: Where a recalled request goes on; empty: nowhere, and for a dispatch.
        hand_back: Whether a recalled request is handed back to its client.
    """

    request: Ref
    replica: Ref
    attempt: int = 0
    key: float | None = None
    peak_blocks: int = 0
    to: Ref = ""
    hand_back: bool = False


class Decided(msgspec.Struct, frozen=True, array_like=True, tag="decide"):
    """`ClusterScheduler.decide` and what it returned."""

    now: float
    actions: list[Action]


Event = (
    Submitted
    | Adopted
    | Forecasted
    | Cancelled
    | Joined
    | Lost
    | Draining
    | GaveBack
    | Progressed
    | Stalled
    | Evicted
    | Ended
    | Paced
    | Decided
)
