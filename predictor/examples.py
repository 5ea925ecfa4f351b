"""Labelled prompts as tensors, ready for a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from policies.batch import Floats, Ints
from predictor.encoder import EncoderSpec, TextEncoder
from predictor.features import InputScaler
from predictor.label_fit import LabelFit
from predictor.labels import Labels
from predictor.pooled_cache import PooledCache
from predictor.training_settings import TrainingSettings
from predictor.training_watch import TrainingWatch


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled prompts as a network takes them.

    Attributes:
        labels: The labels, n.
        fitted: Their fits.
        text_row: Row of each prompt's text in `pooled`, (n,).
        pooled: Features of every distinct text, z-scored, (texts, width); shared.
        tokens: Token ids of every distinct text, when the encoder is tuned; else empty; shared.
        scalars: Scalars of each prompt, (n, scalars).
        model: Index of each prompt's model, (n,).
    """

    labels: Labels
    fitted: LabelFit
    text_row: Ints
    pooled: torch.Tensor
    tokens: list[list[int]]
    scalars: torch.Tensor
    model: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def importance(self) -> Floats:
        """How much each row counts, (n,), 1 on average.

        m rows of one text, put to m models, count as the square root of m: more than one, since
        they tell of m models, and less than m, since they tell of one text. Otherwise the few
        texts that every model has answered drown all others.
        """
        rows_of_text = np.bincount(self.text_row)[self.text_row]
        each = 1 / np.sqrt(rows_of_text)
        importance: Floats = each / each.mean()
        return importance

    def take(self, rows: Ints) -> Examples:
        """The prompts at these positions."""
        at = torch.from_numpy(rows)
        return replace(
            self,
            labels=self.labels.take(rows),
            fitted=self.fitted.take(rows),
            text_row=self.text_row[rows],
            scalars=self.scalars[at],
            model=self.model[at],
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """All labelled prompts, and what made tensors of them.

    Attributes:
        examples: The prompts, on the device of the training.
        scaler: Scales them by the statistics of the training side.
        encoder: The encoder, when layers of it are tuned; else None.
    """

    examples: Examples
    scaler: InputScaler
    encoder: TextEncoder | None


def prepare(
    labels: Labels,
    fitted: LabelFit,
    training_rows: Ints,
    settings: TrainingSettings,
    *,
    device: str,
    features: Path,
    watch: TrainingWatch,
) -> Prepared:
    """Encode every distinct text once and scale all inputs.

    Args:
        labels: The labels, n.
        fitted: Their fits.
        training_rows: Rows whose statistics scale the inputs.
        settings: Which encoder.
        device: Where the tensors go.
        features: Folder with what earlier runs encoded, and for what this one does.
        watch: Told of the progress.

    Raises:
        EncoderError: The encoder cannot be used.
        OSError: The features cannot be written.
    """
    codes: dict[str, int] = {}
    text_row = np.array([codes.setdefault(t, len(codes)) for t in labels.prompts.text], np.int64)
    texts = list(codes)
    spec = encoder_spec(settings)
    loaded: list[TextEncoder] = []

    def encoder() -> TextEncoder:
        if not loaded:
            loaded.append(TextEncoder(spec, device))
        return loaded[0]

    watch.stage("encoding", len(texts))
    pooled = PooledCache(features).pooled(texts, spec, encoder, watch.advance)
    training = labels.prompts.take(training_rows)
    scaler = InputScaler.fit(training, pooled[text_row[training_rows]])
    tuned = encoder() if settings.tune_layers else None
    examples = Examples(
        labels=labels,
        fitted=fitted,
        text_row=text_row,
        pooled=scaler.text(torch.from_numpy(pooled)).to(device),
        tokens=tuned.tokens(texts) if tuned is not None else [],
        scalars=scaler.scalars(labels.prompts).to(device),
        model=scaler.model(labels.prompts).to(device),
    )
    return Prepared(examples, scaler, tuned)


def encoder_spec(settings: TrainingSettings) -> EncoderSpec:
    """The encoder that `settings` asks for.

    Raises:
        EncoderError: What it should read is out of range.
    """
    return EncoderSpec(
        settings.encoder,
        settings.encoder_max_tokens,
        settings.encoder_tail_tokens,
        settings.encoder_layers,
    )
