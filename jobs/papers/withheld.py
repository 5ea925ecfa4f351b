"""What networks are worth on withheld prompts of the kinds that they have learnt from."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from jobs.papers.castillo import data_folder
from jobs.papers.forecasts_section import score_cells
from jobs.papers.markdown import percent, spread, table
from jobs.papers.networks import MODELS, labels_of, short_name, trained
from jobs.papers.study import Cell, Pairs, Result, Section, Study
from jobs.papers.tie_online import MAX_TOKENS
from policies.batch import Floats, Ints
from predictor.labels import Labels
from predictor.splits import Split
from predictor.training_settings import TrainingSettings

MODEL_WIDTH = 8
"""Of the network of all models that may differ in more than an offset."""

_FILES = "train+validate"
_DIVISIONS = 20
_TREES, _LEARNING_RATE = 200, 0.05
_ALL = "all thirteen"


def study() -> Study:
    """The study: every network is scored on the tenth of the prompts that it has not seen."""
    cells: list[Cell] = [
        {"part": "boosting", "trained_on": "train", "scored_on": "validate"},
        {"part": "boosting", "trained_on": _FILES, "scored_on": _FILES},
        *(_network(f"{short_name(name)} alone", models=[name]) for name in MODELS),
        _network(f"{_ALL}, an offset each"),
        _network(f"{_ALL}, width {MODEL_WIDTH}", model_width=MODEL_WIDTH),
    ]
    return Study(
        name="withheld",
        title="A forecast learnt from the kinds of prompts it serves",
        cells=cells if data_folder() is not None else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def _network(name: str, *, models: list[str] | None = None, model_width: int = 0) -> Cell:
    return {
        "part": "network",
        "name": f"both files, {name}",
        "files": _FILES,
        "models": models,
        "leave_out": [],
        "loss": TrainingSettings().loss.value,
        "model_width": model_width,
        "divisions": _DIVISIONS,
        "seed": 0,
    }


def measure(cell: Cell) -> Result:
    """Scores by model; for a network also how much of each model's answers its intervals hold."""
    if cell["part"] == "boosting":
        return {short_name(name): _boosting(cell, name) for name in MODELS}
    from jobs.papers.divided_coverage import divided_coverage
    from jobs.papers.remembering_encoder import load
    from predictor.evaluation import evaluate

    folder = trained(cell)
    forecaster = load(folder)
    scores: Result = {}
    for name in cell["models"] or MODELS:
        labels = withheld_prompts(_FILES, name)
        found = evaluate(folder, labels, cap_tokens=MAX_TOKENS, forecaster=forecaster)
        scores[short_name(name)] = msgspec.to_builtins(found)
    learnt = labels_of(_FILES, tuple(cell["models"] or ()))
    divided = divided_coverage(folder, learnt, MAX_TOKENS, divisions=cell["divisions"])
    return {"scores": scores, "divided": {short_name(name): r for name, r in divided.items()}}


def withheld_prompts(files: str, model: str) -> Labels:
    """The test side of a model's prompts in these files (`networks.labels_of`)."""
    labels = labels_of(files, (model,))
    return labels.take(labels.split()[Split.TEST])


def _boosting(cell: Cell, model: str) -> dict[str, Any]:
    """Gradient boosting of the fitted mu on the frozen encoder's sentence vector.

    It learns from all prompts but the withheld ones; a network keeps two tenths of them for its
    stop and its calibration.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    from predictor.label_fit import fit_labels
    from predictor.scores import kendall_tau, r2

    labels = labels_of(cell["trained_on"], (model,))
    if cell["trained_on"] == cell["scored_on"]:
        test = withheld_prompts(cell["scored_on"], model)
        labels = labels.take(all_but_withheld(labels))
    else:
        test = labels_of(cell["scored_on"], (model,))
    trees = HistGradientBoostingRegressor(
        max_iter=_TREES, learning_rate=_LEARNING_RATE, random_state=0
    )
    trees.fit(_sentence_vectors(labels), fit_labels(labels).mu)
    mu = trees.predict(_sentence_vectors(test))
    return {
        "prompts": len(test),
        "trained_on": len(labels),
        "r2_mu": r2(fit_labels(test).mu, mu),
        "kendall_tau": kendall_tau(test, mu),
    }


def all_but_withheld(labels: Labels) -> Ints:
    """Rows of every side but the test side, ascending."""
    sides = labels.split()
    return np.sort(np.concatenate([sides[side] for side in Split if side is not Split.TEST]))


def _sentence_vectors(labels: Labels) -> Floats:
    """Mean of the encoder's last hidden states over a prompt's tokens, (n, width)."""
    from jobs.papers.remembering_encoder import shared_encoder
    from predictor.examples import encoder_spec

    settings = TrainingSettings(encoder_layers=(-1,))
    encoder = shared_encoder(encoder_spec(settings))
    _, mean, _ = np.split(encoder.pooled(labels.prompts.text), 3, axis=1)
    vectors: Floats = mean.astype(np.float64)
    return vectors


def write(pairs: Pairs) -> Section:
    """The section."""
    boosting = [(cell, result) for cell, result in pairs if cell["part"] == "boosting"]
    networks = [(cell, result) for cell, result in pairs if cell["part"] == "network"]
    names = list(boosting[0][1])
    return Section(
        "\n\n".join(
            (
                _what(boosting, names),
                _ranks(boosting, networks, names),
                _rest(networks),
                _divided(networks),
            )
        )
    )


def _what(boosting: Pairs, names: list[str]) -> str:
    within = boosting[1][1][names[0]]
    return f"""\
