"""Request ids by what HTTP clients know of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OF_SEVERAL = re.compile(r"(-[^-]+-beam-|[-_])\d+\Z")
"""What vLLM's server adds to the id that it tells, for one of several prompts, turns or beams."""


class VisibleIds:
    """Finds the ids of the gateway's requests by their names.

    Such an id is `NAME-UNIQUE-INDEX` (see `cluster.engine_client`), where the name is what vLLM's
    server calls the request, and clients may choose it: two tenants can use the same one. Adding,
    discarding and finding are O(1). Ids of another form, as jobs have them, take no room.
    """

    def __init__(self) -> None:
        self._ids: dict[tuple[str | None, str], dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, request_id: str, tenant: str) -> None:
        """Know an id, as the latest of its name."""
        for key in _keys(request_id, tenant):
            known = self._ids.setdefault(key, {})
            known.pop(request_id, None)
            known[request_id] = None

    def discard(self, request_id: str, tenant: str) -> None:
        """Forget an id that was added for this tenant."""
        for key in _keys(request_id, tenant):
            known = self._ids.get(key, {})
            known.pop(request_id, None)
            if not known:
                self._ids.pop(key, None)

    def first(self, name: str, tenant: str | None) -> str | None:
        """Of the ids with this name the one that was added first.

        Args:
            name: What vLLM's server calls the request, or tells its client.
            tenant: Whose; None: anybody's.
        """
        return next(iter(self._ids.get((tenant, name), ())), None)

    def latest(self, name: str, tenant: str | None) -> str | None:
        """Like `first`, the one that was added last."""
        return next(reversed(self._ids.get((tenant, name), {})), None)


def _keys(request_id: str, tenant: str) -> Iterator[tuple[str | None, str]]:
    name, *added = request_id.rsplit("-", 2)
    if len(added) < 2 or not added[1].isdecimal():
        return
    for known_as in {name, _OF_SEVERAL.sub("", name)}:
        yield None, known_as
        yield tenant, known_as
