"""From labels to a network in a folder: split, encode, train, calibrate, score, save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from policies.batch import Ints
from predictor.artifact import CONFIG_FILE, HEADS_FILE, Artifact, save_artifact
from predictor.atomic_file import replace_file
from predictor.calibrations import Calibrations, calibrate_models
from predictor.checkpoint import FOLDER, Checkpoint
from predictor.conformal import MIN_PROMPTS
from predictor.device import open_device
from predictor.epochs import Trainer, reproducible
from predictor.examples import Examples, Prepared, encoder_spec, prepare
from predictor.label_fit import LabelFit, fit_labels, split_half
from predictor.labels import Labels, require_models
from predictor.model_card import ModelCard, model_card
from predictor.network import LengthNetwork, NetworkConfig
from predictor.scores import Distributions, Scores, fit_prior, prior_distributions, score
from predictor.splits import Split, prompt_key
from predictor.training_settings import (
    SAMPLE_LOSSES,
    Loss,
    TrainingError,
    TrainingSettings,
)
from predictor.training_watch import TrainingWatch

FORMAT = 1
"""Of an unfinished training; one of another format is not taken up."""

PRIOR_FILE = "prior.json"
"""In a network's folder: the prior of its training labels, which evaluations compare with."""

PROMPTS_FILE = "training_prompts.npy"
"""In a network's folder: keys (`splits.prompt_key`) of what it learnt from, ascending uint64."""

