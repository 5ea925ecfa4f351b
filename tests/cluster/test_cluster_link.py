"""What a gateway does about a cluster that it cannot be connected to; no Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.client import NoClusterError
from cluster.config import parse_config
from cluster.endpoint import cluster_link
from cluster.endpoint.cluster_link import ClusterLink, OtherModelError, model_of


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


class SlowClient:
    """A client that takes its time to connect and then stays."""

    def __init__(self, controller: Any, **options: Any) -> None: ...

    async def __aenter__(self) -> SlowClient:
        await asyncio.sleep(0.2)
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def lost(self) -> str:
        """Never."""
        await asyncio.Event().wait()
        return ""


async def test_a_gateway_does_not_begin_before_it_is_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that joins others at a busy port would refuse its first requests."""
    monkeypatch.setattr(cluster_link, "connect_controller", lambda: Controller(model="a-model"))
    monkeypatch.setattr(cluster_link, "ClusterClient", SlowClient)
    link = ClusterLink(model_of(parse_config({"model": "a-model"})))
    async with link.connected():
        assert isinstance(link.client(), SlowClient)


async def test_a_gateway_begins_all_the_same_where_no_cluster_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def connect() -> Any:
        raise NoClusterError("none")

    monkeypatch.setattr(cluster_link, "connect_controller", connect)
    monkeypatch.setattr(cluster_link, "FIRST_CONNECTION_S", 0.1)
    link = ClusterLink(("a-model", None))
    async with link.connected():
        link.check()
        with pytest.raises(NoClusterError):
            link.client()


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
        with pytest.raises(error):
            link.check()
        with pytest.raises(NoClusterError):
            link.client()
