"""Many streams at once, each seen as its client sees it and compared with the answer it must be."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cluster.call import GenerationError, GenerationRequest
from cluster.client import ClusterClient
from jobs.known_answers import answer_to, text_of


@dataclass(slots=True)
class Stream:
    """What the client of one request has seen of it.

    Attributes:
        request: What was asked.
        submitted_s: When, on this machine's monotonic clock.
        token_ids: What came, in its order.
        text: The same as text.
        arrivals: When tokens came and how many there were then, in order.
        attempts: The attempt that each entry of `arrivals` came from.
        finish_reason: Of the last delta; empty: it has not ended.
        error: Why it ended without its whole answer.
        deltas_after_end: Deltas that came after the last one; must be 0.
    """

    request: GenerationRequest
    submitted_s: float
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: GenerationError | None = None
    deltas_after_end: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return bool(self.finish_reason) or self.error is not None

    def verdict(self) -> Verdict:
        """How what came differs from what had to come."""
        wanted, seen = answer_to(self.request), self.token_ids
        extra = missing = 0
        if seen != wanted.token_ids:
            matcher = difflib.SequenceMatcher(None, wanted.token_ids, seen, autojunk=False)
            for _, a, b, c, d in (o for o in matcher.get_opcodes() if o[0] != "equal"):
                missing += b - a
                extra += d - c
        return Verdict(
            lost=not self.ended,
            failed=self.error is not None,
            missing_tokens=missing,
            extra_tokens=extra,
            text_differs=self.text != text_of(self.token_ids),
            end_differs=self.finish_reason not in ("", wanted.finish_reason),
            deltas_after_end=self.deltas_after_end,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one stream differs from an undisturbed one.

    Attributes:
        lost: It has no end.
        failed: It ended with an error.
        missing_tokens: Tokens that did not come.
        extra_tokens: Tokens that came twice, or that belong elsewhere.
        text_differs: The text is not that of the tokens.
        end_differs: It ended for another reason.
        deltas_after_end: Deltas that followed the end.
    """

    lost: bool
    failed: bool
    missing_tokens: int
    extra_tokens: int
    text_differs: bool
    end_differs: bool
    deltas_after_end: int

    @property
    def whole(self) -> bool:
        """Whether there is no difference."""
        return self == UNDISTURBED


UNDISTURBED = Verdict(False, False, 0, 0, False, False, 0)


async def follow(
    client: ClusterClient, stream: Stream, changed: Callable[[], None] = lambda: None
) -> None:
    """Run a stream's request and note all that comes, to its end.

    Args:
        client: Runs it.
        stream: Takes the notes.
        changed: Called after each.
    """
    try:
        async for delta in client.generate(stream.request):
            stream.deltas_after_end += stream.ended
            stream.token_ids += delta.token_ids
            stream.text += delta.text
            if delta.token_ids:
                stream.arrivals.append((time.monotonic(), len(stream.token_ids)))
                stream.attempts.append(delta.attempt)
            if delta.finish_reason is not None:
                stream.finish_reason = delta.finish_reason
            changed()
    except GenerationError as error:
        stream.error = error


class Streams:
    """Requests in flight through one client."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self.streams: list[Stream] = []

    def start(self, requests: Iterable[GenerationRequest]) -> list[Stream]:
        """Submit requests; their streams fill from now on."""
        begun = [Stream(request, time.monotonic()) for request in requests]
        for stream in begun:
            name = stream.request.request_id
            self._tasks[name] = asyncio.create_task(self._follow(stream), name=name)
        self.streams += begun
        return begun

    async def until(self, reached: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait for a condition on the streams.

        Raises:
            TimeoutError: It was not met in time.
        """
        async with asyncio.timeout(timeout_s):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    async def all_have(self, tokens: int, timeout_s: float = 120.0) -> None:
        """Wait until every stream has so many tokens, or has ended."""
        await self.until(
            lambda: all(len(s.token_ids) >= tokens or s.ended for s in self.streams), timeout_s
        )

    async def all_ended(self, timeout_s: float = 120.0) -> None:
        """Wait until every stream has ended.

        Raises:
            TimeoutError: Some have not; the message names them.
        """
        try:
            await self.until(lambda: all(s.ended for s in self.streams), timeout_s)
        except TimeoutError:
            names = [s.request.request_id for s in self.streams if not s.ended]
            raise TimeoutError(
                f"{len(names)} of {len(self.streams)} streams have not ended within "
                f"{timeout_s:g} s, the first {names[0]!r}"
            ) from None
        await asyncio.gather(*self._tasks.values())

    async def close(self, stream: Stream) -> None:
        """Go away from a stream that has not ended, as a client does."""
        task = self._tasks.pop(stream.request.request_id)
        task.cancel()
        await asyncio.wait([task])
        self.streams.remove(stream)

    async def _follow(self, stream: Stream) -> None:
        try:
            await follow(self._client, stream, self._changed.set)
        finally:
            self._changed.set()