_LEAST_PROMPTS = 10  # of any side; fewer decide nothing
_SIGMA_START = 0.6  # sigma of an untrained network as a share of the marginal one
_SIGMA_SPREAD = 0.25  # of log1p sigma


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to.

    Attributes:
        folder: Holds the network.
        card: All that is told of it.
    """

    folder: Path
    card: ModelCard


def train(
    labels: Labels,
    out: Path,
    settings: TrainingSettings,
    *,
    sources: Sequence[str] = (),
    device: str = "cpu",
    features: Path | None = None,
    watch: TrainingWatch | None = None,
) -> Trained:
    """Train a network and save it in a folder of its own.

    The same call again takes up what an interrupted one left, and comes to the same network as one
    that was not interrupted. On a CPU, with the same number of threads, two runs give the same
    weights to the last bit.

    Args:
        labels: What to learn from; prompts fall on the sides of `predictor.splits`.
        out: Folder of the network; `.training` in it holds an unfinished training.
        settings: How.
        sources: Where the labels came from, for the model card.
        device: Where torch computes.
        features: Keeps the encoder's features for other trainings; None: only until the end.
        watch: Told of the progress.

    Raises:
        TrainingError: There are too few labels, they do not fit the settings, or the folder holds
            something else than a network.
        DeviceError: The device cannot be used.
        LabelsError: A model to leave out has no rows.
        CheckpointError: The folder holds another unfinished training.
        EncoderError: The encoder cannot be used.
        OSError: The folder cannot be written.
    """
    watch = watch or TrainingWatch()
    open_device(device)
    _check_folder(out)
    sides, left_out = _sides(labels, settings)
    fitted = fit_labels(labels)
    settings = _settled(settings, fitted.samples[sides[Split.TRAIN]])
    _check(fitted, sides, settings)
    checkpoint = Checkpoint(out, _identity(labels, settings, device))
    prepared = prepare(
        labels,
        fitted,
        sides[Split.TRAIN],
        settings,
        device=device,
        features=features or checkpoint.folder / "features",
        watch=watch,
    )
    trainer = _trainer(prepared, sides[Split.TRAIN], settings, device)
    watch.stage("training", len(sides[Split.TRAIN]) * settings.epochs)
    trainer.train(
        prepared.examples.take(sides[Split.TRAIN]),
        prepared.examples.take(sides[Split.VALIDATION]),
        checkpoint,
        watch,
    )
    if settings.half:
        _round(trainer.network)
    watch.stage("scoring", 0)
    judge = _Judge(trainer, prepared, sides, settings)
    present = labels.present
    card = ModelCard(
        models=prepared.scaler.models,
        settings=settings,
        sources=sources,
        fingerprint=labels.fingerprint(),
        prompts={split: len(rows) for split, rows in sides.items()},
        samples=int(present.sum()),
        censored=int((labels.censored & present).sum()),
        reliability=split_half(labels, settings.seed),
        epochs=trainer.history,
        calibration=judge.calibration,
        scores=judge.scores(sides[Split.TEST]),
        transfer=judge.scores(left_out) if len(left_out) else None,
        versions={name: version(name) for name in ("torch", "transformers", "numpy")},
    )
    _save(out, trainer, prepared, judge, card, labels.take(sides[Split.TRAIN]))
    checkpoint.delete()
    return Trained(out, card)


class _Judge:
    """Calibrates a trained network on prompts held out for that, and scores it on others."""

    def __init__(
        self,
        trainer: Trainer,
        prepared: Prepared,
        sides: dict[Split, Ints],
        settings: TrainingSettings,
    ) -> None:
        self._trainer = trainer
        self._examples = prepared.examples
        self._settings = settings
        labels = prepared.examples.labels
        self.prior = fit_prior(labels.take(sides[Split.TRAIN]), settings.coverage)
        rows = sides[Split.CALIBRATION]
        mu, sigma = trainer.predict(self._examples.take(rows))
        self.calibration: Calibrations = calibrate_models(
            labels.take(rows).prompts.model,
            mu,
            sigma,
            labels.output_tokens[rows],
            labels.censored[rows],
            self._examples.text_row[rows],
        )

    def scores(self, rows: Ints) -> Scores:
        """Scores on the prompts at these positions."""
        examples = self._examples.take(rows)
        mu, sigma = self._trainer.predict(examples)
        coverage, models = self._settings.coverage, examples.labels.prompts.model
        location, spread = self.calibration.corrected(models, mu, sigma)
        bounds = self.calibration.bounds(models, location, spread, coverage)
        return score(
            examples.labels,
            Distributions(location, spread, *bounds),
            prior_distributions(self.prior, examples.labels),
            sigma,
            coverage,
            self._settings.cap_tokens,
        )


def _sides(labels: Labels, settings: TrainingSettings) -> tuple[dict[Split, Ints], Ints]:
    """Rows of each side without the models left out, and their rows of the test side."""
    require_models(settings.leave_out, labels.models)
    sides = labels.split()
    hidden = np.array([name in settings.leave_out for name in labels.prompts.model], np.bool_)
    left_out = sides[Split.TEST][hidden[sides[Split.TEST]]]
    return {split: rows[~hidden[rows]] for split, rows in sides.items()}, left_out


def _check(fitted: LabelFit, sides: dict[Split, Ints], settings: TrainingSettings) -> None:
    for_interval = math.ceil(2 / (1 - settings.coverage)) - 1
    least = dict.fromkeys(Split, _LEAST_PROMPTS)
    least[Split.CALIBRATION] = max(MIN_PROMPTS, for_interval)
    for split, rows in sides.items():
        if len(rows) < least[split]:
            total = sum(map(len, sides.values()))
            raise TrainingError(
                f"of {total:,} labelled prompts {len(rows):,} fall on the {split.value} side, must "
                f"be at least {least[split]}; a tenth of the texts goes to it, so give about "
                f"{15 * max(least.values())} different prompts or more"
            )
    samples = fitted.samples[sides[Split.TRAIN]]
    single = int((samples == 1).sum())
    if settings.loss is Loss.MSE and 2 * single > len(samples):
        raise TrainingError(
            f"{single:,} of {len(samples):,} training prompts have one sample, which says nothing "
            "of sigma: sample each prompt several times, or train with the loss 'regression'"
        )


def _check_folder(out: Path) -> None:
    """Refuse a folder of something else, whose README.md and config.json would be replaced."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names and not names & {FOLDER, HEADS_FILE}:
        raise TrainingError(
            f"{out} is not empty and holds no network (no {HEADS_FILE}; there is "
            f"{min(names)!r}); name an empty or new folder"
        )


