"""The controller's side of its clients: mailboxes, who is gone, who follows the load."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from cluster.messages import ClusterLoad, Dispatched, Dropped, Orphaned, Refused
from replicas.outbox import Outbox

LONG_POLL_S = 10.0
"""Longest that a client's call waits for events before it is answered with none; a quarter of the
client timeout if that is less."""

SLEEPERS = 1024
"""Silent clients of which it is still known what was given up."""

Event = Dispatched | Refused | Orphaned | Dropped | ClusterLoad


class Clients:
    """An outbox for each client that was heard of within the client timeout.

    Args:
        timeout_s: Silence after which a client counts as lost.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._outboxes: dict[str, Outbox[Event]] = {}
        self._dropped: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._followers: dict[str, ClusterLoad | None] = {}

    def __len__(self) -> int:
        return len(self._outboxes)

    def meet(self, client_id: str) -> Outbox[Event]:
        """The client's outbox, from now on if it had none."""
        outbox = self._outboxes.get(client_id)
        if outbox is None:
            outbox = self._outboxes[client_id] = Outbox()
        return outbox

    def tell(self, client_id: str, events: Iterable[Event]) -> None:
        """Put events into a client's outbox."""
        self.meet(client_id).put(events)

    async def take(
        self, client_id: str, received: int, *, follows_load: bool
    ) -> tuple[int, list[Event]]:
        """Long poll: the next batch of a client's events (see `Outbox.take`)."""
        if (attempts := self._dropped.pop(client_id, None)) is not None:
            self.tell(client_id, [Dropped(attempts)])
        if follows_load:
            self._followers.setdefault(client_id, None)
        poll_s = min(LONG_POLL_S, self._timeout_s / 4)
        return await self.meet(client_id).take(received, poll_s)

    def tell_load(self, load: ClusterLoad) -> None:
        """Tell those that follow the load, unless that is what they were told last."""
        for client_id, told in self._followers.items():
            if told != load:
                self._followers[client_id] = load
                self.tell(client_id, [load])

    @property
    def follow_load(self) -> bool:
        """Whether anybody follows the load."""
        return bool(self._followers)

    def leave(self, client_id: str) -> None:
        """A client says goodbye."""
        self._outboxes.pop(client_id, None)
        self._dropped.pop(client_id, None)
        self._followers.pop(client_id, None)

    def take_out_lost(self) -> list[str]:
        """Forget the clients that have been silent for too long; returns their ids."""
        lost = [c for c, o in self._outboxes.items() if o.idle_s() > self._timeout_s]
        for client_id in lost:
            self.leave(client_id)
        return lost

    def gave_up(self, client_id: str, attempts: dict[str, int]) -> None:
        """Remember what was given up of a lost client, should it only have been asleep."""
        self._dropped[client_id] = attempts
        if len(self._dropped) > SLEEPERS:
            self._dropped.popitem(last=False)
