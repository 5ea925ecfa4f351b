"""Forecasts from a prompt's text by a trained network, as they are served."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from policies.batch import Floats
from predictor.artifact import Artifact, ArtifactError, load_artifact
from predictor.calibrations import Calibrations
from predictor.encoder import EncoderError, Features, TextEncoder
from predictor.excerpt import excerpt
from predictor.prompts import Prompts

CACHED_TEXTS = 8192
"""Texts whose features are kept, the latest used ones."""

_LARGEST = float(np.finfo(np.float16).max)

Halves = NDArray[np.float16]


class LearnedForecaster:
    """Asks a trained network, one batch of prompts at a time. Not for several threads at once.

    Features of texts are kept in half precision, and rounded so before their first use, so that a
    forecast does not depend on whether its text was known.

    Args:
        artifact: The network.
        encoder: What pools its texts.

    Raises:
        ArtifactError: The network was made for other features than the encoder's.
    """

    def __init__(self, artifact: Artifact, encoder: TextEncoder) -> None:
        if encoder.width != artifact.network.config.text_width:
            raise ArtifactError(
                f"the encoder {encoder.spec.name} gives {encoder.width} features, the network "
                f"reads {artifact.network.config.text_width}; use the encoder it was trained with"
            )
        self._artifact = artifact
        self._encoder = encoder
        self._device = artifact.network.target_mean.device
        self._known: OrderedDict[bytes, Halves] = OrderedDict()
        self._cache_hits = self._failures = 0
        self._last_failure: str | None = None

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", threads: int = 1) -> LearnedForecaster:
        """The network in a folder, warmed up.

        Args:
            folder: What training wrote.
            device: Where network and encoder run, as torch names it.
            threads: CPU threads of one pass; sets those of the whole process.

        Raises:
            ArtifactError: The folder is not a network that can be used.
            DeviceError: The device cannot be used.
        """
        if threads < 1:
            raise ArtifactError(f"threads is {threads}, must be >= 1")
        torch.set_num_threads(threads)
        artifact = load_artifact(folder, device=device)
        try:
            encoder = TextEncoder(artifact.encoder, device)
            encoder.load_tuned(artifact.tuned)
        except EncoderError as error:
            raise ArtifactError(f"the network in {folder} cannot be used: {error}") from error
        encoder.pooled(["How long will this answer be?"])
        return cls(artifact, encoder)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that the network knows; any other gets the forecast of an unknown one."""
        return self._artifact.scaler.models

    @property
    def calibration(self) -> Calibrations:
        """What corrects its mu and sigma, and quantiles of the residuals on prompts not learnt."""
        return self._artifact.calibration

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return self._artifact.card

    @property
    def cache_hits(self) -> int:
        """Prompts whose text was known already."""
        return self._cache_hits

    @property
    def failures(self) -> int:
        """Rows without an answer."""
        return self._failures

    @property
    def last_failure(self) -> str | None:
        """Why the latest row without an answer had none; None: none was."""
        return self._last_failure

    def predict(self, prompts: Prompts) -> tuple[Floats, Floats]:
        """Calibrated mu and sigma of n prompts, each (n,); NaN where there is no answer.

        A prompt without text, of sizes out of range, or that the network has no finite answer to
        costs the others nothing; `last_failure` says why.
        """
        mu, sigma = np.full(len(prompts), np.nan), np.full(len(prompts), np.nan)
        usable: list[int] = []
        for row in range(len(prompts)):
            if (fault := _fault(prompts, row)) is None:
                usable.append(row)
            else:
                self._fail(fault)
        rows, features = self._features(prompts, usable)
        if not rows:
            return mu, sigma
        mu[rows], sigma[rows] = self._heads(prompts.take(rows), features)
        broken = [row for row in rows if not (math.isfinite(mu[row]) and 0 < sigma[row] < math.inf)]
        for row in broken:
            self._fail(f"the network said mu {mu[row]} and sigma {sigma[row]}, must be finite")
        mu[broken] = sigma[broken] = np.nan
        return mu, sigma

    def _heads(self, prompts: Prompts, features: Features) -> tuple[Floats, Floats]:
        inputs = self._artifact.scaler(prompts, features).to(self._device)
        with torch.inference_mode():
            mu, sigma = self._artifact.network(inputs)
        return self.calibration.corrected(
            prompts.model,
            mu.cpu().numpy().astype(np.float64),
            sigma.cpu().numpy().astype(np.float64),
        )

    def _features(self, prompts: Prompts, rows: Sequence[int]) -> tuple[list[int], Features]:
        """Pooled text of the rows that have one, and which rows these are."""
        texts = {row: excerpt(prompts.text[row]) for row in rows}
        keys = {row: _key(text) for row, text in texts.items()}
        unknown = {keys[row]: text for row, text in texts.items() if keys[row] not in self._known}
        fresh = self._encoded(unknown)
        features: dict[int, Halves] = {}
        for row, key in keys.items():
            found = self._known.get(key, fresh.get(key))
            if isinstance(found, str):
                self._fail(found)
                continue
            if key in self._known:
                self._known.move_to_end(key)
                self._cache_hits += 1
            if found is not None:
                features[row] = found
        self._keep(fresh)
        return list(features), np.array(list(features.values()), np.float32)

    def _encoded(self, texts: dict[bytes, str]) -> dict[bytes, Halves | str]:
        """Features of new texts, or why there are none; a text costs the others nothing."""
        if not texts:
            return {}
        try:
            pooled = self._encoder.pooled(list(texts.values()))
        except Exception as error:
            if len(texts) == 1:
                return dict.fromkeys(texts, _reason(error))
            alone = (self._encoded({key: text}) for key, text in texts.items())
            return {key: found for one in alone for key, found in one.items()}
        halves = pooled.clip(-_LARGEST, _LARGEST).astype(np.float16)
        return dict(zip(texts, halves, strict=True))

    def _keep(self, fresh: dict[bytes, Halves | str]) -> None:
        for key, features in fresh.items():
            if not isinstance(features, str):
                self._known[key] = features.copy()  # A view would keep the whole batch alive.
        while len(self._known) > CACHED_TEXTS:
            self._known.popitem(last=False)

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self._last_failure = reason


def _fault(prompts: Prompts, row: int) -> str | None:
    """Why a row cannot be asked about; never its text."""
    text, model = prompts.text[row], prompts.model[row]
    if not isinstance(text, str) or not isinstance(model, str):
        return (
            f"text is a {type(text).__name__} and model a {type(model).__name__}, must be strings"
        )
    if not text.strip():
        return "the prompt has no text"
    if prompts.prompt_tokens[row] < 1 or prompts.max_tokens[row] < 0:
        return (
            f"prompt_tokens is {prompts.prompt_tokens[row]} and max_tokens is "
            f"{prompts.max_tokens[row]}, must be >= 1 and >= 0 (0: not known)"
        )
    if not 0 <= prompts.temperature[row] < math.inf:
        return f"temperature is {prompts.temperature[row]}, must be finite and >= 0"
    return None


def _reason(error: Exception) -> str:
    """What went wrong in the encoder; only messages that cannot quote the text are repeated."""
    told = f": {error}" if isinstance(error, EncoderError | RuntimeError) else ""
    return f"the encoder failed with {type(error).__name__}{told}"


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
