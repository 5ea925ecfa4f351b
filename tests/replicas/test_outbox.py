"""A mailbox across a connection that loses replies."""

from __future__ import annotations

import asyncio

from replicas.outbox import Outbox


def test_a_batch_whose_reply_was_lost_is_sent_again_and_the_rest_after_it() -> None:
    async def main() -> None:
        box: Outbox[str] = Outbox()
        box.put(["a"])
        assert await box.take(0, 1.0) == (1, ["a"])
        box.put(["b"])
        assert await box.take(0, 1.0) == (1, ["a"])
        assert not box.is_read
        assert await box.take(1, 1.0) == (2, ["b"])
        assert await box.take(2, 0.0) == (2, [])
        assert box.is_read

    asyncio.run(main())


def test_a_reader_that_asks_again_while_its_lost_call_still_waits_misses_nothing() -> None:
    async def main() -> None:
        box: Outbox[str] = Outbox()
        lost, again = (asyncio.create_task(box.take(0, 5.0)) for _ in range(2))
        await asyncio.sleep(0)
        box.put(["a"])
        await lost  # nobody receives it
        assert await again == (1, ["a"])
        box.put(["b"])
        assert await box.take(1, 1.0) == (2, ["b"])

    asyncio.run(main())


def test_a_reader_that_waits_is_there_however_long_this_process_stood() -> None:
    async def main() -> None:
        box: Outbox[str] = Outbox()
        box.last_read_s -= 100.0
        assert box.idle_s() >= 100.0
        waiting = asyncio.create_task(box.take(0, 60.0))
        await asyncio.sleep(0)
        box.last_read_s -= 100.0  # as if nothing had run meanwhile
        assert box.idle_s() == 0.0
        box.put(["a"])
        await waiting
        assert 0.0 <= box.idle_s() < 100.0

    asyncio.run(main())
