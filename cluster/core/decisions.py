"""What the scheduling core answers."""

from __future__ import annotations

from dataclasses import dataclass

from policies.forecast import Forecast
from policies.request import Request
from policies.waiting import Waiting
from replicas.protocol import EngineTerms


class ImpossibleRequestError(ValueError):
    """No replica of the cluster can ever run the request."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start a request on a replica.

    Attributes:
        request: The request, with the output tokens that exist already.
        replica_id: Where to run it.
        attempt: Number of this dispatch of the request, from 1.
        forecast: The forecast the decision was made with.
        key: Its static ordering key.
        queued_s: Seconds it waited.
        peak_blocks: Projected peak of the replica's KV use with it, in blocks.
    """

    request: Request
    replica_id: str
    attempt: int
    forecast: Forecast
    key: float
    queued_s: float
    peak_blocks: int

    @classmethod
    def of(cls, waiting: Waiting, replica_id: str, now: float, peak_blocks: int) -> Dispatch:
        """The dispatch of a request that has waited until `now`, in seconds."""
        return cls(
            request=waiting.request,
            replica_id=replica_id,
            attempt=waiting.attempt,
            forecast=waiting.forecast,
            key=waiting.key,
            queued_s=now - waiting.submitted_s,
            peak_blocks=peak_blocks,
        )

    def terms(self, evictions: int) -> EngineTerms:
        """What the engine's own scheduler decides with, of a request evicted so often before."""
        return EngineTerms(
            mu=self.forecast.mu,
            sigma=self.forecast.sigma,
            lower=self.forecast.lower,
            upper=self.forecast.upper,
            key=self.key,
            arrival_s=self.request.arrival_s,
            precedence=int(self.request.request_class),
            evictions=evictions,
        )


@dataclass(frozen=True, slots=True)
class Recall:
    """Abort a request on a replica.

    Attributes:
        request_id: Which.
        replica_id: Where.
        to: The replica on which it goes on, where its room is kept from now on: the next attempt
            that is submitted is dispatched there. Empty: there is none.
        hand_back: Whether the replica tells the client, which is to submit the next attempt; so it
            is wherever `to` is given. Else the request was cancelled or superseded.
    """

    request_id: str
    replica_id: str
    to: str = ""
    hand_back: bool = False

    def __post_init__(self) -> None:
        if self.to:
            object.__setattr__(self, "hand_back", True)
