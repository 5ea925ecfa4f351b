"""Where a request's spans belong: W3C's Trace Context, and ids that need no memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

from cluster.messages import Submission

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The span of a request, in its trace.

    The ids follow from the request alone: the controller that dispatches it tells the engine whose
    spans belong under it, and the one that sees its end, perhaps another, builds the same span.

    Attributes:
        trace_id: Of the trace, 128 bits.
        span_id: Of the request's span, 64 bits.
        parent_id: Of the caller's span that it belongs under; None: it begins the trace.
        is_sampled: Whether anybody wants to see it.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    is_sampled: bool

    @property
    def traceparent(self) -> str:
        """What is told to whoever makes spans under the request's."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.is_sampled):02x}"

    def child_id(self, name: str) -> int:
        """The id of a span under the request's; the same name has the same one."""
        return _digest(f"{self.trace_id:032x}/{self.span_id:016x}/{name}", 8)


def trace_context(submission: Submission, share: float) -> TraceContext:
    """The span of a submission's request, the same for all its attempts.

    Args:
        submission: Any of the request's.
        share: Share of the requests to trace among those whose caller does not say, 0 to 1.
    """
    generation = submission.generation
    name = f"{generation.client_id}/{generation.request_id}"
    span_id = _digest(f"span/{name}", 8)
    if (parent := parse_traceparent(submission.trace)) is not None:
        trace_id, parent_id, is_sampled = parent
        return TraceContext(trace_id, span_id, parent_id, is_sampled)
    trace_id = _digest(f"trace/{name}", 16)
    return TraceContext(trace_id, span_id, None, trace_id < share * 2**128)


def parse_traceparent(header: str) -> tuple[int, int, bool] | None:
    """Trace id, span id and whether the trace is recorded; None: the header says nothing valid."""
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None or (header.startswith("00-") and found[4] is not None):
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    if not trace_id or not span_id:
        return None
    return trace_id, span_id, bool(int(found[3], 16) & _SAMPLED)


def _digest(text: str, size: int) -> int:
    """A number of so many bytes that is never 0, which would mean none."""
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big") or 1
