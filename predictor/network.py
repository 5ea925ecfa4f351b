"""The heads: from a prompt's inputs to the location and scale of its answer's length."""

from __future__ import annotations

import math

import msgspec
import torch
from torch import nn

from predictor.errors import PredictorError
from predictor.features import UNKNOWN_MODEL, Inputs

SIGMA_MIN = 0.05
"""Least sigma, that of the labels (`policies.fit.fit`)."""

_BRANCHES = 2  # mu and sigma
_SHARPNESS = 20.0  # of the bend that holds sigma above its least value
_FLOOR = math.log1p(SIGMA_MIN)


class NetworkError(PredictorError):
    """A network's configuration or its targets are out of range."""


class NetworkConfig(msgspec.Struct, frozen=True):
    """Shape of a network.

    Attributes:
        text_width: Pooled features of a text.
        components: Principal components of them that the heads read; 0: all features as they are.
            A few hundred forecast as well as thousands do, out of domain better, and cost less.
        scalar_width: Scalars of a prompt.
        models: Known models; one more is the unknown one.
        hidden: Widths of the hidden layers of a branch.
        dropout: Share dropped after each hidden layer while training.
        text_dropout: Share of the inputs dropped while training, scalars too.
        model_width: Width of what a model's identity is multiplied with beside its own offset; 0:
            models differ by an offset alone, which carries over best to other kinds of prompts.
        model_dropout: Share of the prompts whose model is hidden while training, so that the
            unknown one is learnt too.
        members: Independent networks whose outputs are averaged.

    Raises:
        NetworkError: A value is out of range.
    """

    text_width: int
    scalar_width: int
    models: int
    hidden: tuple[int, ...] = (256, 256, 128)
    dropout: tuple[float, ...] = (0.2, 0.2, 0.1)
    text_dropout: float = 0.0
    model_width: int = 0
    model_dropout: float = 0.1
    members: int = 1
    components: int = 0

    def __post_init__(self) -> None:
        sizes = (self.text_width, self.scalar_width, self.members, *self.hidden)
        if min(sizes) < 1 or not self.hidden or min(self.models, self.model_width) < 0:
            raise NetworkError(
                f"network has widths {sizes}, must be >= 1 with at least one hidden layer, "
                f"{self.models} models and model_width {self.model_width}, must be >= 0"
            )
        if not 0 <= self.components <= self.text_width:
            raise NetworkError(
                f"network has {self.components} components of {self.text_width} text features, "
                "must be in 0 to as many"
            )
        shares = (self.text_dropout, self.model_dropout, *self.dropout)
        if len(self.dropout) != len(self.hidden) or not all(0 <= share < 1 for share in shares):
            raise NetworkError(
                f"network has dropout {list(self.dropout)} for {len(self.hidden)} hidden layers, "
                f"text_dropout {self.text_dropout} and model_dropout {self.model_dropout}; give "
                "one share for each layer, each in [0, 1)"
            )


