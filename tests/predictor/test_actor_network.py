"""The predictor with a network: who answers what, what a fault costs, and what is remembered."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from predictor.actor import PredictorActor
from predictor.calibrations import Calibrations
from predictor.messages import Answer, LogT, Outcome
from predictor.network_source import NetworkSource
from tests.predictor.scripted_network import ScriptedNetwork, asked, ended

ROOT = Path(__file__).parents[2]


def predictor(network: ScriptedNetwork, path: Path | None = None, **options: Any) -> PredictorActor:
    return PredictorActor(None if path is None else str(path), source=network, **options)


def sources(answers: list[Answer]) -> list[str]:
    return [answer.forecast.source for answer in answers]


async def live(
    actor: PredictorActor, rng: np.random.Generator, rounds: int, truth: float
) -> list[str]:
    """Serve and finish requests whose ln length is `truth` times what the network is told."""
    seen = []
    for _ in range(rounds):
        mu = rng.uniform(3, 6, 32)
        queries = asked([f"{value:.4f}" for value in mu])
        answers = await actor.forecast(queries)
        lengths = np.exp(4.5 + truth * (mu - 4.5) + 0.3 * rng.standard_t(3.5, 32))
        outcomes = [
            msgspec.structs.replace(
                ended(query, int(np.clip(length, 1, query.max_tokens))), learned=answer.learned
            )
            for query, answer, length in zip(queries, answers, lengths, strict=True)
        ]
        await actor.observe(outcomes)
        seen += sources(answers)
    return seen


async def test_one_pass_of_the_network_answers_32_callers() -> None:
    network = ScriptedNetwork()
    actor = predictor(network, patience_s=3600.0)
    queries = asked([str(4 + i / 100) for i in range(64)])
    answers = await asyncio.gather(*(actor.forecast([query]) for query in queries))
    assert [len(batch) for batch in network.batches] == [32, 32]
    for query, (answer,) in zip(queries, answers, strict=True):
        assert answer.learned == LogT(float(query.text), 0.3)
        assert answer.forecast.source == "learned"
        assert answer.forecast.mu == float(query.text)
        assert answer.forecast.lower < math.exp(float(query.text)) < answer.forecast.upper


async def test_the_interval_ends_at_the_cap() -> None:
    (answer,) = await predictor(ScriptedNetwork()).forecast(asked(["6"], max_tokens=7))
    assert answer.forecast.lower <= answer.forecast.upper == 7


async def test_intervals_are_those_of_the_model_that_answers() -> None:
    network = ScriptedNetwork()
    pooled = network.calibration.pooled
    wide = msgspec.structs.replace(pooled, z=[2 * z for z in pooled.z])
    network.calibration = Calibrations(pooled, {"m": wide, "another": pooled})
    (own,) = await predictor(network).forecast(asked(["6"]))
    network.model = "another"
    (other,) = await predictor(network).forecast(asked(["6"]))
    widths = [math.log(a.forecast.upper / a.forecast.lower) for a in (own, other)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)


async def test_what_the_network_cannot_answer_has_the_prior() -> None:
    network = ScriptedNetwork()
    network.last_failure = "not a number"
    actor = predictor(network)
    answers = await actor.forecast(asked(["5", "", "nan", "  ", "4"]))
    assert sources(answers) == ["learned", "prior", "prior", "prior", "learned"]
    assert [answer.learned is None for answer in answers] == [False, True, True, True, False]
    stats = await actor.stats()
    assert (stats.forecasts, stats.learned, stats.failed) == (5, 2, 3)
    assert stats.last_failure == "not a number"
    prior = await PredictorActor(None).forecast(asked(["", ""]))
    assert answers[1].forecast == prior[0].forecast


async def test_a_pass_that_fails_costs_its_batch_the_network_and_no_more() -> None:
    actor = predictor(ScriptedNetwork())
    assert sources(await actor.forecast(asked(["5", "fail"]))) == ["prior", "prior"]
    assert sources(await actor.forecast(asked(["5"]))) == ["learned"]
    stats = await actor.stats()
    assert stats.failed == 2
    assert stats.last_failure == "RuntimeError: the pass failed"


async def test_a_full_queue_is_answered_by_the_prior_at_once() -> None:
    network = ScriptedNetwork()
    actor = predictor(network, batch=4, room=8)
    network.gate.clear()
    held = asyncio.create_task(actor.forecast(asked(["5"] * 4)))
    await asyncio.to_thread(network.entered.wait, 30)
    waiting = asyncio.create_task(actor.forecast(asked(["4"] * 10)))
    await asyncio.sleep(0)
    # The network is held, and yet this is answered.
    assert sources(await actor.forecast(asked(["3"]))) == ["prior"]
    network.gate.set()
    assert sources(await held) == ["learned"] * 4
    assert sources(await waiting) == ["learned"] * 8 + ["prior"] * 2
    stats = await actor.stats()
    assert (stats.overflowed, stats.failed, stats.learned) == (3, 0, 12)


async def test_a_network_that_cannot_be_loaded_is_reported_and_the_prior_serves() -> None:
    actor = predictor(ScriptedNetwork(load_error=ValueError("weights have NaN")))
    answers = await actor.forecast(asked(["5", "4"]))
    assert sources(answers) == ["prior", "prior"]
    stats = await actor.ready()
    assert (stats.network, stats.network_error) == ("scripted", "weights have NaN")
    assert sources(await actor.forecast(asked(["5"]))) == ["prior"]
    assert await actor.observe([ended(asked(["5"])[0], 30)]) == 1


async def test_a_missing_folder_is_reported_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "no-network"
    actor = PredictorActor(None, source=NetworkSource(str(folder), "m"))
    stats = await actor.ready()
    assert str(folder) in (stats.network_error or "")
    assert sources(await actor.forecast(asked(["5"]))) == ["prior"]


@pytest.mark.parametrize(
    "source", [NetworkSource("none", "m"), NetworkSource("auto", "a model nobody ships for")]
)
async def test_without_a_network_nothing_is_wrong(source: NetworkSource) -> None:
    actor = PredictorActor(None, source=source)
    assert sources(await actor.forecast(asked(["5"]))) == ["prior"]
    stats = await actor.ready()
    assert (stats.network, stats.network_error, stats.watch, stats.failed) == ("", None, None, 0)


async def test_a_network_out_of_trust_is_still_asked_and_comes_back() -> None:
    actor, rng = predictor(ScriptedNetwork()), np.random.default_rng(1)
    good = await live(actor, rng, 12, truth=1.0)
    assert set(good) == {"learned"}
    bad = await live(actor, rng, 24, truth=-1.0)
    assert bad[-1] == "prior"
    (answer,) = await actor.forecast(asked(["5"]))
    assert answer.forecast.source == "prior"
    assert answer.learned == LogT(5.0, 0.3)
    watch = (await actor.stats()).watch
    assert watch is not None
    assert not watch.trusted
    assert watch.fallbacks == 1
    assert watch.reason
    assert (await live(actor, rng, 40, truth=1.0))[-1] == "learned"


async def test_the_prior_is_judged_by_what_it_knew_before(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = predictor(ScriptedNetwork())
    await actor.ready()
    (before,) = await actor.forecast(asked(["5"]))
    assert actor._network is not None
    told: list[float] = []

    def spy(outcomes: list[Outcome], priors: list[Any]) -> None:
        told.extend(prior.mu for prior in priors)

    monkeypatch.setattr(actor._network, "observe", spy)
    outcome = msgspec.structs.replace(ended(asked(["5"])[0], 9), learned=LogT(5.0, 0.3))
    await actor.observe([outcome] * 500)
    prior = (await PredictorActor(None).forecast(asked([""])))[0].forecast
    assert told == [prior.mu] * 500
    (after,) = await actor.forecast(asked([""]))
    assert after.forecast.mu < prior.mu - 1
    assert before.learned is not None


async def test_outcomes_that_cannot_be_judged_do_not_stop_learning() -> None:
    actor = predictor(ScriptedNetwork())
    await actor.ready()
    good = ended(asked(["5"])[0], 30)
    batch = [
        msgspec.structs.replace(good, learned=LogT(5.0, 0.3)),
        msgspec.structs.replace(good, learned=LogT(math.nan, 0.3)),
        msgspec.structs.replace(good, learned=LogT(5.0, 0.0)),
        msgspec.structs.replace(good, learned=LogT(5.0, 0.3), prompt_tokens=0),
        msgspec.structs.replace(good, learned=LogT(5.0, 0.3), max_tokens=1 << 40),
        good,
    ]
    assert await actor.observe(batch) == 5
    watch = (await actor.stats()).watch
    assert watch is not None
    assert watch.outcomes == 2


async def test_what_was_learnt_of_a_network_outlives_the_actor(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    actor = predictor(ScriptedNetwork(), path)
    await live(actor, np.random.default_rng(2), 20, truth=-1.0)
    await actor.save()
    before = (await actor.stats()).watch
    assert before is not None
    assert not before.trusted
    again = predictor(ScriptedNetwork(), path)
    assert (await again.ready()).watch == before
    assert sources(await again.forecast(asked(["5"]))) == ["prior"]
    assert sources(await predictor(ScriptedNetwork()).forecast(asked(["5"]))) == ["learned"]


@pytest.mark.parametrize("content", [None, "{ not json", "[1]", '{"version": 0}'])
async def test_an_old_or_broken_state_of_the_network_is_no_obstacle(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "prior.json"
    writer = PredictorActor(str(path))
    await writer.observe([ended(asked(["5"])[0], 30)] * 300)
    await writer.save()
    if content is not None:
        path.with_name("prior.watch.json").write_text(content)
    actor = predictor(ScriptedNetwork(), path)
    assert sources(await actor.forecast(asked(["5"]))) == ["learned"]
    (answer,) = await actor.forecast(asked([""]))
    assert 25 < math.exp(answer.forecast.mu) < 35


async def test_a_predictor_that_is_not_the_writer_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    actor = predictor(ScriptedNetwork(), path, writes=False, save_every_outcomes=1)
    await actor.observe([ended(asked(["5"])[0], 30)])
    await actor.save()
    actor.__ray_shutdown__()
    assert list(tmp_path.iterdir()) == []


def test_the_predictor_does_without_torch_and_ray_until_a_network_is_loaded() -> None:
    code = (
        "import asyncio, sys\n"
        "from predictor.actor import PredictorActor\n"
        "from predictor.messages import ForecastQuery\n"
        "actor = PredictorActor(None)\n"
        "asyncio.run(actor.forecast([ForecastQuery('r', 'm', 5, 9, 'text')]))\n"
        "print(*(m for m in ('ray', 'torch', 'transformers') if m in sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []
