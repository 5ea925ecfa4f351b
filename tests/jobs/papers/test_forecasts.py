"""The section about trained networks, and the one encoder that they share."""

import numpy as np

from jobs.papers import forecasts
from jobs.papers.forecasts_section import write
from jobs.papers.remembering_encoder import RememberingEncoder
from predictor.encoder import TextEncoder
from tests.predictor.networks import make_spec

SCORES = {
    "prompts": 100,
    "r2_mu": 0.5,
    "r2_sigma": 0.1,
    "kendall_tau": 0.45,
    "nll": 6.0,
    "nll_prior": 6.5,
    "coverage": 0.91,
    "interval_width": 400.0,
    "interval_width_prior": 600.0,
}


def loop(latency_s: dict[str, float]) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        "arms": {
            name: {"per_token_mean_s": value, "latency_mean_s": 9.0, "kendall": None}
            for name, value in latency_s.items()
        }
    }


def test_the_section_tells_scores_and_the_share_of_the_way() -> None:
    network = {"part": "network", "name": "all thirteen"}
    latency_s = dict.fromkeys(("random", "prior", "exact"), 2.0)
    latency_s |= {"fcfs": 3.0, "learned": 1.5, "oracle": 1.0}
    cell = {"part": "loop", "regime": "slots", "requests": 7, "load": 2.0, "step_time": "linear"}
    text = write(
        [
            (network, {"A": SCORES}),
            ({**network, "scored_on": "its own test side"}, {"A": SCORES}),
            ({"part": "linear"}, {"A": SCORES}),
            (cell, loop(latency_s)),
        ]
    ).text
    assert "| all thirteen (its own test side) | 0.50 | 0.45 |" in text
    assert "| all thirteen, A | 6.00 | 6.50 | 91.0 % | 400 | 600 | 0.10 |" in text
    assert "| tiebreak, learned | 1.500 | 9.0 | 0.75 |" in text


def test_every_network_is_another_cell() -> None:
    cells = [str(cell) for cell in forecasts.study().cells]
    assert len(set(cells)) == len(cells)


def test_a_remembered_text_is_not_read_again(tmp_path, monkeypatch) -> None:
    read: list[str] = []
    plain = TextEncoder.pooled

    def counted(self, texts, **options):
        read.extend(texts)
        return plain(self, texts, **options)

    spec = make_spec(tmp_path / "encoder")
    encoder = RememberingEncoder(spec)
    monkeypatch.setattr(TextEncoder, "pooled", counted)
    first = encoder.pooled(["a river", "a hill", "a river"])
    again = encoder.pooled(["a hill", "a river"])
    assert sorted(read) == ["a hill", "a river"]
    assert np.array_equal(first[[1, 0]], again)
    assert np.array_equal(first[0], first[2])
