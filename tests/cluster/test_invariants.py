"""Design invariants I1, I2, I5, I6 and I7 of the scheduling core, on generated histories."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.suspects import ALONE_AT
from cluster.scheduler import ClusterScheduler, Dispatch
from policies.bundle import policy, policy_names
from policies.forecast import Forecast
from policies.request import Request
from tests.cluster.factories import forecast, replica, request

PRODUCTION_POLICIES = [name for name in policy_names() if name != "h_sf"]


@dataclass
class World:
    """Replicas that do what they are told, and a log of every decision."""

    core: ClusterScheduler
    rng: random.Random
    exact: bool
    running: dict[str, dict[str, int]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    ends: dict[str, list[str]] = field(default_factory=dict)
    dispatches: dict[str, tuple[Request, int]] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    log: list[object] = field(default_factory=list)
    drains: set[str] = field(default_factory=set)
    now: float = 0.0

    def submit(self, name: str) -> None:
        length = self.rng.randint(1, 60)
        self.lengths[name] = length
        self.ends[name] = []
        cap = self.rng.randint(length, 64)
        known = Forecast.exact(length) if self.exact else forecast(self.rng.uniform(1, 60))
        prompt = self.rng.randint(1, 100)
        online = self.rng.random() < 0.5
        sizes = request(name, prompt, cap, arrival_s=self.now, online=online)
        sizes = replace(sizes, tenant=self.rng.choice(["one", "two", "three"]))
        strikes = self.rng.choice([0.0] * 15 + [ALONE_AT])
        if strikes:
            self.alone.add(name)
        self.core.submit(sizes, known, self.now, strikes=strikes)

    def decide(self) -> None:
        while self.carry_out():
            pass  # what was handed back has come again

    def carry_out(self) -> bool:
        """Do what the core decides; whether anything was handed back and so submitted again."""
        came_again = False
        for action in self.core.decide(self.now):
            self.log.append(action)
            there = self.running[action.replica_id]
            if isinstance(action, Dispatch):
                name = action.request.request_id
                assert action.replica_id not in self.drains
                there[name] = action.request.generated_tokens
                self.dispatches[name] = action.request, action.attempt
                # What was begun before is told to stop when a request is cancelled or superseded.
                assert not self.alone & there.keys() or len(there) == 1
            else:
                tokens = there.pop(action.request_id, None)
                if action.hand_back:
                    assert tokens is not None
                    self.go_on(action.request_id, tokens)
                    came_again = True
        return came_again

    def go_on(self, name: str, tokens: int) -> None:
        sizes, attempt = self.dispatches[name]
        sizes = replace(sizes, generated_tokens=tokens)
        assert self.core.state(name) == "recalled"
        self.core.submit(sizes, forecast(20), self.now, attempt=attempt + 1)

    def drain(self, replica_id: str) -> None:
        self.core.replica_draining(replica_id, self.now)
        self.drains.add(replica_id)

    def leave(self) -> None:
        """Drained replicas that are empty are replaced; the others are told to hand back."""
        for replica_id in sorted(self.drains):
            if self.core.runs_on(replica_id):
                self.core.give_back(replica_id, self.now)
            else:
                self.lose(replica_id)

    def step(self, replica_id: str) -> None:
        """One decode step of a replica, reported and followed by a decision."""
        tokens = self.running[replica_id]
        for name in tokens:
            tokens[name] += 1
        self.core.progressed(replica_id, tokens, self.now)
        for name in [n for n, done in tokens.items() if done >= self.lengths[n]]:
            assert self.core.finished(replica_id, name, tokens.pop(name), self.now)
            self.ends[name].append("finished")

    def cancel(self, name: str) -> None:
        if self.core.cancel(name, self.now):
            self.ends[name].append("cancelled")

    def lose(self, replica_id: str) -> None:
        for name in self.core.replica_lost(replica_id, self.now):
            self.ends[name].append("orphaned")
        self.running[replica_id] = {}
        self.drains.discard(replica_id)
        self.core.replica_joined(replica(replica_id, blocks=24, slots=6), self.now)

    def finish(self) -> None:
        for _ in range(5000):
            self.decide()
            if not self.core.waiting and not self.core.running:
                return
            self.now += 1.0
            self.leave()
            for replica_id in self.running:
                self.step(replica_id)
        raise AssertionError("requests are left although the replicas work")


def history(
    seed: int,
    policy_name: str,
    *,
    exact: bool = False,
    check: Callable[[World], None] | None = None,
) -> World:
    rng = random.Random(seed)
    names = ["a", "b", "c"][: rng.randint(1, 3)]
    core = ClusterScheduler(policy(policy_name), fair_share=rng.random() < 0.5)
    for name in names:
        core.replica_joined(replica(name, blocks=24, slots=6), 0.0)
    world = World(core, rng, exact, running={name: {} for name in names})
    for number in range(40):
        world.now += rng.random()
        event = rng.random()
        if event < 0.5:
            world.submit(f"r{number}")
        elif event < 0.86:
            world.step(rng.choice(names))
        elif event < 0.88:
            world.drain(rng.choice(names))
        elif event < 0.9:
            world.leave()
        elif exact:
            world.step(rng.choice(names))
        elif event < 0.97 and world.lengths:
            world.cancel(rng.choice(list(world.lengths)))
        else:
            world.lose(rng.choice(names))
        world.decide()
        if check is not None:
            check(world)
    world.finish()
    return world


@given(st.integers(0, 2**32), st.sampled_from(PRODUCTION_POLICIES))
@settings(max_examples=60, deadline=None)
def test_i1_every_request_ends_exactly_once(seed: int, policy_name: str) -> None:
    world = history(seed, policy_name)
    assert all(len(ends) == 1 for ends in world.ends.values())


@given(st.integers(0, 2**32), st.sampled_from(["a_max", "a_min", "tiebreak"]))
@settings(max_examples=60, deadline=None)
def test_i2_with_exact_lengths_memory_is_never_exceeded(seed: int, policy_name: str) -> None:
    def within_memory(world: World) -> None:
        for ledger in world.core.fleet:
            assert ledger.profile.peak <= ledger.replica.kv_blocks
            assert ledger.used_blocks <= ledger.replica.kv_blocks

    history(seed, policy_name, exact=True, check=within_memory)


@given(st.integers(0, 2**32), st.sampled_from(PRODUCTION_POLICIES))
@settings(max_examples=20, deadline=None)
def test_i5_equal_histories_give_equal_decisions(seed: int, policy_name: str) -> None:
    assert history(seed, policy_name).log == history(seed, policy_name).log


@given(st.integers(0, 2**32), st.sampled_from(PRODUCTION_POLICIES))
@settings(max_examples=40, deadline=None)
def test_i6_no_replica_is_idle_while_a_request_waits(seed: int, policy_name: str) -> None:
    def none_idle(world: World) -> None:
        fleet = world.core.fleet
        if world.core._waiting.ordered:
            for ledger in fleet:
                replica_id = ledger.replica.replica_id
                if not (fleet.is_closed(replica_id) or fleet.is_avoided(replica_id)):
                    assert len(ledger)

    history(seed, policy_name, check=none_idle)


@given(st.floats(1, 100), st.floats(0.1, 2000), st.booleans())
@settings(deadline=None)
def test_i7_waiting_never_worsens_a_place_against_later_larger_requests(
    tokens: float, waited_s: float, fair_share: bool
) -> None:
    core = ClusterScheduler(policy("tie"), fair_share=fair_share)
    core.replica_joined(replica(slots=1), 0.0)
    core.submit(request("early"), forecast(tokens), now=0.0)
    core.submit(request("late", arrival_s=waited_s), forecast(tokens * 1.01), now=waited_s)
    (first,) = [a for a in core.decide(waited_s) if isinstance(a, Dispatch)]
    assert first.request.request_id == "early"
