"""What a network is trained to make small."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special

from policies.batch import Floats
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.logt import DENSITY_AT_0

SIGMA_WEIGHT = (3.0, 4.0)
"""Weight of sigma's squared error at the first and at the last epoch (arXiv:2604.00499)."""

_PANELS_PER_S = 32
_S_LOW, _S_HIGH = -9.0, 20.0
_ROOT_NU = math.sqrt(NU)
_LOG_DENSITY_AT_0 = math.log(DENSITY_AT_0)


def nll(
    mu: torch.Tensor,
    sigma: torch.Tensor,
    log_tokens: torch.Tensor,
    censored: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Negative log-likelihood of each prompt's samples of ln X, in nats, (..., n).

    A sample that a cap ended enters through the survival function. The density is that of ln X;
    its logarithm is above that of X by ln X, whatever the forecast.

    Args:
        mu: Location of ln X, (..., n).
        sigma: Scale of ln X, above 0, (..., n).
        log_tokens: ln of the lengths, anything finite where the weight is 0, (n, k).
        censored: Whether a cap ended the answer, (n, k).
        weight: Weight of each sample, (n, k); a prompt's usually add up to 1.
    """
    t = (log_tokens - mu.unsqueeze(-1)) / sigma.unsqueeze(-1)
    log_density = _LOG_DENSITY_AT_0 - (NU + 1) / 2 * torch.log1p(t * t / NU)
    ended = log_density - sigma.log().unsqueeze(-1)
    likelihood = torch.where(censored, log_survival(t), ended)
    return -(weight * likelihood).sum(-1)


def regression(
    forecast: torch.Tensor,
    samples: torch.Tensor,
    censored: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Twice the negative log-likelihood of each prompt's samples under a unit normal, (..., n).

    The squared error, up to a constant; a sample that a cap ended enters through the survival
    function.

    Args:
        forecast: Location of z-scored ln X, (..., n).
        samples: ln of the lengths, z-scored alike, anything finite where the weight is 0, (n, k).
        censored: Whether a cap ended the answer, (n, k).
        weight: Weight of each sample, (n, k); a prompt's usually add up to 1.
    """
    missed = samples - forecast.unsqueeze(-1)
    beyond = -2 * torch.special.log_ndtr(-missed)
    return (weight * torch.where(censored, beyond, missed**2)).sum(-1)


def mse(
    forecast: tuple[torch.Tensor, torch.Tensor],
    label: tuple[torch.Tensor, torch.Tensor],
    progress: float,
) -> torch.Tensor:
    """Squared error of mu plus the weighted one of sigma, (..., n).

    Args:
        forecast: z-scored mu and log1p(sigma), each (..., n).
        label: The same of the labels, each (n,).
        progress: How much of the training is done, in [0, 1]; sigma's weight grows with it.
    """
    first, last = SIGMA_WEIGHT
    weight = first + (last - first) * progress
    return (forecast[0] - label[0]) ** 2 + weight * (forecast[1] - label[1]) ** 2


def oversampling(mu: Floats, sigma: Floats) -> Floats:
    """How often each prompt counts so that long and uncertain answers are learnt too, (n,).

    As in arXiv:2604.00499: 1.5 times where mu > 5.5 or sigma > 1, twice where mu > 6 or sigma is
    above 1.3. A weight in the loss has the expected effect of drawing a prompt that often.
    """
    often = np.where((mu > 5.5) | (sigma > 1.0), 1.5, 1.0)
    return np.where((mu > 6.0) | (sigma > 1.3), 2.0, often)


def log_survival(t: torch.Tensor) -> torch.Tensor:
    """`ln P(T > t)` of the Student-t, differentiable, of t's shape.

    torch has no incomplete beta function. With `t = sqrt(nu) sinh(s)` the function bends little on
    the axis of s and becomes a straight line, so cubic Hermite pieces serve: absolute error below
    1e-7 for s below 20, that is for t to 4e8, and the line beyond.
    """
    s = torch.asinh(t / _ROOT_NU)
    inside = s.clamp(_S_LOW, _S_HIGH)
    place = (inside - _S_LOW) * _PANELS_PER_S
    # Where t is not a number the panel does not matter, but an index must be one.
    panel = place.detach().floor().nan_to_num().clamp(max=len(_PIECES) - 1).long()
    u = place - panel
    c = _pieces(t.device, t.dtype)[panel]
    value = ((c[..., 0] * u + c[..., 1]) * u + c[..., 2]) * u + c[..., 3]
    return value - NU * (s - _S_HIGH).clamp(min=0.0)


def _hermite_pieces() -> Floats:
    """Cubics of `ln P(T > t)` on equal panels of s, highest power first, (panels, 4)."""
    s = np.linspace(_S_LOW, _S_HIGH, round((_S_HIGH - _S_LOW) * _PANELS_PER_S) + 1)
    # Far out stdtr loses digits, the incomplete beta function does not.
    upper = special.betainc(NU / 2, 0.5, np.cosh(s) ** -2) / 2
    survival = np.where(s > 0, upper, 1 - upper)
    value = np.log(survival)
    slope = -DENSITY_AT_0 * _ROOT_NU * np.cosh(s) ** -NU / survival / _PANELS_PER_S
    rise, left, right = np.diff(value), slope[:-1], slope[1:]
    return np.stack(
        (left + right - 2 * rise, 3 * rise - 2 * left - right, left, value[:-1]), axis=1
    )


_PIECES = _hermite_pieces()
_on_device: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


def _pieces(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if (device, dtype) not in _on_device:
        _on_device[device, dtype] = torch.tensor(_PIECES, dtype=dtype, device=device)
    return _on_device[device, dtype]