def _settled(settings: TrainingSettings, samples: Ints) -> TrainingSettings:
    """The settings with the loss that goes with so many samples per training prompt, (n,)."""
    if settings.loss is not Loss.AUTO:
        return settings
    several = 2 * int((samples > 1).sum()) > len(samples)
    loss = Loss.MSE if several else Loss.REGRESSION
    return msgspec.structs.replace(settings, loss=loss)


def _identity(labels: Labels, settings: TrainingSettings, device: str) -> dict[str, Any]:
    """What decides the result, for `Checkpoint`."""
    told: dict[str, Any] = msgspec.to_builtins(settings)
    versions = {name: version(name) for name in ("torch", "transformers")}
    return told | versions | {"labels": labels.fingerprint(), "device": device, "format": FORMAT}


def _trainer(
    prepared: Prepared, training: Ints, settings: TrainingSettings, device: str
) -> Trainer:
    examples = prepared.examples
    config = NetworkConfig(
        text_width=examples.pooled.shape[1],
        scalar_width=examples.scalars.shape[1],
        models=len(prepared.scaler.models),
        hidden=settings.hidden,
        dropout=settings.dropout,
        text_dropout=settings.text_dropout,
        model_width=settings.model_width,
        model_dropout=settings.model_dropout,
        members=settings.members,
        components=min(settings.components, *_rank_limits(examples, training)),
    )
    with reproducible([settings.seed, 0], torch.device(device)):
        network = LengthNetwork(config)
        network.set_projection(examples.pooled[np.unique(examples.text_row[training])].cpu())
    fitted = examples.fitted.take(training)
    network.set_targets(torch.from_numpy(fitted.mu), torch.from_numpy(fitted.sigma))
    if settings.loss in SAMPLE_LOSSES:
        # The sigma of a likelihood holds the network's own error, which no label knows.
        start = math.log1p(_SIGMA_START * math.hypot(fitted.mu.std(), np.median(fitted.sigma)))
        network.target_mean[1], network.target_std[1] = start, _SIGMA_SPREAD
    return Trainer(network.to(device), prepared.scaler, settings, prepared.encoder)


def _rank_limits(examples: Examples, training: Ints) -> tuple[int, int]:
    """No more components can be had than there are features, or texts in training."""
    return examples.pooled.shape[1], len(np.unique(examples.text_row[training]))


def _save(
    out: Path,
    trainer: Trainer,
    prepared: Prepared,
    judge: _Judge,
    card: ModelCard,
    training: Labels,
) -> None:
    """Everything beside the network first: a folder with a network is whole."""
    keys = np.unique(np.array([prompt_key(text) for text in training.prompts.text], np.uint64))
    # An older network there must not be taken for whole with the new prior beside it.
    (out / CONFIG_FILE).unlink(missing_ok=True)
    judge.prior.save(out / PRIOR_FILE)
    replace_file(out / PROMPTS_FILE, lambda stream: np.save(stream, keys, allow_pickle=False))
    told: dict[str, Any] = msgspec.to_builtins(card.settings)
    artifact = Artifact(
        network=trainer.network,
        scaler=prepared.scaler,
        encoder=encoder_spec(card.settings),
        calibration=judge.calibration,
        tuned={} if prepared.encoder is None else prepared.encoder.tuned_state(),
        training=told | {"labels": card.fingerprint, "versions": card.versions},
        card=model_card(card),
    )
    save_artifact(out, artifact, half=card.settings.half)


def _round(network: LengthNetwork) -> None:
    """Move the weights to where half precision will put them, so that they are judged as saved."""
    with torch.no_grad():
        for weight in network.state_dict().values():
            if weight.dim() > 1:
                weight.copy_(weight.half().float())
