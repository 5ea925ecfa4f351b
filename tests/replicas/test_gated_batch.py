"""A batch whose starts and evictions are a gate's: it says who, the batch's blocks say when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.bundle import policy
from policies.forecast import Forecast
from policies.gate import Gate
from policies.ledger import Replica
from policies.request import Request, RequestClass
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.protocol import EngineTerms
from replicas.step_time import LinearStepTime
from replicas.stretch import StepResult

# Powers of two, so that sums of times are exact in whatever order they are made.
LINEAR = LinearStepTime(2.0**-3, 2.0**-10, 2.0**-8, 2.0**-12)
MAX_EVICTIONS = 2
BUNDLES = ["fcfs", "a_min", "a_max", "tie+a_min", "tiebreak", "promote_l", "h_sf"]


@dataclass(frozen=True)
class Job:
    """A request and when it comes, in steps after the one before it."""

    prompt: int
    output: int
    cap: int
    lower: int
    upper: int
    pause: int = 0
    offline: bool = False

    def forecast(self) -> Forecast:
        return Forecast(mu=3.0, sigma=1.0, lower=self.lower, upper=self.upper)


class GatedBatch:
    """A batch and its gate."""

    def __init__(
        self,
        bundle: str = "a_max",
        kv_blocks: int = 40,
        block_size: int = 1,
        max_num_seqs: int = 8,
        *,
        believed_blocks: int | None = None,
        tells_eviction: bool = False,
    ) -> None:
        chosen = policy(bundle)
        limits = BatchLimits(kv_blocks, block_size, max_num_seqs, max(24, max_num_seqs))
        believed = believed_blocks or kv_blocks
        replica = Replica("engine", believed, block_size, max_num_seqs, limits.kv_tokens)
        self.gate = Gate(chosen, replica, max_evictions=MAX_EVICTIONS)
        self.batch = ContinuousBatch(
            limits,
            LINEAR,
            gate=self.gate,
            eviction=chosen.eviction if tells_eviction else None,
        )
        self.now = 0.0
        self._precedences: dict[str, int] = {}

    def add(self, name: str, job: Job, *, earlier: int = 0, **terms: Any) -> None:
        request_class = RequestClass.OFFLINE if job.offline else RequestClass.ONLINE
        self._precedences[name] = terms.get("precedence", int(request_class))
        known = {"mu": 3.0, "sigma": 1.0, "lower": job.lower, "upper": job.upper, "arrival_s": 0.0}
        self.batch.add(
            name,
            job.prompt + earlier,
            job.output - earlier,
            request=Request(
                name,
                job.prompt,
                job.cap,
                request_class=request_class,
                generated_tokens=earlier,
                output_tokens=job.output,
            ),
            forecast=job.forecast(),
            terms=EngineTerms(**known | terms) if terms else None,
        )

    def step(self) -> StepResult:
        ran = set(self.batch.held_blocks())
        result = self.batch.step(self.now)
        self.now = result.stretch.ends_s
        self.check()
        if result.evicted:
            runs = {*self.batch.held_blocks(), *result.stretch.finished}
            gone = {e.request_id for e in result.evicted}
            assert runs >= ran - gone
            first_to_go = min(self._precedences[name] for name in gone)
            for name in runs - (ran - gone):
                assert self._precedences[name] < first_to_go, (
                    "started though no way was made for it"
                )
        return result

    def run_out(self) -> list[StepResult]:
        results: list[StepResult] = []
        while self.batch.has_work:
            results.append(self.step())
            assert len(results) < 10_000, "the batch never runs out of work"
        return results

    def check(self) -> None:
        """The batch and the gate agree, and memory holds what runs."""
        generated = self.batch.generated(self.now)
        assert {i: self.gate.tokens(i) for i in self.gate.running_ids} == generated
        assert generated.keys() == self.batch.held_blocks().keys()
        assert self.gate.waiting == self.batch.waiting
        assert sum(self.batch.held_blocks().values()) == self.batch.used_blocks
        assert self.batch.used_blocks <= self.batch.limits.kv_blocks
        assert self.batch.running <= self.batch.limits.max_num_seqs


def exact(prompt: int, output: int) -> Job:
    """A request whose length the forecast knows."""
    return Job(prompt, output, output, output, output)


def starts(results: list[StepResult]) -> list[str]:
    return [name for result in results for name in result.stretch.prefilled]


def ends(results: list[StepResult]) -> list[str]:
    return [name for result in results for name in result.stretch.finished]


def evictions(results: list[StepResult]) -> Counter[str]:
    return Counter(evicted.request_id for result in results for evicted in result.evicted)


@st.composite
def some_jobs(draw: st.DrawFn) -> list[Job]:
    """Requests of at most 90 tokens, with forecasts from exact to absurd."""
    drawn = []
    for _ in range(draw(st.integers(1, 12))):
        output = draw(st.integers(1, 60))
        lower = draw(st.just(output) | st.integers(1, 80))
        drawn.append(
            Job(
                prompt=draw(st.integers(1, 30)),
                output=output,
                cap=draw(st.integers(output, 60)),
                lower=lower,
                upper=lower + draw(st.sampled_from([0, 0, 5, 1000])),
                pause=draw(st.integers(0, 6)),
                offline=draw(st.booleans()),
            )
        )
    return drawn


@settings(max_examples=200, deadline=None)
@given(
    todo=some_jobs(),
    bundle=st.sampled_from(BUNDLES),
    block_size=st.integers(1, 8),
    spare=st.integers(0, 60),
    aborted=st.sets(st.integers(0, 12)),
)
def test_everybody_completes_within_memory_and_is_evicted_a_bounded_number_of_times(
    todo: list[Job], bundle: str, block_size: int, spare: int, aborted: set[int]
) -> None:
    gated = GatedBatch(bundle, -(-(90 + spare) // block_size), block_size, 5)
    results: list[StepResult] = []
    wanted = {}
    for number, job in enumerate(todo):
        gated.add(str(number), job)
        wanted[str(number)] = job.output
        results += [gated.step() for _ in range(job.pause)]
        if number // 2 in aborted and gated.batch.abort(str(number // 2)):
            del wanted[str(number // 2)]
            gated.check()
    results += gated.run_out()
    produced = Counter(name for result in results for name in result.produced)
    assert {name: produced[name] for name in wanted} == wanted
    assert sorted(set(ends(results)) & set(wanted)) == sorted(wanted)
    assert all(count <= MAX_EVICTIONS for count in evictions(results).values())
    assert gated.batch.used_blocks == gated.gate.waiting == gated.gate.running == 0


@dataclass
class Account:
    """Everything one can see of a run."""

    finished: list[tuple[str, float]] = field(default_factory=list)
    prefilled: list[tuple[str, float]] = field(default_factory=list)
    evicted: list[tuple[str, int, int]] = field(default_factory=list)
    recomputed: int = 0
    peak: int = 0
    stretches: int = 0


def account(
    todo: list[Job], bundle: str, kv_blocks: int, block_size: int, max_steps: int | None
) -> Account:
    gated = GatedBatch(bundle, kv_blocks, block_size, 4, tells_eviction=True)
    batch, account = gated.batch, Account()
    arrivals = [(sum(j.pause for j in todo[: i + 1]), str(i), j) for i, j in enumerate(todo)]
    step = 0
    while arrivals or batch.has_work:
        account.evicted += [(e.request_id, e.tokens, e.computed) for e in batch.make_room()]
        while arrivals and arrivals[0][0] <= step:
            _, name, job = arrivals.pop(0)
            gated.add(name, job)
        until = min(max_steps or 10**9, arrivals[0][0] - step if arrivals else 10**9)
        gated.now = batch.begin(gated.now, until)
        stretch = batch.complete()
        gated.check()
        account.finished += [(name, stretch.ends_s) for name in stretch.finished]
        account.prefilled += [(name, stretch.ends_s) for name in stretch.prefilled]
        account.recomputed += sum(stretch.recomputed.values())
        account.peak = max(account.peak, stretch.peak_blocks)
        account.stretches += 1
        # An eviction that empties the batch costs a step: nobody starts in it.
        step += stretch.steps or (1 if batch.has_work else until)
        assert account.stretches < 10_000, "the batch never runs out of work"
    return account


SHORT = Job(prompt=1, output=1, cap=1, lower=1, upper=1)
OUTLIVES_ITS_BOUND = Job(prompt=1, output=2, cap=2, lower=1, upper=6)


@settings(max_examples=300, deadline=None)
@given(some_jobs(), st.sampled_from(BUNDLES), st.integers(1, 8), st.integers(0, 60))
@example(
    [OUTLIVES_ITS_BOUND, SHORT, replace(SHORT, pause=1), replace(SHORT, pause=2), *[SHORT] * 3],
    "promote_l",
    1,
    0,
)
def test_many_steps_at_once_come_to_what_they_come_to_one_by_one(
    todo: list[Job], bundle: str, block_size: int, spare: int
) -> None:
    kv_blocks = -(-(90 + spare) // block_size)
    jumped = account(todo, bundle, kv_blocks, block_size, None)
    stepped = account(todo, bundle, kv_blocks, block_size, 1)
    assert jumped.stretches <= stepped.stretches
    stepped.stretches = jumped.stretches
    assert jumped == stepped


@pytest.mark.parametrize(
    ("tells_eviction", "waits", "slots", "stretches"),
    [(True, False, 8, 2), (True, True, 8, 60), (True, True, 1, 2), (False, False, 8, 60)],
)
def test_steps_are_planned_together_while_nobody_s_turn_can_come(
    tells_eviction: bool, waits: bool, slots: int, stretches: int
) -> None:
    gated = GatedBatch(kv_blocks=70, max_num_seqs=slots, tells_eviction=tells_eviction)
    gated.add("a", exact(5, 60), key=0.0)
    if waits:
        gated.add("b", exact(60, 10), key=1.0)
    count = 0
    while "a" in gated.batch:
        gated.batch.make_room()
        gated.now = gated.batch.begin(gated.now)
        gated.batch.complete()
        count += 1
    assert count == stretches


def test_a_request_waits_that_has_room_now_but_not_to_its_end() -> None:
    gated = GatedBatch(kv_blocks=40)
    gated.add("long", exact(5, 25), key=0.0)
    gated.add("next", exact(5, 20), key=1.0)
    results = [gated.step() for _ in range(3)]
    assert (starts(results), gated.batch.waiting) == (["long"], 1)
    assert gated.batch.limits.kv_blocks - gated.batch.used_blocks > 30
    results += gated.run_out()
    assert not evictions(results)
    # At the last step of "long", which then holds 30, it must hold no more than 10: the 5 of its
    # prompt and 5 more.
    begun = next(i for i, result in enumerate(results) if "next" in result.stretch.prefilled)
    assert begun == 25 - 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), max_size=15), st.integers(1, 8))
def test_known_lengths_are_never_evicted(sizes: list[tuple[int, int]], block_size: int) -> None:
    gated = GatedBatch("h_sf", -(-120 // block_size), block_size)
    for number, (prompt, output) in enumerate(sizes):
        gated.add(str(number), exact(prompt, output))
    assert not evictions(gated.run_out())


def test_the_head_of_the_order_is_not_overtaken() -> None:
    gated = GatedBatch("fcfs", kv_blocks=40)
    gated.add("running", Job(10, 20, 20, 20, 20))
    gated.step()
    gated.add("large", Job(35, 3, 3, 3, 3))
    gated.add("small", Job(1, 2, 2, 2, 2))
    results = gated.run_out()
    assert starts(results) == ["large", "small"]
    assert not any({"running", "large"} <= set(result.produced) for result in results)


def test_blocks_hold_up_what_a_gate_admits_that_believes_in_more() -> None:
    gated = GatedBatch("fcfs", kv_blocks=10, believed_blocks=1000)
    gated.add("first", exact(6, 4))
    gated.add("second", exact(6, 4))
    result = gated.step()
    assert gated.gate.first() == "second"
    assert (result.stretch.prefilled, gated.batch.waiting) == (("first",), 1)
    assert ends(gated.run_out()) == ["first", "second"]


def test_the_cluster_s_keys_and_classes_make_the_order() -> None:
    gated = GatedBatch("fcfs", max_num_seqs=1)
    gated.add("offline", exact(3, 2), key=-5.0, precedence=1)
    gated.add("second", exact(3, 2), key=2.0, precedence=0)
    gated.add("first", exact(3, 2), key=1.0, precedence=0)
    assert ends(gated.run_out()) == ["first", "second", "offline"]


def test_an_online_request_takes_the_place_of_an_offline_one_with_the_next_step() -> None:
    gated = GatedBatch("tiebreak", kv_blocks=200, max_num_seqs=2)
    for name, left in (("short", 20), ("long", 30)):
        gated.add(name, replace(exact(3, left), offline=True))
    gated.step()
    gated.add("online", exact(3, 5))
    result = gated.step()
    assert result.stretch.prefilled == ("online",)
    assert [evicted.request_id for evicted in result.evicted] == ["long"]
    results = gated.run_out()
    assert ends(results) == ["online", "short", "long"]
    assert not evictions(results), "nobody was in the way of anybody any more"


def test_an_online_request_gets_the_memory_of_offline_ones() -> None:
    gated = GatedBatch("a_max", kv_blocks=60)
    for name in ("a", "b"):
        gated.add(name, replace(exact(5, 25), offline=True))
    gated.step()
    gated.add("online", exact(20, 10))
    assert len(gated.step().evicted) == 1
    assert ends(gated.run_out())[0] == "online"


def test_evictions_elsewhere_count_towards_protection() -> None:
    def outcome(earlier_evictions: int) -> Counter[str]:
        gated = GatedBatch("a_min", kv_blocks=24)
        gated.add("a", Job(4, 18, 18, 2, 1000), key=1.0, evictions=earlier_evictions)
        gated.add("b", Job(4, 18, 18, 10, 1000), key=2.0, evictions=0)
        return evictions(gated.run_out())

    # "a" has the smaller bound and so would be the victim.
    assert outcome(0)["a"] > 0
    assert outcome(MAX_EVICTIONS)["a"] == 0


def test_what_was_evicted_waits_with_its_tokens_and_a_learned_bound() -> None:
    gated = GatedBatch("a_min", kv_blocks=20)
    gated.add("a", Job(4, 14, 14, 3, 1000))
    gated.add("b", Job(4, 14, 14, 10, 1000))
    result = gated.step()
    while not result.evicted:
        result = gated.step()
    (evicted,) = result.evicted
    tokens = evicted.tokens - 4
    assert evicted.request_id == "a"
    assert gated.gate.waiting_tokens() == {"a": tokens}
    assert gated.gate.evictions("a") == 1
    assert not result.stretch.prefilled
    results = gated.run_out()
    assert ends(results) == ["b", "a"]
    (recomputed,) = [r.stretch.recomputed["a"] for r in results if r.stretch.recomputed]
    assert recomputed == evicted.computed


def test_a_continued_request_counts_from_its_original_prompt() -> None:
    gated = GatedBatch("a_min", kv_blocks=20)
    gated.add("a", Job(4, 14, 14, 6, 1000), earlier=5)
    gated.step()
    assert gated.gate.tokens("a") == 5 + 1
    gated.step()
    assert gated.gate.tokens("a") == 5 + 2


def test_who_outlives_the_lower_bound_is_evicted_at_it_whatever_the_memory() -> None:
    for tells_eviction in (True, False):
        gated = GatedBatch("promote_l", kv_blocks=100, tells_eviction=tells_eviction)
        gated.add("long", Job(4, 30, 30, 7, 30))
        evicted = []
        while gated.batch.has_work:
            evicted += gated.batch.make_room()
            gated.now = gated.batch.begin(gated.now)
            gated.batch.complete()
        assert [(e.request_id, e.tokens - 4) for e in evicted] == [("long", 7)]


def test_an_aborted_request_leaves_the_gate_wherever_it_was() -> None:
    gated = GatedBatch(kv_blocks=40)
    gated.add("runs", exact(5, 30))
    gated.add("waits", exact(5, 30))
    gated.step()
    assert gated.batch.abort("waits")
    assert "waits" not in gated.gate
    assert gated.batch.abort("runs")
    assert "runs" not in gated.gate
    assert not gated.batch.has_work
    gated.add("runs", exact(5, 2))
    assert ends(gated.run_out()) == ["runs"]


def test_what_a_gate_evicts_cannot_be_the_caller_s() -> None:
    gate = GatedBatch().gate
    with pytest.raises(ValueError, match="gives_back is True, must be False with a gate"):
        ContinuousBatch(BatchLimits(10, 1, 1, 10), LINEAR, gate=gate, gives_back=True)
