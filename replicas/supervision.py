"""Ends a replica's process when a part of it fails: half a replica would answer and do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from replicas.protocol import EngineDeadError

logger = logging.getLogger(__name__)

LAST_WORDS_S = 1.0
"""Longest that a replica whose engine died takes to say so."""


async def supervise(part: Callable[[], Awaitable[None]], replica_id: str, controller: Any) -> None:
    """Run a part of a replica, and end the process if it fails.

    The controller is told of an engine that died, since a request may have killed it. Another
    failure is the replica's own: it merely vanishes, which is less suspicious.
    """
    try:
        await part()
    except EngineDeadError:
        logger.exception("replica %s: the engine died, so this process ends", replica_id)
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(LAST_WORDS_S):
                await controller.engine_died.remote(replica_id)
        os._exit(1)
    except Exception:
        logger.exception("replica %s: a part of it failed, so this process ends", replica_id)
        os._exit(1)
