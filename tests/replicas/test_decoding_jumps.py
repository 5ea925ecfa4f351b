"""Many steps at once come to what they come to one by one."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.eviction import ShortestLowerBound
from policies.forecast import Forecast
from policies.request import Request
from replicas.batch_limits import BatchLimits
from replicas.continuous_batch import ContinuousBatch
from replicas.step_time import LinearStepTime
from replicas.stretch import Stretch

# Powers of two, so that sums of times are exact in whatever order they are made.
LINEAR = LinearStepTime(2.0**-3, 2.0**-10, 2.0**-8, 2.0**-12)


@dataclass(frozen=True)
class Job:
    prompt: int
    output: int
    lower: int
    pause: int


jobs = st.lists(
    st.builds(Job, st.integers(1, 30), st.integers(1, 60), st.integers(1, 60), st.integers(0, 9)),
    min_size=1,
    max_size=12,
)


@dataclass
class Account:
    """Everything one can see of a run."""

    finished: list[tuple[str, float]] = field(default_factory=list)
    first_tokens: list[tuple[str, float]] = field(default_factory=list)
    evicted: list[tuple[str, int, int]] = field(default_factory=list)
    recomputed: int = 0
    peak: int = 0
    stretches: int = 0

    def note(self, stretch: Stretch) -> None:
        self.finished += [(name, stretch.ends_s) for name in stretch.finished]
        self.first_tokens += [(name, stretch.ends_s) for name in stretch.prefilled]
        self.recomputed += sum(stretch.recomputed.values())
        self.peak = max(self.peak, stretch.peak_blocks)
        self.stretches += 1


def run(
    todo: list[Job], block_size: int, kv_tokens: int, max_steps: int | None, gives_back: bool
) -> Account:
    """Run all jobs; each arrives a number of engine steps after the one before it."""
    limits = BatchLimits(-(-kv_tokens // block_size), block_size, 6, 24)
    batch = ContinuousBatch(
        limits, LINEAR, eviction=ShortestLowerBound(), gives_back=gives_back, slack=1
    )
    account = Account()
    arrivals = [(sum(j.pause for j in todo[: i + 1]), str(i), j) for i, j in enumerate(todo)]
    step, now, returned = 0, 0.0, []
    while arrivals or batch.has_work or returned:
        for evicted in batch.make_room():
            account.evicted.append((evicted.request_id, evicted.tokens, evicted.computed))
            if gives_back:
                returned.append((evicted.request_id, evicted.tokens))
        while arrivals and arrivals[0][0] <= step:
            _, name, job = arrivals.pop(0)
            returned.append((name, job.prompt))
        for name, tokens in returned:
            job = todo[int(name)]
            batch.add(
                name,
                tokens,
                job.prompt + job.output - tokens,
                float(name),
                request=Request(name, job.prompt, 1000),
                forecast=Forecast(0.0, 1.0, job.lower, 1000),
            )
        returned.clear()
        until = min(max_steps or 10**9, arrivals[0][0] - step if arrivals else 10**9)
        now = batch.begin(now, until)
        stretch = batch.complete()
        account.note(stretch)
        step += stretch.steps or until
        assert batch.used_blocks == sum(batch.held_blocks().values()) <= limits.kv_blocks
        assert account.stretches < 10_000, "the batch never runs out of work"
    return account


@settings(max_examples=300, deadline=None)
@given(jobs, st.integers(1, 8), st.integers(0, 60), st.booleans())
def test_jumping_changes_nothing_but_the_number_of_stretches(
    todo: list[Job], block_size: int, spare: int, gives_back: bool
) -> None:
    kv_tokens = 90 + spare
    jumped = run(todo, block_size, kv_tokens, None, gives_back)
    stepped = run(todo, block_size, kv_tokens, 1, gives_back)
    assert jumped.stretches <= stepped.stretches
    stepped.stretches = jumped.stretches
    assert jumped == stepped
    assert sorted(name for name, _ in jumped.finished) == sorted(str(i) for i in range(len(todo)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(0, 50), st.floats(0.01, 0.999))
def test_a_plan_can_be_cut_at_the_step_in_progress(output: int, prompt: int, share: float) -> None:
    batch = ContinuousBatch(BatchLimits(1000, 1, 4, 100), LINEAR)
    batch.add("a", prompt, output + 1)
    start = batch.begin(0.0)
    batch.complete()
    end = batch.begin(start)
    now = start + share * (end - start)
    cut = batch.cut(now)
    assert now <= cut <= end
    stretch = batch.complete()
    assert stretch.ends_s == cut
    assert LINEAR.decode_seconds(1, prompt + 1, stretch.steps - 1) < now - start
    assert batch.tokens("a") == prompt + 1 + stretch.steps if cut < end else "a" not in batch


def test_the_cost_of_a_request_does_not_grow_with_its_output() -> None:
    def stretches(output: int) -> int:
        batch = ContinuousBatch(BatchLimits(10**6, 16, 4, 100), LINEAR)
        batch.add("a", 10, output)
        batch.add("b", 10, output // 2)
        now = count = 0
        while batch.has_work:
            now = batch.begin(now)
            batch.complete()
            count += 1
        return count

    assert stretches(100_000) == stretches(100) == 3
