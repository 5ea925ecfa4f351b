"""What a policy knows of one request: sizes and identity, never its text."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RequestClass(enum.IntEnum):
    """Service class; a smaller value stands before a larger one at every instant."""

    ONLINE = 0
    OFFLINE = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One generation request as the policies see it.

    Attributes:
        request_id: Unique among the requests that are alive.
        prompt_tokens: Length of the prompt, at least 1 (0 in the papers' unit-step instances).
        max_tokens: The request's own cap on output tokens, at least 1; it censors the forecast.
        arrival_s: When the request entered the system, in seconds of the caller's clock.
        request_class: Online or offline.
        tenant: Whom the work is accounted to.
        generated_tokens: Output tokens that exist already (a continued or evicted request). They
            are prefilled with the prompt and count against `max_tokens`.
        output_tokens: The true output length. Known only in simulation, and read only by the
            policies named `oracle` and `h_sf`; None in production.

    Raises:
        ValueError: A size is out of range.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    arrival_s: float = 0.0
    request_class: RequestClass = RequestClass.ONLINE
    tenant: str = "default"
    generated_tokens: int = 0
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0:
            raise ValueError(
                f"request {self.request_id!r}: prompt_tokens is {self.prompt_tokens}, must be >= 0"
            )
        if self.max_tokens < 1:
            raise ValueError(
                f"request {self.request_id!r}: max_tokens is {self.max_tokens}, must be >= 1"
            )
        if not 0 <= self.generated_tokens < self.max_tokens:
            raise ValueError(
                f"request {self.request_id!r}: generated_tokens is {self.generated_tokens}, "
                f"must be in 0..{self.max_tokens - 1} (max_tokens - 1)"
            )
        if self.output_tokens is not None and self.output_tokens < 1:
            raise ValueError(
                f"request {self.request_id!r}: output_tokens is {self.output_tokens}, must be >= 1"
            )
