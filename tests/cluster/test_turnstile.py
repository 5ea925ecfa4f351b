"""However many ask, the one who is asked keeps most of its time."""

from __future__ import annotations

import asyncio

import pytest

from cluster.endpoint.turnstile import LONGEST_PAUSE_S, Turnstile


class World:
    """Time that passes only in sleep and in work, and those who are at work in it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy_s = 0.0
        self.at_work = 0

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    async def work(self, seconds: float) -> float:
        self.at_work += 1
        assert self.at_work == 1, "one at a time"
        others_had_a_chance = asyncio.Event()
        asyncio.get_running_loop().call_soon(others_had_a_chance.set)
        await others_had_a_chance.wait()
        self.now_s += seconds
        self.busy_s += seconds
        self.at_work -= 1
        if seconds > 100:
            raise TimeoutError
        return self.now_s


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr("cluster.endpoint.turnstile.asyncio.sleep", made.sleep)
    return made


async def test_many_take_no_more_than_their_share(world: World) -> None:
    turnstile = Turnstile(0.25, world.clock)
    await asyncio.gather(*(turnstile.through(lambda: world.work(0.1)) for _ in range(20)))
    assert world.busy_s == pytest.approx(2.0)
    assert world.busy_s / world.now_s == pytest.approx(0.25, rel=0.1)


async def test_who_comes_alone_does_not_wait(world: World) -> None:
    turnstile = Turnstile(0.25, world.clock)
    assert await turnstile.through(lambda: world.work(0.1)) == 0.1
    world.now_s = 5.0
    assert await turnstile.through(lambda: world.work(0.1)) == 5.1


async def test_a_failure_or_a_long_silence_does_not_shut_it(world: World) -> None:
    turnstile = Turnstile(0.25, world.clock)
    with pytest.raises(TimeoutError):
        await turnstile.through(lambda: world.work(200.0))
    assert await turnstile.through(lambda: world.work(0.0)) == 200.0 + LONGEST_PAUSE_S
