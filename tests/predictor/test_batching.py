import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.batching import MicroBatcher


class Doubler:
    """Doubles numbers and remembers its batches; `gate` holds it inside one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        self.entered.set()
        assert self.gate.wait(30)
        if -1 in numbers:
            raise RuntimeError("a bad number")
        return [2 * number for number in numbers]


async def started(doubler: Doubler) -> None:
    await asyncio.to_thread(doubler.entered.wait, 30)


def batcher(
    answer: Callable[[list[int]], Sequence[int]],
    patience_s: float = 0.003,
    batch: int = 32,
    room: int = 1024,
) -> MicroBatcher[int, int]:
    return MicroBatcher[int, int](answer, batch=batch, patience_s=patience_s, room=room)


async def test_concurrent_callers_share_a_batch() -> None:
    doubler = Doubler()
    # Patience without end: the batch can only start because it is full.
    shared = batcher(doubler, patience_s=3600)
    first = asyncio.create_task(shared.ask([0]))
    for _ in range(10):
        await asyncio.sleep(0)
    rest = await asyncio.gather(*(shared.ask([i]) for i in range(1, 32)))
    assert [await first, *rest] == [[2 * i] for i in range(32)]
    assert doubler.batches == [list(range(32))]


async def test_a_batch_that_is_not_full_starts_all_the_same() -> None:
    doubler = Doubler()
    assert await batcher(doubler).ask([4, 5]) == [8, 10]
    assert doubler.batches == [[4, 5]]


async def test_what_comes_during_a_batch_makes_the_next_ones() -> None:
    doubler = Doubler()
    shared = batcher(doubler)
    doubler.gate.clear()
    first = asyncio.create_task(shared.ask([0]))
    await started(doubler)
    rest = [asyncio.create_task(shared.ask([i])) for i in range(1, 71)]
    await asyncio.sleep(0)
    doubler.gate.set()
    assert await asyncio.gather(first, *rest) == [[2 * i] for i in range(71)]
    assert [len(batch) for batch in doubler.batches] == [1, 32, 32, 6]


@given(sizes=st.lists(st.integers(0, 12), max_size=12), batch=st.integers(1, 8))
def test_every_caller_gets_its_own_replies_in_order(sizes: list[int], batch: int) -> None:
    doubler = Doubler()
    calls = [[100 * number + place for place in range(n)] for number, n in enumerate(sizes)]

    async def run() -> list[list[int | None]]:
        shared = batcher(doubler, patience_s=0.0, batch=batch)
        return list(await asyncio.gather(*(shared.ask(call) for call in calls)))

    assert asyncio.run(run()) == [[2 * number for number in call] for call in calls]
    assert all(len(part) <= batch for part in doubler.batches)
    assert [n for part in doubler.batches for n in part] == [n for call in calls for n in call]


async def test_what_finds_no_room_is_answered_by_none_at_once() -> None:
    doubler = Doubler()
    shared = batcher(doubler, batch=2, room=4)
    doubler.gate.clear()
    first = asyncio.create_task(shared.ask([1, 2]))
    await started(doubler)
    waiting = asyncio.create_task(shared.ask([3, 4, 5, 6, 7]))
    await asyncio.sleep(0)
    assert await shared.ask([8]) == [None]  # while the thread is held
    doubler.gate.set()
    assert await first == [2, 4]
    assert await waiting == [6, 8, 10, 12, None]
    assert await shared.ask([9]) == [18]


async def test_an_error_reaches_who_asked_and_nobody_else() -> None:
    shared = batcher(Doubler(), batch=2)
    good, bad, later = await asyncio.gather(
        shared.ask([1, 2]), shared.ask([-1, 3]), shared.ask([4, 5]), return_exceptions=True
    )
    assert (good, later) == ([2, 4], [8, 10])
    assert isinstance(bad, RuntimeError)


async def test_a_wrong_number_of_replies_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 replies to 2 questions"):
        await batcher(lambda numbers: numbers[:1]).ask([1, 2])


async def test_what_a_cancelled_caller_asked_is_not_answered() -> None:
    doubler = Doubler()
    shared = batcher(doubler)
    doubler.gate.clear()
    first = asyncio.create_task(shared.ask([0]))
    await started(doubler)
    cancelled, kept = asyncio.create_task(shared.ask([1])), asyncio.create_task(shared.ask([2]))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    doubler.gate.set()
    assert [await first, await kept] == [[0], [4]]
    assert doubler.batches == [[0], [2]]


@pytest.mark.parametrize(
    "arguments", [{"batch": 0}, {"patience_s": float("nan")}, {"batch": 8, "room": 7}]
)
def test_arguments_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MicroBatcher(Doubler(), **arguments)  # type: ignore[arg-type]
