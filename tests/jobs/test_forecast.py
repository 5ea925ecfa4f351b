"""`tiebreak forecast`: one prompt's distribution without a cluster."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.command import run
from jobs.forecast import forecast
from jobs.length_chart import bin_edges
from jobs.options import with_config
from policies.forecast import Forecast
from policies.logt import survival
from predictor.actor import PredictorActor
from predictor.artifact import save_artifact
from predictor.encoder import TextEncoder
from predictor.learned import LearnedForecaster
from predictor.messages import Outcome
from tests.predictor.networks import make_artifact, make_prompts, make_spec

PROMPT = "write w7 words w3"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    save_artifact(folder / "trained", make_artifact(TextEncoder(make_spec(folder / "encoder"))))
    return folder / "trained"


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints, or its error."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_config(forecast))
    with pytest.raises(SystemExit) as ended:
        run(app, ["--model", "a", "--prompt-tokens", "5", *words])
    out = capsys.readouterr()
    assert ended.value.code == (2 if "error:" in out.err else 0), out.err
    return out.err if ended.value.code else out.out


def report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(told(capsys, "--json", *words))
    return answer


def test_it_tells_what_the_network_says(capsys: pytest.CaptureFixture[str], network: Path) -> None:
    words = ("--network", str(network), "--max-tokens", "300", "--temperature", "0.5")
    got = report(capsys, PROMPT, *words)
    mu, sigma = LearnedForecaster.load(network).predict(
        make_prompts([PROMPT], prompt_tokens=[5], max_tokens=[300], temperature=[0.5])
    )
    assert (got["source"], got["network"], got["source_note"]) == ("learned", "trained", "")
    assert got["mu"] == pytest.approx(mu[0])
    assert got["sigma"] == pytest.approx(sigma[0])
    assert 1 <= got["lower"] <= math.exp(mu[0]) <= got["upper"] <= 300
    assert got["share_at_cap"] == pytest.approx(float(survival(mu[0], sigma[0], 300)))
    assert got["expectation"] <= got["cvar"] <= 300
    busy = report(capsys, PROMPT, *words, "--waiting", "200", "--slots", "10")
    assert busy["beta"] > got["beta"]
    assert busy["tie"] > got["tie"]


def test_the_text_matters_and_its_middle_does_not_when_it_is_long(
    capsys: pytest.CaptureFixture[str], network: Path
) -> None:
    def mu(prompt: str) -> float:
        return float(report(capsys, prompt, "--network", str(network))["mu"])

    assert mu(PROMPT) != mu("list w100 w200 w300 w400")
    head, tail = "w1 w2 " * 400, " w3 w4" * 200
    assert mu(head + "w5 " * 100 + tail) == mu(head + "w500 " * 33_000 + tail)


def test_without_a_network_it_tells_what_was_learnt_of_lengths(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    fresh = report(capsys, PROMPT)
    assert fresh["source"] == "prior"
    assert "no network is shipped for a" in fresh["source_note"]

    async def learn() -> None:
        actor = PredictorActor(str(cache / "predictor" / "a.json"))
        await actor.observe([Outcome("a", 5, 20, False)] * 500)
        await actor.save()

    asyncio.run(learn())
    got = report(capsys, PROMPT, "--network", "none")
    assert 15 < math.exp(got["mu"]) < 25
    assert got["source_note"] == ""


def test_people_see_the_figures_and_a_plot(
    capsys: pytest.CaptureFixture[str], network: Path
) -> None:
    shown = told(capsys, PROMPT, "--network", str(network), "--max-tokens", "300")
    assert "learned trained" in shown
    assert "90 % interval" in shown
    assert re.search(r"over 300 .*\d %", shown)
    shares = [float(s) for s in re.findall(r"([\d.]+) %$", shown, re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=1.0)
    assert "█" in shown


def test_a_prompt_comes_from_the_standard_input_too(
    capsys: pytest.CaptureFixture[str], network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--network", str(network))
    direct = report(capsys, PROMPT, *options)
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert report(capsys, "-", *options) == direct


def test_what_cannot_be_done_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = " ".join(told(capsys, PROMPT, "--network", str(tmp_path / "nowhere")).split())
    assert f"--network {tmp_path / 'nowhere'}: no network at" in missing
    assert "the prompt is empty" in told(capsys, "  ")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_config(forecast))
    with pytest.raises(SystemExit):
        run(app, [PROMPT, "--model", str(tmp_path / "no-model"), "--network", "none"])
    assert "--prompt-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("mu", "sigma"), [(5.0, 1.0), (-3.0, 0.1), (20.0, 0.0), (3.0, 9.0)])
@pytest.mark.parametrize("cap", [1, 2, 7, 4096])
def test_bins_end_at_the_cap(mu: float, sigma: float, cap: int) -> None:
    edges = bin_edges(Forecast(mu, sigma, 1, cap), cap).tolist()
    assert edges[-1] == cap
    assert edges == sorted(set(edges))
    assert edges[0] >= 1
