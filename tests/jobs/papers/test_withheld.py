"""The section about networks that have learnt from the kinds of prompts they are scored on."""

import pytest

from jobs.papers import withheld
from predictor.labels import Labels
from predictor.splits import prompt_key
from tests.predictor.training_factories import labels_of, texts

SCORES = {
    "prompts": 361,
    "r2_mu": 0.66,
    "r2_sigma": 0.03,
    "kendall_tau": 0.53,
    "nll": 6.38,
    "nll_prior": 6.66,
    "coverage": 0.935,
    "coverage_due": 0.905,
}


def test_the_section_has_the_baselines_beside_the_networks() -> None:
    boosted = {"A": {"prompts": 361, "trained_on": 3_232, "r2_mu": 0.44, "kendall_tau": 0.39}}
    own = {"part": "boosting", "trained_on": "train", "scored_on": "validate"}
    both = {"part": "boosting", "trained_on": "both", "scored_on": "both"}
    network = {"part": "network", "name": "both files, all thirteen", "divisions": 2}
    result = {"scores": {"A": SCORES}, "divided": {"A": [0.90, 0.92], "B": [0.88, 0.86]}}
    text = withheld.write([(own, boosted), (both, boosted), (network, result)]).text
    assert "361 prompts of A" in text
    assert "own 3,232 other prompts" in " ".join(text.split())
    assert "| boosting, own prompts, file to file | 0.44 | 0.39 |" in text
    assert "| both files, all thirteen | 0.66 | 0.53 |" in text
    assert "| both files, all thirteen, A | 6.38 | 6.66 | 93.5 % | 90.5 % | 0.03 |" in text
    assert "| 89.0 % | 87.0 % (B) | 91.0 % (A) | 89.0 ± 2.6 |" in text


def test_no_withheld_prompt_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    once = texts(200)
    # The same prompts again, as another file may have them.
    made = labels_of([*once, *(text.replace(" ", "  ") for text in once)])
    monkeypatch.setattr(withheld, "labels_of", lambda files, models: made)
    learnt = made.take(withheld.all_but_withheld(made))
    test = withheld.withheld_prompts("any", "one")

    def keys(labels: Labels) -> set[int]:
        return {prompt_key(text) for text in labels.prompts.text}

    assert not keys(learnt) & keys(test)
    assert len(learnt) + len(test) == len(made)
    assert 0 < len(test) < len(learnt)
