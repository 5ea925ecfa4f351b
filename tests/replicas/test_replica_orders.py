"""A replica's orders against an engine that is slow to take them, that fails, or that is gone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from replicas import replica as module
from replicas.engines import EngineSpec
from replicas.protocol import Delta, EngineDeadError, EngineLoad, Generation, PromptSlice, Stalled
from replicas.replica import Place, ReplicaActor
from replicas.simulated_engine import SimulatedEngine
from replicas.step_time import LinearStepTime
from tests.replicas.simulated_engines import make_generation, make_options

STEP_S = 0.004
NUMBER = 1


class SlowEngine(SimulatedEngine):
    """Takes a moment before it knows what it was given, as another process would."""

    def __init__(self) -> None:
        super().__init__(make_options(step_time=LinearStepTime(STEP_S, 0.0, 0.0, 0.0)))
        self.takes = asyncio.Event()
        self.takes.set()
        self.fails: set[str] = set()

    async def submit(self, generations: Sequence[Generation]) -> None:
        if generations:
            await self.takes.wait()
        if any(generation.request_id in self.fails for generation in generations):
            raise RuntimeError("it stumbled")
        await super().submit(generations)

    def drain(self, *, finished_only: bool = False) -> list[Delta]:
        self._stumble("drain")
        return super().drain(finished_only=finished_only)

    def load(self) -> EngineLoad:
        self._stumble("load")
        return super().load()

    def stalled(self) -> dict[str, Stalled]:
        self._stumble("stalled")
        return super().stalled()

    def _stumble(self, name: str) -> None:
        if name in self.fails:
            raise RuntimeError("it stumbled")


class Call:
    """A method of a controller that answers with nothing."""

    def __init__(self) -> None:
        self.calls = 0

    async def remote(self, *args: object) -> None:
        self.calls += 1


class Watch:
    """A method that fails in these ways, one after the other, and then never returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def remote(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.Event().wait()


class Controller:
    def __init__(self) -> None:
        self.report, self.engine_died = Call(), Call()


class Replica:
    def __init__(self, engine: SlowEngine) -> None:
        self.engine = engine
        self.controller = Controller()
        self.actor = ReplicaActor("a", EngineSpec("simulated", "m"), self.controller, 60.0)
        self.exit_codes: list[int] = []
        self._orders = itertools.count(1)
        self._received = 0

    async def act(self, *generations: Generation, aborts: Sequence[str] = ()) -> None:
        await self.actor.act(NUMBER, next(self._orders), list(aborts), {}, list(generations))

    async def take(self) -> list[Delta]:
        self._received, deltas = await self.actor.take("c", self._received)
        return deltas

    async def ends(self, *names: str) -> dict[str, Delta]:
        """The last deltas of these requests."""
        ends: dict[str, Delta] = {}
        async with asyncio.timeout(60):
            while not ends.keys() >= set(names):
                ends |= {d.request_id: d for d in await self.take() if d.finish_reason}
        return ends


@pytest.fixture
def replica_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """A started replica in this process, which its end does not end."""

    @asynccontextmanager
    async def started(*, idle_look_s: float = 60.0) -> AsyncIterator[Replica]:
        replica = Replica(SlowEngine())
        monkeypatch.setattr(module, "IDLE_LOOK_S", idle_look_s)
        monkeypatch.setattr(module, "make_engine", lambda *_: replica.engine)
        monkeypatch.setattr(module.os, "_exit", replica.exit_codes.append)
        monkeypatch.setattr(ReplicaActor, "_place", lambda _: Place("n", "h", [0], []))
        await replica.actor.start(NUMBER, [])
        yield replica
        await replica.actor.stop()

    return started


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(STEP_S)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_an_engine_that_dies_without_work_ends_the_process(replica_of) -> None:
    """Before a request finds out and is suspected of having killed it."""

    async def main() -> None:
        async with replica_of(idle_look_s=STEP_S) as replica:
            replica.engine.die("lightning")
            await soon(lambda: replica.exit_codes == [1])
            assert replica.controller.engine_died.calls == 1

    run(main)


def test_orders_that_a_dead_engine_cannot_take_end_the_process(replica_of) -> None:
    async def main() -> None:
        async with replica_of() as replica:
            await asyncio.sleep(STEP_S)  # it waits for work
            replica.engine.die("lightning")
            with pytest.raises(EngineDeadError):
                await replica.act(make_generation())
            await soon(lambda: replica.exit_codes == [1])

    run(main)


def test_a_request_that_is_aborted_while_it_is_submitted_does_not_run_on(replica_of) -> None:
    async def main() -> None:
        async with replica_of() as replica:
            replica.engine.takes.clear()
            begun = asyncio.create_task(replica.act(make_generation(output_tokens=50)))
            await asyncio.sleep(STEP_S)
            await replica.act(aborts=["r"])
            replica.engine.takes.set()
            await begun
            load = replica.engine.load()
            assert (load.running, load.waiting) == (0, 0)

    run(main)


def test_what_an_attempt_that_was_replaced_still_makes_is_not_the_next_one_s(replica_of) -> None:
    async def main() -> None:
        async with replica_of() as replica:
            await replica.act(make_generation(output_tokens=50))
            assert await replica.take()
            replica.engine.takes.clear()
            newer = make_generation(output_tokens=50, attempt=2)
            begun = asyncio.create_task(replica.act(newer))
            await asyncio.sleep(10 * STEP_S)
            replica.engine.takes.set()
            await begun
            second: list[Delta] = []
            async with asyncio.timeout(60):
                while not (second and second[-1].finish_reason):
                    second += [d for d in await replica.take() if d.attempt == 2]
            assert sum(len(delta.token_ids) for delta in second) == 50

    run(main)


@pytest.mark.parametrize("part", ["drain", "load"])
def test_a_part_that_fails_ends_the_process_and_accuses_no_request(replica_of, part: str) -> None:
    async def main() -> None:
        async with replica_of() as replica:
            replica.engine.fails = {part}
            await replica.act(make_generation(output_tokens=50))
            await soon(lambda: replica.exit_codes == [1])
            assert replica.controller.engine_died.calls == 0

    run(main)


def test_stall_reports_that_fail_end_the_process(replica_of) -> None:
    async def main() -> None:
        async with replica_of() as replica:
            replica.engine.fails = {"drain"}
            replica.engine.stall_changed.set()
            await soon(lambda: replica.exit_codes == [1])

    run(main)


def test_a_request_that_cannot_be_submitted_fails_alone(replica_of) -> None:
    async def main() -> None:
        async with replica_of() as replica:
            replica.engine.fails = {"bad"}
            names = ("before", "bad", "after")
            await replica.act(*(make_generation(i, output_tokens=3) for i in names))
            ends = await replica.ends(*names)
            assert ends["bad"].error == "it stumbled"
            assert [ends[i].finish_reason for i in names] == ["stop", "error", "stop"]
            assert replica.exit_codes == []

    run(main)


def test_a_prompt_that_cannot_be_had_fails_alone(replica_of) -> None:
    async def nothing() -> bytes:
        raise OSError("the store is full")

    async def main() -> None:
        async with replica_of() as replica:
            lost = make_generation("lost", output_tokens=3)
            lost = msgspec.structs.replace(lost, prompt=PromptSlice(nothing(), 0, 12))
            await replica.act(lost, make_generation("other", output_tokens=3))
            ends = await replica.ends("lost", "other")
            assert ends["lost"].error == "the store is full"
            assert ends["other"].finish_reason == "stop"

    run(main)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([ActorDiedError()], 0),
        ([RayActorError()], 0),
        ([ActorUnavailableError("away", b"a" * 16), ActorDiedError()], 0),
        ([RayTaskError("watch", "", ValueError("it stumbled")), ActorDiedError()], 0),
        ([RuntimeError("it stumbled")], 1),
    ],
)
def test_a_replica_does_not_outlive_its_controller(
    replica_of, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], code: int
) -> None:
    monkeypatch.setattr(module, "CONTROLLER_RETRY_S", STEP_S)
    monkeypatch.setattr(module.undertaker, "watch", lambda: None)
    monkeypatch.setattr(ReplicaActor, "_place", lambda _: Place("n", "h", [0], []))

    async def main() -> None:
        replica = Replica(SlowEngine())
        monkeypatch.setattr(module.os, "_exit", replica.exit_codes.append)
        watch = replica.controller.watch = Watch(*errors)
        await replica.actor.place()
        await soon(lambda: bool(replica.exit_codes))
        await replica.actor.stop()
        assert (replica.exit_codes, watch.errors) == ([code], [])

    run(main)
