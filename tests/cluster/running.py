"""A controller in this process, without Ray."""

from cluster.controller import Controller


class Running(Controller):
    """Nobody starts it: replicas join when the test says so, and it decides when it is told to."""

    async def start(self) -> None:
        """Nothing is to be brought up."""
