"""The page that goes with a trained network: what it is, what it is worth, what it is not for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from predictor.calibrations import MODEL_PROMPTS, Calibrations
from predictor.label_fit import Reliability
from predictor.scores import Scores
from predictor.splits import Split
from predictor.training_settings import TrainingSettings
from predictor.training_watch import Epoch


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a card tells.

    Attributes:
        models: Models that the network knows.
        settings: How it was trained.
        sources: Names of the files of labels.
        fingerprint: Of the labels (`predictor.labels.Labels.fingerprint`).
        prompts: Labelled prompts of each side.
        samples: Lengths in all.
        censored: Those of them that a cap ended.
        reliability: Of the labels' fits.
        epochs: The epochs.
        calibration: Of the network.
        scores: On the test side.
        transfer: On the test side of the models left out; None: none was.
        versions: Versions of what it was trained with, by name.
    """

    models: Sequence[str]
    settings: TrainingSettings
    sources: Sequence[str]
    fingerprint: str
    prompts: dict[Split, int]
    samples: int
    censored: int
    reliability: Reliability
    epochs: Sequence[Epoch]
    calibration: Calibrations
    scores: Scores
    transfer: Scores | None
    versions: dict[str, str]


def model_card(card: ModelCard) -> str:
    """The card as Markdown."""
    parts = [
        "# Forecasts of answer lengths",
        "Heads on a text encoder that forecast how many tokens a model will answer with, as a "
        "log-t distribution: `ln X = mu + sigma T`, `T ~ Student-t(3.5)`.",
        "Answers of: " + ", ".join(f"`{name}`" for name in card.models) + ".",
        "## Scores",
        _scores_text(card),
        _scores_table(card),
        "## Data",
        _data(card),
        "## Training",
        _training(card),
        "## Not good for",
        _limits(card),
    ]
    return "\n\n".join(parts) + "\n"


def _scores_text(card: ModelCard) -> str:
    return (
        f"On {card.scores.prompts:,} prompts that took no part in training or calibration. The "
        "prior knows the model and the prompt's length only. Every prompt weighs the same; the "
        "negative log-likelihood is in nats per answer; tau is the mean over the samples of "
        "Kendall's tau-b between E[min(X, cap)] and that sample's lengths; R2 of sigma is that of "
        "the network's own sigma, before calibration adds the network's error."
    )


def _scores_table(card: ModelCard) -> str:
    columns = [("test prompts", card.scores)]
    if card.transfer is not None:
        left_out = ", ".join(card.settings.leave_out)
        columns.append((f"test prompts of models never seen ({left_out})", card.transfer))
    reliability = card.reliability
    rows = [
        ("prompts", "prompts", "{:,}", ""),
        ("R2 of mu", "r2_mu", "{:.3f}", _number(reliability.mu)),
        ("R2 of sigma", "r2_sigma", "{:.3f}", _number(reliability.sigma)),
        ("Kendall's tau", "kendall_tau", "{:.3f}", ""),
        ("negative log-likelihood", "nll", "{:.3f}", ""),
        ("the same of the prior", "nll_prior", "{:.3f}", ""),
        (f"coverage of the {card.settings.coverage:.0%} interval", "coverage", "{:.3f}", ""),
        ("what it should be, ends at a cap counted", "coverage_due", "{:.3f}", ""),
        ("its mean width in tokens", "interval_width", "{:,.0f}", ""),
        ("the same of the prior's", "interval_width_prior", "{:,.0f}", ""),
    ]
    head = ["", *(name for name, _ in columns), "split-half reliability of the labels"]
    lines = [_row(head), _row(["---"] * len(head))]
    for title, name, form, most in rows:
        values = [form.format(getattr(scores, name)) for _, scores in columns]
        lines.append(_row([title, *values, most]))
    return "\n".join(lines)


def _data(card: ModelCard) -> str:
    sides = ", ".join(f"{split.value} {count:,}" for split, count in card.prompts.items())
    names = ", ".join(f"`{name}`" for name in card.sources) or "not named"
    cap = card.settings.cap_tokens
    capped = "" if cap is None else f" Lengths of {cap:,} tokens or more count as cut there."
    return (
        f"Labels from {names}, fingerprint `{card.fingerprint}` (blake2b of their content). "
        f"{card.samples:,} lengths, {card.censored:,} of them ended by a cap and entered as "
        f"censored.{capped} Prompts by side: {sides}; a prompt's side follows from its text, so it "
        "is the same for every model and in every data set."
    )


def _training(card: ModelCard) -> str:
    best = max((epoch for epoch in card.epochs if epoch.best), key=lambda epoch: epoch.number)
    settings = msgspec.json.format(msgspec.json.encode(card.settings), indent=2).decode()
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    calibration, models = card.calibration.pooled, card.calibration.models
    own = (
        f" {len(models)} models with {MODEL_PROMPTS} such prompts or more are calibrated by "
        "themselves."
        if models
        else ""
    )
    return (
        f"{len(card.epochs)} epochs, the best was number {best.number} with a negative "
        f"log-likelihood of {best.nll:.3f} on the validation prompts. Calibrated on "
        f"{calibration.prompts:,} prompts: sigma widened by an error of {calibration.error:.3f} in "
        f"mu and multiplied by {calibration.scale:.3f}, mu shifted by {calibration.shift:+.3f} of "
        f"it.{own} Made with {versions}. Settings:\n\n"
        f"```json\n{settings}\n```"
    )


def _limits(card: ModelCard) -> str:
    limits = [
        "Other models than those above, unless the scores of a model left out say what to expect: "
        "an unknown one gets the forecast of an average model.",
        "Prompts unlike those of the data: other languages, other tasks, other system prompts or "
        "chat templates. The predictor watches finished answers and falls back to the prior when "
        "the network ranks or fits worse, but that takes some hundred answers to notice.",
        "Other sampling settings than those in the data, of which only the temperature and the cap "
        "are seen.",
        "Promises about one answer: the interval holds for a share of many, not for each kind of "
        "prompt.",
    ]
    if card.censored:
        limits.append(
            "Lengths beyond the caps of the data: nothing was seen there, the tail is the "
            "distribution's own."
        )
    return "\n".join(f"* {limit}" for limit in limits)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return "too few samples" if math.isnan(value) else f"{value:.3f}"
