"""Calls that are repeated until they are answered, without Ray."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ray import exceptions

from cluster import asking
from cluster.asking import ask


class Method:
    """An actor's method that fails some times before it answers.

    Args:
        failures: What it raises, one after another.
    """

    def __init__(self, failures: Sequence[Exception]) -> None:
        self._failures = list(failures)

    async def remote(self, number: int) -> int:
        """Answer with a number."""
        if self._failures:
            raise self._failures.pop(0)
        return number


async def test_an_answer_that_is_lost_on_its_way_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "NO_ROOM_RETRY_S", 0.0)
    monkeypatch.setattr(asking, "UNAVAILABLE_RETRY_S", 0.0)
    lost = "00" * 28
    failures = [
        exceptions.ActorUnavailableError("out of reach", None),
        exceptions.ObjectStoreFullError("full"),
        exceptions.OutOfDiskError("full"),
        exceptions.ObjectFetchTimedOutError(lost, b"", ""),
        exceptions.ObjectLostError(lost, b"", ""),
    ]
    assert await ask(Method(failures), 7) == 7


async def test_the_end_of_an_actor_is_told() -> None:
    with pytest.raises(exceptions.RayActorError):
        await ask(Method([exceptions.RayActorError()]), 7)
