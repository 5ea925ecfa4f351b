"""Clients and engines around a scheduling core, where all news comes late."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cluster.core.suspects import ALONE_AT, ENGINE_DIED, FAIL_AT, VANISHED
from cluster.scheduler import (
    ClusterScheduler,
    Dispatch,
    PoisonedRequestError,
    QueueFullError,
    Recall,
)
from policies.request import Request
from tests.cluster.factories import forecast, replica, request

BLOCKS, BATCH, LOOK_AHEAD = 17, 5, 2


@dataclass
class Call:
    """A client's request."""

    request: Request
    length: int
    attempt: int = 1
    tokens: int = 0
    done: bool = False
    poison: bool = False
    strikes: float = 0.0


@dataclass
class Engine:
    """An engine that starts who fits, in order of arrival, and evicts who started last."""

    running: dict[str, int] = field(default_factory=dict)  # to the attempt
    waiting: dict[str, int] = field(default_factory=dict)
    orders: deque[Dispatch | tuple[Recall, int]] = field(default_factory=deque)
    news: deque[Callable[[], None]] = field(default_factory=deque)
    drains: bool = False


class World:
    """Clients and engines that do what they are told, some time after they are told.

    Between two replicas, and between a client and the rest, nothing is in any order.
    """

    def __init__(
        self, new_core: Callable[[], ClusterScheduler], rng: random.Random, names: list[str]
    ) -> None:
        self.new_core = new_core
        self.core = new_core()
        self.rng = rng
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.calls: dict[str, Call] = {}
        self.submitted: dict[str, int] = {}  # as the controller knows them: the attempt
        self.strikes: dict[str, float] = {}  # as the controller knows them
        self.ends: dict[str, list[str]] = {}
        self.sends: list[Callable[[], None]] = []
        self.log: list[object] = []
        self.kept: dict[str, tuple[str, int]] = {}  # replica where room is kept, attempt recalled
        self.fresh: dict[str, int] = {}  # recalled to where it is, with so many tokens
        self.reached: Counter[str] = Counter()
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        self.engines[name] = Engine()
        self.tell_join(name)

    def tell_join(self, name: str) -> None:
        one = replica(name, blocks=BLOCKS, slots=BATCH + LOOK_AHEAD)
        self.core.replica_joined(replace(one, look_ahead=LOOK_AHEAD), self.now)

    # Clients.

    def begin(self, name: str) -> None:
        cap = self.rng.randint(2, 90)
        sizes = request(
            name,
            self.rng.randint(1, 150),
            cap,
            arrival_s=self.now,
            online=self.rng.random() < 0.6,
        )
        length = self.rng.randint(1, cap)
        self.calls[name] = Call(sizes, length, poison=self.rng.random() < 0.03)
        self.ends[name] = []
        self.strikes[name] = 0.0
        self.submit(name)

    def submit(self, name: str) -> None:
        call = self.calls[name]
        sizes = replace(call.request, generated_tokens=call.tokens, arrival_s=self.now)
        attempt, strikes = call.attempt, call.strikes

        def arrive() -> None:
            if self.ends[name] or attempt < self.submitted.get(name, 1):
                return  # as a controller: it was cancelled, or it is the repetition of an old one
            known = forecast(self.rng.uniform(1, 60))
            try:
                self.core.submit(sizes, known, self.now, attempt=attempt, strikes=strikes)
            except (QueueFullError, PoisonedRequestError) as error:
                call.done = True
                self.ends[name].append(type(error).__name__)
                self.reached[type(error).__name__] += 1
                if isinstance(error, QueueFullError):
                    assert self.core.state(name) == "unknown"
                self.core.cancel(name, self.now)
                return
            self.submitted[name] = attempt
            self.strikes[name] = max(strikes, self.strikes[name])

        self.sends += [arrive] * self.rng.choice([1, 1, 2])

    def go_on(self, name: str, attempt: int, strikes: float = 0.0) -> None:
        call = self.calls[name]
        if not call.done and call.attempt == attempt:
            call.attempt += 1
            call.strikes = max(call.strikes, strikes)
            self.submit(name)

    def cancel(self, name: str) -> None:
        call = self.calls[name]
        if not call.done:
            call.done = True
            self.ends[name].append("cancelled")
            self.core.cancel(name, self.now)
            self.unkeep(name, "cancelled on its way")

    # Engines.

    def blocks(self, name: str) -> int:
        call = self.calls[name]
        return -(-(call.request.prompt_tokens + call.tokens + 1) // 16)

    def step(self, where: str) -> None:
        engine = self.engines[where]
        while sum(map(self.blocks, engine.running)) > BLOCKS and len(engine.running) > 1:
            name, attempt = engine.running.popitem()
            engine.waiting[name] = attempt
        for name in list(engine.waiting):
            used = sum(map(self.blocks, engine.running))
            full = used + self.blocks(name) > BLOCKS or len(engine.running) >= BATCH
            if full and engine.running:
                break
            engine.running[name] = engine.waiting.pop(name)
        for name, attempt in list(engine.running.items()):
            call = self.calls[name]
            if call.poison and self.rng.random() < 0.5:
                self.reached["poisoned"] += 1
                self.lose(where, ENGINE_DIED)
                return
            if call.attempt != attempt or call.done:
                continue  # nobody reads it; it is told to stop
            call.tokens += 1
            if call.tokens == call.length:
                call.done = True
                del engine.running[name]
                engine.news.append(lambda n=name, a=attempt: self.ended(where, n, a))  # type: ignore[misc]
        self.report(where)

    def ended(self, where: str, name: str, attempt: int) -> None:
        if self.submitted.get(name) != attempt:
            return
        if self.core.finished(where, name, self.calls[name].tokens, self.now):
            self.ends[name].append("finished")
            self.unkeep(name, "ended before its recall came")

    def report(self, where: str) -> None:
        engine = self.engines[where]
        counts = {n: self.calls[n].tokens for n in (*engine.running, *engine.waiting)}
        waits = {n: self.calls[n].tokens for n in engine.waiting}

        def arrive() -> None:
            for name, tokens in waits.items():
                if name in self.fresh and tokens > self.fresh[name]:
                    del self.fresh[name]
            if self.rng.random() < 0.7:
                self.core.progressed(where, counts, self.now)
            self.core.stalled(where, waits, self.now)

        engine.news.append(arrive)

    def obey(self, where: str) -> None:
        engine = self.engines[where]
        order = engine.orders.popleft()
        if isinstance(order, Dispatch):
            engine.waiting[order.request.request_id] = order.attempt
            return
        recall, attempt = order
        name = recall.request_id
        there = engine.running if name in engine.running else engine.waiting
        if not recall.hand_back:
            there.pop(name, None)
        elif there.get(name) == attempt:
            del there[name]
            self.go_on(name, attempt)

    def lose(self, where: str, blame: float = 0.0) -> None:
        for name, strikes in self.core.replica_lost(where, self.now, blame=blame).items():
            attempt = self.submitted[name]
            # Who had got further there is not blamed for a process that vanished.
            least = 0.0 if blame == VANISHED else blame
            assert strikes in (self.strikes[name] + least, self.strikes[name] + blame)
            self.strikes[name] = 0.0
            self.unkeep(name, "source lost")
            self.fresh.pop(name, None)
            if self.calls[name].done:
                self.ends[name].append("finished")  # its client had all before the replica died
            self.sends.append(lambda n=name, a=attempt, s=strikes: self.go_on(n, a, s))  # type: ignore[misc]
        for name in [name for name, (to, _) in self.kept.items() if to == where]:
            self.unkeep(name, "destination lost")
        self.join(where)

    def drain(self, where: str) -> None:
        self.core.replica_draining(where, self.now)
        self.engines[where].drains = True
        for name in [name for name, (to, _) in self.kept.items() if to == where]:
            self.unkeep(name, "destination drained")

    def leave(self, where: str) -> None:
        """A drained replica goes when nothing runs there, and another comes."""
        engine = self.engines[where]
        if self.core.runs_on(where):
            self.core.give_back(where, self.now)
            return
        assert self.core.replica_lost(where, self.now) == {}
        for name, attempt in self.held(engine):
            assert self.calls[name].done or self.calls[name].attempt > attempt, "it was superseded"
        self.reached["drained"] += 1
        self.join(where)

    def restart(self) -> None:
        """Another controller finds what runs, in any order with what clients submit again."""
        self.core = self.new_core()
        self.submitted.clear()
        self.kept.clear()
        self.fresh.clear()
        held = [(w, n, a) for w, e in self.engines.items() for n, a in self.held(e)]
        for where, engine in self.engines.items():
            engine.orders.clear()
            engine.drains = False
            self.tell_join(where)
        for name, call in self.calls.items():
            if not call.done:
                self.submit(name)
            elif not self.ends[name]:
                self.ends[name].append("finished")  # its client had all
        if self.rng.random() < 0.5:
            self.deliver()
        for where, name, attempt in held:
            self.adopt(where, name, attempt)
        self.reached["restarted"] += 1

    def held(self, engine: Engine) -> list[tuple[str, int]]:
        return [*engine.running.items(), *engine.waiting.items()]

    def adopt(self, where: str, name: str, attempt: int) -> None:
        call, engine = self.calls[name], self.engines[where]
        known = self.submitted.get(name, 0)
        if name not in {**engine.running, **engine.waiting}:
            return  # it has ended meanwhile
        adopted = not call.done and self.core.adopt(
            call.request,
            forecast(20),
            self.now,
            replica_id=where,
            attempt=attempt,
            key=1.0,
            tokens=call.tokens,
            strikes=self.strikes[name],
        )
        if adopted:
            assert attempt >= known
            assert self.core.placement(name) is not None
            self.submitted[name] = attempt
            self.reached["adopted"] += 1
        else:
            engine.running.pop(name, None)
            engine.waiting.pop(name, None)

    def unkeep(self, name: str, why: str) -> None:
        self.reached[why] += self.kept.pop(name, None) is not None

    # The controller.

    def decide(self) -> None:
        for action in self.core.decide(self.now):
            self.log.append(action)
            orders = self.engines[action.replica_id].orders
            if isinstance(action, Dispatch):
                orders.append(action)
                self.dispatched(action)
            else:
                self.recalled(action)
                orders.append((action, self.submitted.get(action.request_id, 0)))

    def dispatched(self, dispatch: Dispatch) -> None:
        name = dispatch.request.request_id
        generated = dispatch.request.generated_tokens
        assert dispatch.forecast.lower >= generated
        assert not self.engines[dispatch.replica_id].drains
        there = self.core.fleet[dispatch.replica_id].request_ids
        if self.strikes[name] >= ALONE_AT:
            assert there == [name]
            self.reached["alone"] += 1
        assert self.strikes[name] < FAIL_AT
        self.fresh.pop(name, None)
        if name in self.kept:
            to, attempt = self.kept.pop(name)
            assert (dispatch.replica_id, dispatch.attempt > attempt) == (to, True)
            self.fresh[name] = generated
            self.reached["went on"] += 1

    def recalled(self, recall: Recall) -> None:
        name = recall.request_id
        if not recall.to:
            self.reached["handed back"] += recall.hand_back
            return
        assert not self.engines[recall.to].drains
        assert recall.to in self.engines
        assert recall.to != recall.replica_id
        assert name not in self.fresh, "it has not run where it was recalled to"
        assert name not in self.kept
        self.kept[name] = (recall.to, self.submitted[name])
        self.reached["recalled"] += 1

    def deliver(self) -> None:
        """Some of what is on its way arrives."""
        self.rng.shuffle(self.sends)
        for _ in range(self.rng.randint(0, len(self.sends))):
            self.sends.pop()()
        for where, engine in self.engines.items():
            for _ in range(self.rng.randint(0, len(engine.orders))):
                self.obey(where)
            for _ in range(self.rng.randint(0, len(engine.news))):
                engine.news.popleft()()
