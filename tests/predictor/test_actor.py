import asyncio
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from policies.model_lengths import DEFAULT_MU
from predictor.actor import PredictorActor
from predictor.messages import ForecastQuery, Outcome, PredictorStats
from predictor.prior import PriorForecaster


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def start(path: Path, restarts: int = 0, **arguments: Any) -> Any:
    return (
        ray.remote(PredictorActor)
        .options(num_cpus=0, max_restarts=restarts, max_task_retries=restarts)
        .remote(str(path), **arguments)
    )


def answers(tokens: int, count: int = 200, model: str = "m") -> list[Outcome]:
    return [Outcome(model, 50, tokens + i % 7, False) for i in range(count)]


def queries(count: int, model: str = "m") -> list[ForecastQuery]:
    return [ForecastQuery(f"r{i}", model, 50, 100 * (i + 1)) for i in range(count)]


def wait_for(actor: Any, reached: Callable[[PredictorStats], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if reached(ray.get(actor.stats.remote())):
            return
        time.sleep(0.02)
    raise AssertionError(f"not reached: {ray.get(actor.stats.remote())}")


@pytest.mark.usefixtures("cluster")
def test_it_learns_and_givenin_the_order_of_the_queries(tmp_path: Path) -> None:
    actor = start(tmp_path / "prior.json")
    assert ray.get(actor.observe.remote(answers(40) + answers(900, model="other"))) == 400
    batch = [*queries(2), *queries(1, "other"), *queries(1, "unknown"), *queries(3)]
    given = ray.get(actor.forecast.remote(batch))
    forecasts = [answer.forecast for answer in given]
    likely = [round(math.exp(f.mu)) for f in forecasts]
    assert [40 <= t <= 47 for t in likely] == [True, True, False, False, True, True, True]
    assert 880 < likely[2] < 920
    assert forecasts[3].mu == DEFAULT_MU
    assert all(f.upper <= q.max_tokens for f, q in zip(forecasts, batch, strict=True))
    stats = ray.get(actor.stats.remote())
    assert (stats.forecasts, stats.outcomes, stats.rejected) == (7, 400, 0)


@pytest.mark.usefixtures("cluster")
def test_a_killed_actor_comes_back_with_what_it_had_learnt(tmp_path: Path) -> None:
    actor = start(tmp_path / "prior.json", restarts=5, save_every_outcomes=100)
    ray.get(actor.observe.remote(answers(40)))
    before = ray.get(actor.forecast.remote(queries(3)))
    wait_for(actor, lambda stats: stats.saves > 0)
    ray.kill(actor, no_restart=False)
    wait_for(actor, lambda stats: stats.outcomes == 0)  # a new process answers
    assert ray.get(actor.forecast.remote(queries(3))) == before
    assert ray.get(actor.stats.remote()).load_warning is None


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_ends_in_good_order_saves(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    actor = start(path, save_interval_s=3600.0)
    ray.get(actor.observe.remote(answers(40)))
    assert not path.exists()
    actor.__ray_terminate__.remote()
    deadline_s = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert 3.6 < ray.get(start(path).forecast.remote(queries(1)))[0].forecast.mu < 3.9


async def test_outcomes_are_saved_after_the_interval(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    actor = PredictorActor(str(path), save_interval_s=0.01)
    await actor.observe(answers(40, count=3))
    async with asyncio.timeout(60):
        while not (await actor.stats()).saves:
            await asyncio.sleep(0.01)
    assert path.exists()


async def test_bad_outcomes_are_dropped_and_counted(tmp_path: Path) -> None:
    actor = PredictorActor(None)
    batch = [
        *answers(40, 5),
        Outcome("m", 50, 0, False),
        *answers(40, 4),
        Outcome("m", -1, 5, True),
    ]
    assert await actor.observe(batch) == 9
    assert await actor.observe([]) == 0
    stats = await actor.stats()
    assert (stats.outcomes, stats.rejected) == (9, 2)
    assert "prompt_tokens is -1" in (stats.last_rejection or "")


async def test_a_bad_query_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is 0 at position 0"):
        await PredictorActor(None).forecast([ForecastQuery("r", "m", 5, 0)])


async def test_a_save_that_fails_is_reported_and_forecasts_go_on(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    actor = PredictorActor(str(blocker / "prior.json"), save_every_outcomes=1)
    await actor.observe(answers(40))
    with pytest.raises(OSError, match="file"):
        await actor.save()
    assert "file" in ((await actor.stats()).save_error or "")
    assert len(await actor.forecast(queries(4))) == 4
    blocker.unlink()
    await actor.save()
    stats = await actor.stats()
    assert stats.saves >= 1
    assert stats.save_error is None


async def test_a_corrupt_file_is_reported_and_does_not_stop_the_actor(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    path.write_text("{ not json")
    actor = PredictorActor(str(path))
    assert "unusable" in ((await actor.stats()).load_warning or "")
    assert len(await actor.forecast(queries(2))) == 2


async def test_a_copy_of_the_prior_gives_the_same_forecasts() -> None:
    actor = PredictorActor(None)
    await actor.observe(answers(40))
    copy = PriorForecaster()
    copy.load_state(await actor.prior())
    (answer,) = await actor.forecast(queries(1))
    assert copy.forecast("m", [50], [100]) == [answer.forecast]


@pytest.mark.parametrize("arguments", [{"save_every_outcomes": 0}, {"save_interval_s": 0.0}])
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PredictorActor(None, **arguments)
