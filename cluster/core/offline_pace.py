"""How many offline requests may run at once, when somebody paces them."""

from __future__ import annotations

from cluster.core.moving import MovingRequests
from cluster.core.running import RunningRequests
from policies.request import RequestClass


class OfflinePace:
    """Holds back offline dispatches while as many offline requests run as may.

    What was dispatched is left alone, in an engine's own queue or on its way to another replica,
    and counts as running. Online requests are never held.

    Attributes:
        most_running: Offline requests that may run at once; None: any number.
    """

    def __init__(self, running: RunningRequests, moving: MovingRequests) -> None:
        self.most_running: int | None = None
        self._running = running
        self._moving = moving

    @property
    def running(self) -> int:
        """Offline requests that were dispatched and have not ended."""
        return self._running.count(RequestClass.OFFLINE) + self._moving.offline

    def holds(self, request_class: RequestClass) -> bool:
        """Whether nothing more of a class may be dispatched now."""
        if self.most_running is None or request_class is not RequestClass.OFFLINE:
            return False
        return self.running >= self.most_running
