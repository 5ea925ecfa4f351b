"""The controller's side of the predictor, with predictors in this process that freeze and die."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import ray

from cluster import forecasting as forecasting_module
from cluster.config import parse_config
from cluster.forecasting import Forecasting
from cluster.messages import Submission
from cluster.predictor_link import CALLS, QUERIES, describe
from policies.forecast import Forecast
from policies.request import Request, RequestClass
from predictor.actor import PredictorActor
from predictor.messages import PredictorStats, WatchStats
from replicas.protocol import Finished, Generation
from tests.predictor.scripted_network import ScriptedNetwork


class LocalHandle:
    """A predictor as a handle of Ray shows it; frozen it answers later, dead not at all."""

    def __init__(self, network: ScriptedNetwork | None) -> None:
        self.network = network
        self.start()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.dies_after: str | None = None
        self.calls: list[tuple[str, int]] = []

    def start(self) -> None:
        """A process like the one before, if any, which knows nothing of it."""
        self.actor = PredictorActor(None, source=self.network, patience_s=0.0)
        self.dead = False

    def __getattr__(self, method: str) -> Any:
        handle = self

        class Method:
            async def remote(self, *args: Any) -> Any:
                handle.calls.append((method, len(args[0]) if args else 0))
                await handle.goes_on.wait()
                if handle.dead:
                    raise ray.exceptions.ActorUnavailableError("it is dead", None)
                answer = await getattr(handle.actor, method)(*args)
                if method == handle.dies_after:
                    handle.dies_after = None
                    raise ray.exceptions.ActorUnavailableError("it died with the answer", None)
                return answer

        return Method()

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)


class Requests:
    """Stands for the controller: which requests are open, and which forecasts came."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.arrived: dict[str, Forecast] = {}
        self.restarts = 0

    def restarted(self) -> None:
        """A predictor is another process than before."""
        self.restarts += 1


def submission(number: int, text: str | None = None, **sampling: Any) -> Submission:
    return Submission(
        generation=Generation(f"r{number}", "client", b"", sampling=sampling),
        prompt_tokens=50,
        max_tokens=4096,
        request_class=RequestClass.OFFLINE,
        text=f"{4 + number / 1000}" if text is None else text,
    )


def finished(number: int, tokens: int = 30, reason: str = "stop") -> Finished:
    return Finished(f"r{number}", "client", 1, tokens, reason)


@asynccontextmanager
async def running(
    requests: Requests, handles: Sequence[LocalHandle], **predictor: Any
) -> AsyncIterator[Forecasting]:
    config = parse_config({"model": "m", "predictor": predictor})
    forecasting = Forecasting(
        config, requests.arrived.update, requests.open.__contains__, requests.restarted
    )
    forecasting.follow(handles)
    await until(lambda: "starting" not in forecasting.state)
    yield forecasting
    for handle in handles:
        handle.goes_on.set()
    await forecasting.stop()


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(3000):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not reached")


def submit(requests: Requests, forecasting: Forecasting, *submissions: Submission) -> None:
    requests.open |= {s.generation.request_id for s in submissions}
    forecasting.ask(submissions)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting_module, "SYNC_INTERVAL_S", 0.01)
    monkeypatch.setattr(forecasting_module, "RETRY_S", 0.01)
    monkeypatch.setattr(ray, "kill", lambda handle, no_restart=True: None)


async def test_forecasts_arrive_and_nothing_is_kept_of_what_ended() -> None:
    requests, handle = Requests(), LocalHandle(ScriptedNetwork())
    async with running(requests, [handle]) as forecasting:
        submit(requests, forecasting, *(submission(i) for i in range(200)))
        await until(lambda: len(requests.arrived) == 200)
        assert {f.source for f in requests.arrived.values()} == {"learned"}
        assert requests.arrived["r150"].mu == 4.15
        assert max(size for name, size in handle.calls if name == "forecast") == QUERIES
        for number in range(100):
            requests.open.discard(f"r{number}")
            forecasting.observe(submission(number), finished(number))
        for number in range(100, 200):
            requests.open.discard(f"r{number}")
            forecasting.forget(f"r{number}")
        assert forecasting.remembered == 0
        await until(lambda: forecasting.stats[0].outcomes == 100)
        watch = forecasting.stats[0].watch
        assert watch is not None
        assert watch.outcomes == 100  # each came with what the network had said of it
        assert "network scripted; of the latest 100 answers" in forecasting.state


