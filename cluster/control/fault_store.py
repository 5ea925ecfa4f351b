"""Counts of faults that outlive the controller's process: kept by Ray's control store."""

from __future__ import annotations

import msgspec
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from cluster.messages import NAMESPACE
from cluster.statistics.faults import Faults

_KEY = "faults"


def save_faults(faults: Faults) -> None:
    """Write the counts down, when they have changed."""
    if (counts := faults.unsaved()) is not None:
        _internal_kv_put(_KEY, msgspec.json.encode(counts), namespace=NAMESPACE)


def load_faults(faults: Faults) -> None:
    """Go on from the counts that were written down last since the cluster was started."""
    if kept := _internal_kv_get(_KEY, namespace=NAMESPACE):
        faults.load(msgspec.json.decode(kept, type=dict[str, int]))


def forget_faults() -> None:
    """A cluster begins or ends."""
    _internal_kv_del(_KEY, namespace=NAMESPACE)
