"""What a gateway does about a cluster that it cannot be connected to; no Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.client import NoClusterError
from cluster.endpoint import cluster_link
from cluster.endpoint.cluster_link import ClusterLink, OtherModelError


class Controller:
    """A controller whose configuration is what a test says.

    Args:
        fields: The configuration's.
    """

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    @property
    def config(self) -> Controller:
        """The actor's method of that name."""
        return self

    async def remote(self) -> dict[str, Any]:
        """The configuration."""
        return self._fields


async def checked_forever(link: ClusterLink) -> None:
    """As Serve does it."""
    while True:
        link.check()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"model": "another"}, OtherModelError), ({"field_of_another_version": 1}, ValueError)],
)
async def test_a_gateway_that_cannot_be_connected_any_more_asks_to_be_replaced(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], error: type[Exception]
) -> None:
    monkeypatch.setattr(cluster_link, "connect_controller", lambda: Controller(**fields))
    link = ClusterLink(("a-model", None))
    async with link.connected():
        link.check()
        with pytest.raises(error):
            await asyncio.wait_for(checked_forever(link), 10)
        with pytest.raises(NoClusterError):
            link.client()