async def test_an_answer_for_a_request_that_has_ended_is_dropped() -> None:
    requests, network = Requests(), ScriptedNetwork()
    async with running(requests, [LocalHandle(network)]) as forecasting:
        network.gate.clear()
        submit(requests, forecasting, submission(1))
        await asyncio.to_thread(network.entered.wait, 30)
        requests.open.discard("r1")
        forecasting.forget("r1")
        network.gate.set()
        submit(requests, forecasting, submission(2))
        await until(lambda: "r2" in requests.arrived)
        assert "r1" not in requests.arrived
        forecasting.forget("r2")
        assert forecasting.remembered == 0


async def test_temperature_and_text_reach_the_predictor() -> None:
    handle = LocalHandle(None)
    seen: list[Any] = []
    original = handle.actor.forecast

    async def forecast(batch: Any) -> Any:
        seen.extend(batch)
        return await original(batch)

    handle.actor.forecast = forecast  # type: ignore[method-assign]
    requests = Requests()
    config = parse_config({"model": "m"})
    forecasting = Forecasting(config, requests.arrived.update, requests.open.__contains__)
    sampled = [
        submission(number, text, temperature=temperature)
        for number, (text, temperature) in enumerate(
            [("hello", 0.0), ("", None), ("x", 2), ("x", "hot"), ("x", math.nan), ("x", -1.0)]
        )
    ]
    submit(requests, forecasting, *sampled, submission(6))  # before the predictor is there
    forecasting.follow([handle])
    await until(lambda: len(requests.arrived) == 7)
    told = {q.request_id: (q.text, q.temperature, q.model, q.max_tokens) for q in seen}
    assert told["r0"] == ("hello", 0.0, "m", 4096)
    assert told["r1"] == ("", 1.0, "m", 4096)
    assert [told[f"r{number}"][1] for number in range(2, 7)] == [2.0, 1.0, 1.0, 1.0, 1.0]
    await forecasting.stop()


async def test_what_only_the_prior_could_answer_is_not_asked_for() -> None:
    requests, handle = Requests(), LocalHandle(None)
    async with running(requests, [handle]) as forecasting:
        await until(lambda: handle.count("prior") > 1)
        before = handle.count("forecast")
        submit(requests, forecasting, submission(1), submission(2, ""))
        assert forecasting.remembered == 0
        await until(lambda: handle.count("prior") > 3)
        assert handle.count("forecast") == before
        assert forecasting.state == "the prior alone, no trained network"


async def test_a_frozen_predictor_holds_a_bounded_number_of_requests() -> None:
    requests, frozen = Requests(), LocalHandle(ScriptedNetwork())
    async with running(requests, [frozen], timeout_s=1.0, queue=500) as forecasting:
        frozen.goes_on.clear()
        submit(requests, forecasting, *(submission(i) for i in range(1000)))
        await until(lambda: "does not answer" in forecasting.state)
        assert frozen.count("forecast") == CALLS
        assert forecasting.remembered == 500 - CALLS * QUERIES
        submit(requests, forecasting, submission(5000))
        assert requests.arrived == {}
        frozen.goes_on.set()
        await until(lambda: "r5000" in requests.arrived)
        assert requests.arrived["r5000"].source == "learned"
        await until(lambda: "network scripted" in forecasting.state)


async def test_the_others_go_on_when_one_is_frozen_or_dead() -> None:
    requests = Requests()
    handles = [LocalHandle(ScriptedNetwork()) for _ in range(3)]
    async with running(requests, handles, timeout_s=1.0) as forecasting:
        await until(lambda: len(forecasting.stats) == 3)
        submit(requests, forecasting, *(submission(i) for i in range(300)))
        await until(lambda: len(requests.arrived) == 300)
        assert all(handle.count("forecast") for handle in handles)
        handles[0].goes_on.clear()
        handles[1].dead = True
        submit(requests, forecasting, *(submission(i) for i in range(300, 1300)))
        await until(lambda: "1 of 3 predictors answer" in forecasting.state)
        await until(lambda: len(requests.arrived) >= 1300 - 2 * CALLS * QUERIES)
        # The prior comes from one that lives.
        last = handles[2].count("prior")
        await until(lambda: handles[2].count("prior") > last + 2)
        handles[0].goes_on.set()
        assert requests.restarts == 0
        handles[1].start()
        await until(lambda: "predictors answer" not in forecasting.state)
        await until(lambda: requests.restarts == 1)