`python -m jobs.papers --study withheld`. CASTILLO's own two files differ in kind: `train.parquet`
has two kinds of code tasks for {names[0]}, `validate.parquet` seven kinds of prompts. Here both
are taken together, and a tenth of the prompts is withheld by its text, the same for every row:
{within["prompts"]:,} prompts of {names[0]}. That is the case of a predictor trained on the
traffic that it serves; the section before has the transfer to other kinds. *Boosting* is
scikit-learn's gradient boosting ({_TREES} trees, rate {_LEARNING_RATE:g}) on the frozen encoder's
sentence vector, which learns mu from the model's own {within["trained_on"]:,} other prompts. The
networks are `tiebreak train` with its defaults, on the same encoder: of one model's prompts alone,
or of all thirteen models', where models differ by an offset each (the default) or by
`--model-width {MODEL_WIDTH}` more outputs. tau is Kendall's between the forecast and one realised
length, the mean over ten."""


def _ranks(boosting: Pairs, networks: Pairs, names: list[str]) -> str:
    head = ["learnt from", *(f"{name}: {what}" for name in names for what in ("R2 mu", "tau"))]
    rows = []
    for cell, result in boosting:
        kind = "both files" if cell["trained_on"] == cell["scored_on"] else "file to file"
        rows.append([f"boosting, own prompts, {kind}", *score_cells(result, names)])
    rows += [[cell["name"], *score_cells(result["scores"], names)] for cell, result in networks]
    return table(head, rows)


def _rest(networks: Pairs) -> str:
    head = ["learnt from, scored on", "NLL", "prior's", "coverage of 90 %", "due", "R2 sigma"]
    rows = [
        [
            f"{cell['name']}, {name}",
            f"{scores['nll']:.2f}",
            f"{scores['nll_prior']:.2f}",
            percent(scores["coverage"]),
            percent(scores["coverage_due"]),
            f"{scores['r2_sigma']:.2f}",
        ]
        for cell, result in networks
        for name, scores in result["scores"].items()
    ]
    return table(head, rows)


def _divided(networks: Pairs) -> str:
    divisions = networks[0][0]["divisions"]
    rows = []
    for cell, result in networks:
        rates = {name: sum(found) / len(found) for name, found in result["divided"].items()}
        least, most = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
        single = [rate for found in result["divided"].values() for rate in found]
        rows.append(
            [
                cell["name"],
                percent(sum(rates.values()) / len(rates)),
                f"{percent(rates[least])} ({least})",
                f"{percent(rates[most])} ({most})",
                spread([100 * rate for rate in single], 1),
            ]
        )
    head = ["learnt from", "coverage of 90 %", "model with least", "with most", "one division"]
    return f"""\
*Due* is what the coverage would be with every end right: an interval that ends at the cap, or at
one token, has nothing beyond it to miss. One division of some hundred prompts moves coverage by a
point or two, so the held-out texts, those for calibration and those for the test, are divided anew
{divisions} times: half of them calibrate the network, which stays as it is, and the other half are
scored, every model by its own calibration where it has prompts enough. *One division* is mean and
standard deviation over models and divisions, in percent.

{table(head, rows)}"""
