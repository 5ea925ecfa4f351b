"""The requests that wait inside engines, in order, in memory that follows how many they are."""

from __future__ import annotations

import random

from cluster.core.stalled import LEFT_OVER, StalledRequest, StalledRequests


def stalled(name: str, where: str, rank: float, *, online: bool = True) -> StalledRequest:
    return StalledRequest(name, where, (int(not online), rank, 0), 0, 0.0, movable=True)


def taken(waiting: StalledRequests) -> list[str]:
    found = []
    while (one := waiting.pop(1)) is not None:
        found.append(one)
    waiting.restore(found)
    return [one.request_id for one in found]


def test_who_has_gone_on_is_not_remembered_behind_those_who_wait() -> None:
    waiting = StalledRequests()
    for number in range(20):
        waiting.add(stalled(f"online {number}", "a", number))
    for number in range(1000):
        waiting.add(stalled(f"offline {number}", "b", number, online=False))
        waiting.restore([first for _ in range(16) if (first := waiting.pop(1)) is not None])
        waiting.discard("b", f"offline {number}")
    assert len(waiting._heap) <= 2 * 20 + LEFT_OVER + 1
    assert taken(waiting) == [f"online {number}" for number in range(20)]


def test_the_order_is_that_of_those_who_wait_whoever_comes_and_goes() -> None:
    rng = random.Random(7)
    waiting = StalledRequests()
    known: dict[tuple[str, str], float] = {}
    for _ in range(5000):
        name, where = f"r{rng.randrange(60)}", rng.choice("abc")
        event = rng.random()
        if event < 0.6:
            known[where, name] = rank = rng.random()
            waiting.add(stalled(name, where, rank))
        elif event < 0.99:
            known.pop((where, name), None)
            waiting.discard(where, name)
        else:
            known = {key: rank for key, rank in known.items() if key[0] != where}
            waiting.discard_all(where)
        assert waiting._count == len(known)
        if rng.random() < 0.05:
            assert taken(waiting) == [name for _, name in sorted(known, key=known.__getitem__)]
