"""Makers of what the policies work on, with a default for every column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies import RequestBatch


def make_batch(**columns: ArrayLike) -> RequestBatch:
    """A batch of the given columns, the others filled with a constant."""
    defaults: dict[str, tuple[float, type]] = {
        "prompt_tokens": (10, np.int64),
        "max_tokens": (2048, np.int64),
        "generated_tokens": (0, np.int64),
        "arrival_s": (0.0, np.float64),
        "mu": (5.0, np.float64),
        "sigma": (0.5, np.float64),
        "lower": (1, np.int64),
        "upper": (2048, np.int64),
        "output_tokens": (0, np.int64),
    }
    if unknown := columns.keys() - defaults.keys():
        raise ValueError(f"RequestBatch has no columns {sorted(unknown)}")
    arrays: dict[str, NDArray[Any]] = {
        n: np.asarray(columns.get(n, v), t) for n, (v, t) in defaults.items()
    }
    shape = np.broadcast_shapes((1,), *(a.shape for a in arrays.values()))
    return RequestBatch(**{n: np.broadcast_to(a, shape).copy() for n, a in arrays.items()})