async def test_a_restart_is_counted_though_nobody_missed_the_predictor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.forecasting.SYNC_INTERVAL_S", 0.05)
    requests = Requests()
    handle = LocalHandle(ScriptedNetwork())
    async with running(requests, [handle]) as forecasting:
        await until(lambda: len(forecasting.stats) == 1)
        handle.start()
        await until(lambda: requests.restarts == 1)


async def test_every_predictor_learns_from_every_outcome_once() -> None:
    requests = Requests()
    handles = [LocalHandle(ScriptedNetwork()) for _ in range(2)]
    async with running(requests, handles, timeout_s=0.2) as forecasting:
        handles[1].goes_on.clear()
        for number in range(500):
            forecasting.observe(submission(number), finished(number))
        await until(lambda: forecasting.stats[0].outcomes == 500)
        for number in range(500, 600):
            forecasting.observe(submission(number), finished(number, reason="length"))
        for number in range(600, 650):
            forecasting.observe(submission(number), finished(number, reason="abort"))
        handles[1].goes_on.set()
        await until(lambda: [s.outcomes for s in forecasting.stats] == [600, 600])
        await until(lambda: math.exp(forecasting.prior([Request("r", 50, 4096)])[0].mu) < 60)


async def test_outcomes_of_a_call_that_the_death_ended_are_given_again_once() -> None:
    requests, handle = Requests(), LocalHandle(ScriptedNetwork())
    async with running(requests, [handle]) as forecasting:
        handle.dies_after = "observe"  # after it has learnt: the worst case
        for number in range(100):
            forecasting.observe(submission(number), finished(number))
        await until(lambda: forecasting.stats[0].outcomes >= 200)
        await until(lambda: handle.count("prior") > 20)
        assert forecasting.stats[0].outcomes == 200


async def test_a_predictor_that_dies_is_asked_again_when_it_is_back() -> None:
    requests, handle = Requests(), LocalHandle(ScriptedNetwork())
    async with running(requests, [handle]) as forecasting:
        handle.dead = True
        submit(requests, forecasting, submission(1))
        await until(lambda: "it is dead" in forecasting.state)
        submit(requests, forecasting, submission(2))
        handle.dead = False
        await until(lambda: "r2" in requests.arrived)
        assert forecasting.state.startswith("network scripted")


async def test_a_predictor_that_stays_silent_is_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests, handle = Requests(), LocalHandle(ScriptedNetwork())
    killed: list[bool] = []

    def kill(handle: LocalHandle, no_restart: bool = True) -> None:
        killed.append(no_restart)
        handle.dead = True  # whoever waited for it hears so
        handle.goes_on.set()

    async with running(requests, [handle], timeout_s=0.05) as forecasting:
        monkeypatch.setattr(forecasting_module, "RESTART_S", 3.0)
        monkeypatch.setattr(ray, "kill", kill)
        handle.goes_on.clear()
        submit(requests, forecasting, submission(1))
        await until(lambda: bool(killed))
        handle.dead = False
        submit(requests, forecasting, submission(2))
        await until(lambda: "r2" in requests.arrived)
        assert killed == [False]


def watch(**changes: Any) -> WatchStats:
    values: dict[str, Any] = {
        "outcomes": 512, "trusted": True, "reason": "", "fallbacks": 0, "coverage": 0.91,
        "target": 0.9, "rank": 0.41, "rank_prior": 0.1, "gain": 0.2, "shift": 0.0, "scale": 1.0,
    }  # fmt: skip
    return WatchStats(**values | changes)


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        (PredictorStats(), "the prior alone, no trained network"),
        (
            PredictorStats(network="n", network_error="NaN"),
            "prior, the network n cannot be used: N",
        ),
        (PredictorStats(network="n", watch=watch(outcomes=0)), "network n; no answer has ended"),
        (PredictorStats(network="n", watch=watch()), "91 % inside the interval (aim 90 %), rank"),
        (PredictorStats(network="n", watch=watch()), "rank correlation 0.41 (prior 0.10)"),
        (
            PredictorStats(network="n", watch=watch(trusted=False, reason="it lies")),
            "prior, the network n is out of favour: it lies; of the latest 512",
        ),
    ],
)
def test_the_state_in_words(stats: PredictorStats, text: str) -> None:
    assert text in describe(stats)
