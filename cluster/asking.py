"""Calls to actors of ours that are repeated until they are answered."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import ray
from ray import exceptions

logger = logging.getLogger(__name__)

UNAVAILABLE_RETRY_S = 0.1
"""Pause before an actor that is out of reach is asked again."""

NO_ROOM_RETRY_S = 1.0
"""Pause before a message is sent again that the object store or its disk had no room for, or
lost."""


async def ask(method: Any, *args: Any) -> Any:
    """The actor's answer, asked for again while its process is alive but out of reach.

    Every call of ours may be repeated: submissions by request id, polls by batch number, orders by
    their own number.

    Raises:
        RayActorError: The actor has died.
    """
    while True:
        try:
            return await method.remote(*args)
        except exceptions.ActorUnavailableError:
            await asyncio.sleep(UNAVAILABLE_RETRY_S)
        except (
            exceptions.ObjectStoreFullError,
            exceptions.OutOfDiskError,
            exceptions.ObjectLostError,
        ) as error:
            # A large message, or a large answer, goes through the object store.
            logger.warning("the object store did not carry a message, trying again: %s", error)
            await asyncio.sleep(NO_ROOM_RETRY_S)


def asked(method: Any, *args: Any) -> Any:
    """Like `ask`, without asyncio."""
    while True:
        try:
            return ray.get(method.remote(*args))
        except exceptions.ActorUnavailableError:
            time.sleep(UNAVAILABLE_RETRY_S)
