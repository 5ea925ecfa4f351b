"""What a network reads of a prompt, as numbers: pooled text, scalars and the model's identity."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from policies.batch import Floats
from predictor.encoder import Features
from predictor.errors import PredictorError
from predictor.excerpt import excerpt
from predictor.lexical import LEXICAL_NAMES, lexical_features
from predictor.prompts import Prompts

SCALAR_NAMES: tuple[str, ...] = (
    *LEXICAL_NAMES,
    "log_prompt_tokens",
    "log_max_tokens",
    "temperature",
)
"""The scalars in their order: what is counted in the text, then the request's own sizes."""

UNKNOWN_MODEL = 0
"""Index of every model that the network was not trained for."""

SHIFTING: tuple[str, ...] = ("log_prompt_tokens",)
"""Scalars left out unless asked for: tokens of a prompt count its chat template too, so they shift
between models and data sets, and the text's own lengths tell the rest."""

_FARTHEST = 4.0  # standard deviations; a feature further out is unlike anything learnt
_CONSTANT = 1e-6  # a spread below this share of the values' size carries no information


class FeaturesError(PredictorError):
    """Prompts cannot be turned into features, or a saved normalisation is not one."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """n prompts as a network takes them.

    Attributes:
        text: Pooled text, z-scored, (n, width) float32.
        scalars: `SCALAR_NAMES`, z-scored, (n, scalars) float32.
        model: Index of the model, `UNKNOWN_MODEL` if it is none of the known, (n,) int64.
    """

    text: torch.Tensor
    scalars: torch.Tensor
    model: torch.Tensor

    def __len__(self) -> int:
        return len(self.model)

    def take(self, rows: torch.Tensor | NDArray[np.int64] | Sequence[int]) -> Inputs:
        """The prompts at these positions."""
        at = torch.as_tensor(rows, dtype=torch.int64, device=self.model.device)
        return Inputs(self.text[at], self.scalars[at], self.model[at])

    def to(self, device: torch.device | str) -> Inputs:
        """The same on another device."""
        return Inputs(self.text.to(device), self.scalars.to(device), self.model.to(device))


class InputScalerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scaler as plain values.

    Attributes:
        models: Known models; the first has index 1.
        scalar_names: `SCALAR_NAMES` of the writer.
        text_mean: Mean of each pooled feature, (width,).
        text_scale: What its difference from the mean is multiplied with; 0 for a constant one.
        scalar_mean: Mean of each scalar, (scalars,).
        scalar_scale: As `text_scale`.
        scalar_lower: Least value seen of each scalar.
        scalar_upper: Largest value seen of each.
    """

    models: list[str]
    scalar_names: list[str]
    text_mean: list[float]
    text_scale: list[float]
    scalar_mean: list[float]
    scalar_scale: list[float]
    scalar_lower: list[float]
    scalar_upper: list[float]


