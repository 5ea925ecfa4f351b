"""What of a snapshot a viewer is shown, as JSON."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cluster.endpoint.dashboard_feed import Shot
from cluster.snapshot import ClusterSnapshot, LatencyView, ReplicaView
from cluster.summary import Summary, by_pressure, queue_in_words, summarise

SHOWN_REPLICAS = 60
"""Replicas that a stream tells of unless all are asked for: the fullest ones."""

MOST_VIEWS = 64
"""Different views of one snapshot that are kept."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks, and at what.

    Attributes:
        tenant: Whose requests are shown; None: everybody's.
        most_replicas: Replicas that are shown, the fullest; None: all.
        by: Of the percentiles, those by this (see `LatencyView.by`) and of all; empty: every one.
        window_s: Of the percentiles, those over this window; None: every one.
    """

    tenant: str | None = None
    most_replicas: int | None = None
    by: str = ""
    window_s: int | None = None

    def may_see(self, tenant: str) -> bool:
        """Whether a tenant's requests are shown."""
        return self.tenant is None or self.tenant == tenant

    def wants(self, view: LatencyView) -> bool:
        """Whether percentiles are shown."""
        own = view.by != "tenant" or self.may_see(view.name)
        named = view.by in (self.by, "all") or not self.by
        return own and named and self.window_s in (None, view.window_s)


class ShownSnapshot(ClusterSnapshot, frozen=True):
    """A snapshot as it is shown.

    Attributes:
        summary: The snapshot in words.
        replica_count: How many replicas there are, shown or not.
        tenant: Whose requests are shown; None: everybody's.
    """

    summary: Summary
    replica_count: int
    tenant: str | None


@dataclass(frozen=True, slots=True)
class Scene:
    """A snapshot with what is the same for everybody who looks at it.

    Attributes:
        snapshot: The snapshot.
        replicas: Its replicas, the fullest first.
        summary: All of it in words.
    """

    snapshot: ClusterSnapshot
    replicas: Sequence[ReplicaView]
    summary: Summary

    @classmethod
    def of(cls, snapshot: ClusterSnapshot) -> Scene:
        """Order the replicas and put the snapshot into words."""
        return cls(snapshot, by_pressure(snapshot.replicas), summarise(snapshot))


class Views:
    """The latest snapshot, made into bytes once for each kind of viewer."""

    def __init__(self) -> None:
        self._number = -1
        self._scene: Scene | None = None
        self._encoded: OrderedDict[Viewer, bytes] = OrderedDict()

    def encoded(self, shot: Shot, viewer: Viewer) -> bytes:
        """JSON of a `ShownSnapshot`."""
        assert shot.snapshot is not None, "errors are told otherwise"
        if self._scene is None or shot.number != self._number:
            self._number, self._scene = shot.number, Scene.of(shot.snapshot)
            self._encoded.clear()
        if viewer not in self._encoded:
            if len(self._encoded) >= MOST_VIEWS:
                self._encoded.popitem(last=False)
            self._encoded[viewer] = msgspec.json.encode(shown(self._scene, viewer))
        return self._encoded[viewer]


def shown(scene: Scene, viewer: Viewer) -> ShownSnapshot:
    """A snapshot without what a viewer may not see or does not look at.

    A tenant sees counts, its own requests, and replicas without the machines they run on. What the
    status says in words may name files and errors: that is for operators.
    """
    snapshot, summary = scene.snapshot, scene.summary
    replicas = scene.replicas[: viewer.most_replicas]
    if viewer.tenant is not None:
        snapshot = _of_tenant(snapshot, viewer)
        summary = msgspec.structs.replace(summary, queue=queue_in_words(snapshot))
        replicas = [_without_place(view) for view in replicas]
    fields: dict[str, Any] = msgspec.structs.asdict(snapshot)
    fields["replicas"] = replicas
    fields["latencies"] = [view for view in snapshot.latencies if viewer.wants(view)]
    fields["status"] = msgspec.structs.replace(snapshot.status, replicas=[])
    return ShownSnapshot(
        **fields,
        summary=summary,
        replica_count=len(snapshot.replicas),
        tenant=viewer.tenant,
    )


def _of_tenant(snapshot: ClusterSnapshot, viewer: Viewer) -> ClusterSnapshot:
    return msgspec.structs.replace(
        snapshot,
        status=msgspec.structs.replace(
            snapshot.status, journal="", rows="", predictor="", predictors=[]
        ),
        head=[waiting for waiting in snapshot.head if viewer.may_see(waiting.tenant)],
    )


def _without_place(view: ReplicaView) -> ReplicaView:
    error = "it failed; the operators see why" if view.status.error else ""
    status = msgspec.structs.replace(view.status, node="", cores=[], gpus=[], error=error)
    return msgspec.structs.replace(view, status=status)
