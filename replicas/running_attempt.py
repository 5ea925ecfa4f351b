"""What a replica keeps of a request while it runs."""

from __future__ import annotations

from replicas.energy_account import RequestEnergy
from replicas.protocol import Delta, Finished, Generation, Held, Stalled


class RunningAttempt:
    """One attempt of a request on this replica: whose it is, and what has been counted.

    Args:
        generation: What was asked for.
        accepted_s: When, in seconds of a steady clock.
    """

    __slots__ = (
        "accepted_s",
        "attempt",
        "client_id",
        "earlier_evictions",
        "first_token_s",
        "interactive",
        "output_tokens",
        "preemptions",
        "recomputed_tokens",
        "ticket",
    )

    def __init__(self, generation: Generation, accepted_s: float) -> None:
        self.accepted_s = accepted_s
        self.attempt = generation.attempt
        self.client_id = generation.client_id
        self.interactive = generation.interactive
        self.ticket = generation.ticket
        self.output_tokens = generation.generated_tokens
        self.earlier_evictions = generation.terms.evictions if generation.terms else 0
        self.first_token_s: float | None = None
        self.preemptions = 0
        self.recomputed_tokens = 0

    def produced(self, delta: Delta) -> None:
        """Note what a delta of it says."""
        self.output_tokens += len(delta.token_ids)
        self.preemptions = max(self.preemptions, delta.preemptions)
        self.recomputed_tokens = max(self.recomputed_tokens, delta.recomputed_tokens)
        if self.first_token_s is None:
            self.first_token_s = delta.first_token_s

    def stalled(self, state: Stalled) -> None:
        """Note evictions at once: deltas tell of one only when the request has gone on."""
        self.preemptions = max(self.preemptions, state.evictions - self.earlier_evictions)

    def given_up(self, request_id: str) -> Delta:
        """The last delta of an attempt that ends here without having finished."""
        return Delta(
            request_id,
            finish_reason="abort",
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed_tokens,
        )

    def finished(self, delta: Delta, now_s: float, energy: RequestEnergy | None) -> Finished:
        """What the controller is told of its end, which was at `now_s` of the steady clock."""
        return Finished(
            request_id=delta.request_id,
            client_id=self.client_id,
            attempt=self.attempt,
            output_tokens=self.output_tokens,
            finish_reason=delta.finish_reason or "abort",
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed_tokens,
            first_token_s=self.first_token_s,
            running_s=now_s - self.accepted_s,
            energy_joules=None if energy is None else energy.joules,
            wasted_joules=None if energy is None else energy.wasted_joules,
        )

    def held(self) -> Held:
        """What a controller that knows nothing of it is told."""
        return Held(self.ticket, self.output_tokens)
