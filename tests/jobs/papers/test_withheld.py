"""The section about networks that have learnt from the kinds of prompts they are scored on."""

import numpy as np
import pytest

from jobs.papers import withheld
from jobs.papers.castillo import data_folder
from jobs.papers.networks import LLAMA_8B, labels_of
from predictor.splits import Split, prompt_key

SCORES = {
    "prompts": 361,
    "r2_mu": 0.66,
    "r2_sigma": 0.03,
    "kendall_tau": 0.53,
    "nll": 6.38,
    "nll_prior": 6.66,
    "coverage": 0.935,
}


def test_the_section_has_the_baselines_beside_the_networks() -> None:
    boosted = {"A": {"prompts": 361, "trained_on": 3_232, "r2_mu": 0.44, "kendall_tau": 0.39}}
    own = {"part": "boosting", "trained_on": "train", "scored_on": "validate"}
    both = {"part": "boosting", "trained_on": "both", "scored_on": "both"}
    network = {"part": "network", "name": "both files, all thirteen"}
    text = withheld.write([(own, boosted), (both, boosted), (network, {"A": SCORES})]).text
    assert "361 prompts of A" in text
    assert "own 3,232 other prompts" in " ".join(text.split())
    assert "| boosting, own prompts, file to file | 0.44 | 0.39 |" in text
    assert "| both files, all thirteen | 0.66 | 0.53 |" in text
    assert "| both files, all thirteen, A | 6.38 | 6.66 | 93.5 % | 0.03 |" in text


@pytest.mark.skipif(data_folder() is None, reason="CASTILLO is not in $TIEBREAK_DATA")
def test_no_withheld_prompt_is_learnt() -> None:
    labels = labels_of("train+validate", (LLAMA_8B,))
    learnt = labels.take(withheld.all_but_withheld(labels))
    test = withheld.withheld_prompts("train+validate", LLAMA_8B)

    def keys(texts) -> set[int]:
        return {prompt_key(text) for text in texts}

    assert not keys(learnt.prompts.text) & keys(test.prompts.text)
    assert len(learnt) + len(test) == len(labels)
    rows = labels.split()[Split.TEST]
    assert np.array_equal(labels.take(rows).output_tokens, test.output_tokens)