class _Linear(nn.Module):
    """Several linear maps at once: (branches, n, inputs) to (branches, n, outputs)."""

    def __init__(self, branches: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(branches, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(branches, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class _Norm(nn.Module):
    """Layer normalisation with each branch's own gain and offset."""

    def __init__(self, branches: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(branches, 1, width))
        self.offset = nn.Parameter(torch.zeros(branches, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.gain + self.offset


class LengthNetwork(nn.Module):
    """Two branches per member, one for mu and one for log1p(sigma), sharing nothing.

    As in arXiv:2604.00499 a branch is a perceptron with layer normalisation and GELU after each
    hidden layer but the last, which has GELU alone. All branches of all members run as one. The
    model's identity enters at the output: an offset of each branch, and weights on `model_width`
    further outputs of it; both are 0 for the unknown model.

    The branches speak of z-scored targets; `set_targets` says what 0 and 1 mean. Sigma is held
    above `SIGMA_MIN` by a bend that keeps a gradient.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        branches = _BRANCHES * config.members
        width = config.hidden[0]
        self.text_dropout = nn.Dropout(config.text_dropout)
        read = config.components or config.text_width
        self.first = nn.Linear(read + config.scalar_width, branches * width)
        self.offsets = nn.Parameter(torch.zeros(branches, config.models))
        self.weights = nn.Parameter(0.1 * torch.randn(branches, config.models, config.model_width))
        self.norms = nn.ModuleList(_Norm(branches, width) for width in config.hidden[:-1])
        self.drops = nn.ModuleList(nn.Dropout(share) for share in config.dropout)
        self.hidden = nn.ModuleList(
            _Linear(branches, inputs, outputs)
            for inputs, outputs in zip(config.hidden[:-1], config.hidden[1:], strict=True)
        )
        self.last = _Linear(branches, config.hidden[-1], 1 + config.model_width)
        self.projection: torch.Tensor | None
        components = torch.zeros(config.text_width, config.components)
        self.register_buffer("projection", components if config.components else None)
        self.register_buffer("target_mean", torch.zeros(_BRANCHES))
        self.register_buffer("target_std", torch.ones(_BRANCHES))
        self.target_mean: torch.Tensor
        self.target_std: torch.Tensor

    def set_targets(self, mu: torch.Tensor, sigma: torch.Tensor) -> None:
        """Take the mean and spread of the branches' targets from training labels.

        Args:
            mu: Locations, (n,).
            sigma: Scales, at least 0, (n,).

        Raises:
            NetworkError: There is no label or one is not finite.
        """
        targets = torch.stack([mu.double(), torch.log1p(sigma.double())])
        if not mu.numel() or not bool(torch.isfinite(targets).all()):
            raise NetworkError(
                f"{mu.numel()} labels cannot set the targets; give at least one, all finite"
            )
        spread = targets.std(dim=1, correction=0)
        self.target_mean.copy_(targets.mean(dim=1))
        self.target_std.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def set_projection(self, text: torch.Tensor) -> None:
        """Take the components, if there are any, from texts, scaled to a mean variance of 1.

        Draws random numbers, since only the leading ones are sought (Halko, Martinsson and Tropp
        2011, arXiv:0909.4061).

        Args:
            text: z-scored pooled features of distinct texts, (n, text_width).

        Raises:
            NetworkError: There are fewer texts than components.
        """
        if self.projection is None:
            return
        components = self.config.components
        if len(text) < components:
            raise NetworkError(
                f"{len(text)} texts cannot give {components} components; label more prompts or "
                "train with fewer components"
            )
        _, singular, axes = torch.pca_lowrank(text, q=components, center=False, niter=4)
        variance = float((singular**2).mean()) / len(text)
        self.projection.copy_(axes / math.sqrt(variance))

    def normalised(
        self, mu: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The z-scores of mu and of log1p(sigma): what the paper's squared error compares."""
        return (
            (mu - self.target_mean[0]) / self.target_std[0],
            (torch.log1p(sigma) - self.target_mean[1]) / self.target_std[1],
        )

    def members(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Each member's mu and sigma, both (members, n)."""
        z = self._branches(inputs).view(self.config.members, _BRANCHES, len(inputs))
        mu = self.target_mean[0] + self.target_std[0] * z[:, 0]
        log1p_sigma = self.target_mean[1] + self.target_std[1] * z[:, 1]
        bent = nn.functional.softplus(log1p_sigma - _FLOOR, beta=_SHARPNESS)
        return mu, torch.expm1(_FLOOR + bent)

    def forward(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The members' mean mu and mean sigma, both (n,)."""
        mu, sigma = self.members(inputs)
        return mu.mean(dim=0), sigma.mean(dim=0)

    def _branches(self, inputs: Inputs) -> torch.Tensor:
        """Outputs of the branches in z-scores, (branches, n)."""
        rows, branches = len(inputs), _BRANCHES * self.config.members
        text = inputs.text if self.projection is None else inputs.text @ self.projection
        x = self.first(self.text_dropout(torch.cat([text, inputs.scalars], dim=1)))
        x = x.view(rows, branches, self.config.hidden[0]).transpose(0, 1)
        for norm, drop, linear in zip(self.norms, self.drops, self.hidden, strict=False):
            x = linear(drop(nn.functional.gelu(norm(x))))
        x = self.last(self.drops[-1](nn.functional.gelu(x)))
        model = self._model(inputs.model)
        offset = nn.functional.pad(self.offsets, (1, 0))[:, model]
        weight = nn.functional.pad(self.weights, (0, 0, 1, 0))[:, model]
        out: torch.Tensor = x[..., 0] + offset + (x[..., 1:] * weight).sum(dim=-1)
        return out

    def _model(self, model: torch.Tensor) -> torch.Tensor:
        """Indices of the models, some of them hidden while training."""
        if not self.training or self.config.model_dropout == 0:
            return model
        hidden = torch.rand(model.shape, device=model.device) < self.config.model_dropout
        return torch.where(hidden, UNKNOWN_MODEL, model)