class InputScaler:
    """Turns prompts and their pooled text into `Inputs`, by the statistics of training prompts.

    Every feature has mean 0 and standard deviation 1 over the training prompts; one that is
    constant there is 0 always. A scalar outside the range seen in training counts as the end of
    the range, an unknown cap as the mean, and nothing lies further than 4 deviations out.

    Args:
        state: What `fit` or a saved network found.

    Raises:
        FeaturesError: The state has other scalars, other sizes or values that are not finite.
    """

    def __init__(self, state: InputScalerState) -> None:
        _check(state)
        self.state = state
        self.models = tuple(state.models)
        self._index = {name: index for index, name in enumerate(self.models, start=1)}
        self._text_mean = torch.tensor(state.text_mean, dtype=torch.float32)
        self._text_scale = torch.tensor(state.text_scale, dtype=torch.float32)
        self._mean = np.array(state.scalar_mean)
        self._scale = np.array(state.scalar_scale)
        self._lower = np.array(state.scalar_lower)
        self._upper = np.array(state.scalar_upper)

    @property
    def text_width(self) -> int:
        """Pooled features of a text."""
        return len(self._text_mean)

    @classmethod
    def fit(
        cls, prompts: Prompts, pooled: Features, without: Collection[str] = SHIFTING
    ) -> InputScaler:
        """The scaler that training prompts give; a text counts once, however many rows have it.

        Args:
            prompts: At least one.
            pooled: Their pooled text, (n, width).
            without: Scalars that are to count as constant.

        Raises:
            FeaturesError: There is no prompt, a feature is not finite, or a name is not a scalar's.
        """
        if unknown := set(without) - set(SCALAR_NAMES):
            raise FeaturesError(f"no scalars {sorted(unknown)}; choose of {list(SCALAR_NAMES)}")
        scalars = raw_scalars(prompts)
        _check_fit(prompts, scalars, pooled)
        mean = np.array([column[~np.isnan(column)].sum() for column in scalars.T])
        mean /= np.maximum((~np.isnan(scalars)).sum(axis=0), 1)
        scalars = np.where(np.isnan(scalars), mean, scalars)
        kept = [name not in without for name in SCALAR_NAMES]
        distinct = pooled[list({text: row for row, text in enumerate(prompts.text)}.values())]
        text_mean = distinct.mean(axis=0, dtype=np.float64)
        return cls(
            InputScalerState(
                models=sorted(set(prompts.model)),
                scalar_names=list(SCALAR_NAMES),
                text_mean=text_mean.tolist(),
                text_scale=_scale_of(text_mean, distinct.std(axis=0, dtype=np.float64)),
                scalar_mean=mean.tolist(),
                scalar_scale=_scale_of(mean, scalars.std(axis=0) * kept),
                scalar_lower=scalars.min(axis=0).tolist(),
                scalar_upper=scalars.max(axis=0).tolist(),
            )
        )

    def __call__(self, prompts: Prompts, pooled: Features) -> Inputs:
        """The inputs of n prompts, on the CPU.

        A prompt whose numbers are not finite has inputs that are not.

        Args:
            prompts: What is forecast.
            pooled: Their pooled text, (n, width).
        """
        return Inputs(
            self.text(torch.from_numpy(np.ascontiguousarray(pooled, np.float32))),
            self.scalars(prompts),
            self.model(prompts),
        )

    def text(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled text z-scored, (n, width), differentiable and on its own device."""
        mean, scale = self._text_mean.to(pooled.device), self._text_scale.to(pooled.device)
        return ((pooled - mean) * scale).clamp(-_FARTHEST, _FARTHEST)

    def scalars(self, prompts: Prompts) -> torch.Tensor:
        """The scalars z-scored, (n, scalars)."""
        raw = raw_scalars(prompts)
        cap = SCALAR_NAMES.index("log_max_tokens")
        raw[:, cap] = np.where(np.isnan(raw[:, cap]), self._mean[cap], raw[:, cap])
        z = (np.clip(raw, self._lower, self._upper) - self._mean) * self._scale
        return torch.from_numpy(z.clip(-_FARTHEST, _FARTHEST).astype(np.float32))

    def model(self, prompts: Prompts) -> torch.Tensor:
        """The index of each prompt's model, (n,)."""
        index = [self._index.get(name, UNKNOWN_MODEL) for name in prompts.model]
        return torch.tensor(index, dtype=torch.int64)


def raw_scalars(prompts: Prompts) -> Floats:
    """`SCALAR_NAMES` of each prompt as they are, (n, scalars); an unknown cap is NaN.

    Texts are read through `excerpt`. What repeats, as a prompt put to several models does, is
    counted once.
    """
    counted: dict[str, Floats] = {}
    for text in prompts.text:
        if text not in counted:
            counted[text] = lexical_features(excerpt(text))
    raw = np.empty((len(prompts), len(SCALAR_NAMES)))
    own = len(LEXICAL_NAMES)
    for row, text in enumerate(prompts.text):
        raw[row, :own] = counted[text]
    with np.errstate(divide="ignore", invalid="ignore"):
        raw[:, own] = np.log(prompts.prompt_tokens)
        raw[:, own + 1] = np.where(prompts.max_tokens > 0, np.log(prompts.max_tokens), np.nan)
    raw[:, own + 2] = prompts.temperature
    return raw


def _scale_of(mean: Floats, std: Floats) -> list[float]:
    """Factors to unit spread, 0 where there is none but rounding."""
    varies = std > _CONSTANT * np.maximum(np.abs(mean), _CONSTANT)
    scale: list[float] = np.where(varies, 1 / np.where(varies, std, 1.0), 0.0).tolist()
    return scale


def _check_fit(prompts: Prompts, scalars: Floats, pooled: Features) -> None:
    if not len(prompts) or pooled.ndim != 2 or len(pooled) != len(prompts):
        raise FeaturesError(
            f"{len(prompts)} prompts with pooled text of shape {pooled.shape} cannot be scaled; "
            "give at least one prompt and one row for each"
        )
    known = np.delete(scalars, SCALAR_NAMES.index("log_max_tokens"), axis=1)
    bad = ~(np.isfinite(known).all(axis=1) & np.isfinite(pooled).all(axis=1))
    if bad.any():
        raise FeaturesError(
            f"prompt {int(bad.argmax())} of {len(prompts)} has features that are not finite; its "
            f"prompt_tokens is {prompts.prompt_tokens[bad][0]} (must be >= 1) and its temperature "
            f"{prompts.temperature[bad][0]} (must be finite)"
        )


def _check(state: InputScalerState) -> None:
    if tuple(state.scalar_names) != SCALAR_NAMES:
        raise FeaturesError(
            f"the normalisation is of the scalars {state.scalar_names}, this version has "
            f"{list(SCALAR_NAMES)}; train the network again"
        )
    columns: dict[str, Any] = msgspec.structs.asdict(state)
    for name, values in columns.items():
        if name in ("models", "scalar_names"):
            continue
        kin = state.text_mean if name.startswith("text") else state.scalar_names
        if len(values) != len(kin):
            raise FeaturesError(
                f"the normalisation has {len(values)} values of {name}, must be {len(kin)}; train "
                "the network again"
            )
        if not np.isfinite(np.array(values)).all():
            raise FeaturesError(
                f"the normalisation's {name} is not finite; train the network again"
            )
