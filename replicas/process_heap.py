"""What a process has loaded for good, kept out of Python's garbage collections."""

from __future__ import annotations

import functools
import gc


@functools.cache
def freeze_heap() -> None:
    """Leave all that exists now out of collections; for a process that is ready to serve, once.

    A full collection visits every object, and the modules that we load (Ray, numba, torch, vLLM)
    have about a million: it stops a process for a tenth of a second, and with it every stream that
    passes. vLLM does the same in its engine and its server.
    """
    gc.collect()
    gc.freeze()
