"""What one round of decisions tells one replica."""

from __future__ import annotations

import msgspec

from cluster.control.tickets import ticket_of
from cluster.messages import Submission
from cluster.scheduler import Dispatch
from replicas.protocol import Generation

RANKS = float(1 << 51)
"""Bound on a request's rank within its class, so that classes stay apart whatever a user's ordering
gives: an infinity, or what is no number, has no integer."""


class Orders(msgspec.Struct):
    """What a replica is told to do, in this order.

    Attributes:
        aborts: Requests that nobody wants there any more.
        recalls: Requests to hand back to their clients, with the attempt that is meant.
        starts: Requests to start.
    """

    aborts: list[str] = []
    recalls: dict[str, int] = {}
    starts: list[Generation] = []

    def start(self, submission: Submission, dispatch: Dispatch, trace: str = "") -> None:
        """Add a dispatch, with what the engine's scheduler decides by: ours, or vLLM's own.

        The latter takes an integer: microseconds, or millionths of the log score; when memory runs
        out it preempts the last.

        Args:
            submission: Of the request.
            dispatch: What was decided.
            trace: See `Generation.trace`.
        """
        within_class = min(RANKS, max(-RANKS, dispatch.key * 1e6))
        rank = int(within_class) + (int(dispatch.request.request_class) << 52)
        terms = dispatch.terms(submission.evictions)
        generation = msgspec.structs.replace(
            submission.generation, priority=rank, terms=terms, trace=trace
        )
        ticket = ticket_of(submission, generation)
        self.starts.append(msgspec.structs.replace(generation, ticket=ticket))
