"""Micro-batching: single questions of concurrent callers, answered together by one thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

BATCH = 32
"""Most questions of one batch."""

PATIENCE_S = 0.003
"""How long the first question of a batch that is not full waits for company."""

ROOM = 1024
"""Questions that may wait."""

Question = TypeVar("Question")
Reply = TypeVar("Reply")


@dataclass(slots=True)
class _Call(Generic[Reply]):
    """What one caller asked for; `done` has a result when no reply is `missing` any more."""

    replies: list[Reply | None]
    missing: int
    asked_s: float
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Entry(Generic[Question, Reply]):
    question: Question
    call: _Call[Reply]
    place: int


class MicroBatcher(Generic[Question, Reply]):
    """Answers questions in batches, one batch at a time, in a thread of its own.

    A batch starts when it is full, or `patience_s` after its first question came, or as soon as the
    one before it ends if that is later; so what arrives during a batch makes the next. Questions
    are answered in the order in which they came. Use it on one event loop.

    Args:
        answer: Replies in the order of the questions; called in the thread only.
        batch: Most questions of one call of `answer`, at least 1.
        patience_s: See above, in seconds, at least 0.
        room: Questions that may wait, at least `batch`; what finds no room is not answered.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        answer: Callable[[list[Question]], Sequence[Reply]],
        *,
        batch: int = BATCH,
        patience_s: float = PATIENCE_S,
        room: int = ROOM,
    ) -> None:
        if batch < 1 or not patience_s >= 0 or room < batch:
            raise ValueError(
                f"batch is {batch}, patience_s is {patience_s} and room is {room}, must be >= 1, "
                ">= 0 and >= batch"
            )
        self._answer = answer
        self._batch = batch
        self._patience_s = patience_s
        self._room = room
        self._waiting: deque[_Entry[Question, Reply]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="micro-batches")
        self._worker: asyncio.Task[None] | None = None

    def run(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Do something else in the thread, after the batch that is under way."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def ask(self, questions: Sequence[Question]) -> list[Reply | None]:
        """Replies in the order of the questions, once the last of them is there.

        None stands for a question that found no room. A caller that is cancelled leaves nothing
        behind: its questions are not answered.

        Raises:
            Exception: What `answer` raised for a batch with one of the questions.
        """
        loop = asyncio.get_running_loop()
        taken = max(0, min(len(questions), self._room - len(self._waiting)))
        call = _Call[Reply]([None] * len(questions), taken, loop.time(), loop.create_future())
        if not taken:
            return call.replies
        self._waiting.extend(
            _Entry(question, call, place) for place, question in enumerate(questions[:taken])
        )
        self._arrived.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._answer_forever())
        await call.done
        return call.replies

    def close(self) -> None:
        """Answer nothing more; a batch under way ends unheard."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._fill()
            entries = self._take()
            if not entries:
                continue
            questions = [entry.question for entry in entries]
            try:
                replies = await loop.run_in_executor(self._thread, self._answer, questions)
                if len(replies) != len(questions):
                    raise ValueError(f"{len(replies)} replies to {len(questions)} questions")
            except Exception as error:
                _fail(entries, error)
            else:
                _give(entries, replies)

    async def _fill(self) -> None:
        """Wait until a batch may start."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        start_s = self._waiting[0].call.asked_s + self._patience_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(start_s):
                while len(self._waiting) < self._batch:
                    self._arrived.clear()
                    await self._arrived.wait()

    def _take(self) -> list[_Entry[Question, Reply]]:
        entries: list[_Entry[Question, Reply]] = []
        while self._waiting and len(entries) < self._batch:
            entry = self._waiting.popleft()
            if not entry.call.done.done():
                entries.append(entry)
        return entries


def _give(entries: Sequence[_Entry[Question, Reply]], replies: Sequence[Reply]) -> None:
    for entry, reply in zip(entries, replies, strict=True):
        call = entry.call
        call.replies[entry.place] = reply
        call.missing -= 1
        if not call.missing and not call.done.done():
            call.done.set_result(None)


def _fail(entries: Sequence[_Entry[Question, Reply]], error: Exception) -> None:
    for entry in entries:
        if not entry.call.done.done():
            entry.call.done.set_exception(error)
