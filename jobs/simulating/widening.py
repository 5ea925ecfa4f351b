"""The scale that a forecast needs when its own mu and sigma are estimates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import special
from scipy.interpolate import PchipInterpolator

from policies.batch import Floats
from policies.forecast import DEGREES_OF_FREEDOM as NU

# Over the angle of (sigma_hat, d) the half-width is smooth, from a pure t to a pure normal.
_ANGLES = np.linspace(0, np.pi / 2, 17)
_SCALE_NODES, _SCALE_WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_SCALE_WEIGHTS = _SCALE_WEIGHTS / _SCALE_WEIGHTS.sum()
_BISECTIONS = 32
_ERRORS = np.linspace(-6, 6, 121)
_ERROR_WEIGHTS = np.exp(-_ERRORS * _ERRORS / 2)
_ERROR_WEIGHTS = _ERROR_WEIGHTS / _ERROR_WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Widening:
    """Turns a predicted sigma into the scale of a log-t whose central interval is calibrated.

    Given its predictions, `ln X = mu + sigma T` has `mu = mu_hat + d Z` and
    `sigma = sigma_hat exp(e Z')` with independent standard normal Z and Z'. Its central interval of
    probability `coverage` reaches k either side of `mu_hat`; the scale returned is the one with
    which a log-t around `mu_hat` has that same interval, `k / t^-1((1 + coverage) / 2)`. Other
    levels are then slightly off, since a sum of a normal and a t is not a t.

    Attributes:
        mu_error: d, at least 0: standard deviation of mu about its prediction.
        log_sigma_error: e, at least 0: standard deviation of ln sigma about its prediction.
        coverage: Probability of the interval, in (0, 1).
    """

    mu_error: float
    log_sigma_error: float
    coverage: float
    _reach: PchipInterpolator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_reach", PchipInterpolator(_ANGLES, self._solve()))

    def __call__(self, sigma: Floats) -> Floats:
        """Widened scales, (n,), of predicted ones, (n,), at least 0."""
        reach = np.hypot(sigma, self.mu_error) * self._reach(np.arctan2(self.mu_error, sigma))
        scale: Floats = reach / special.stdtrit(NU, (1 + self.coverage) / 2)
        return scale

    def _solve(self) -> Floats:
        """Half-widths for `sigma_hat = cos(angle)` and `d = sin(angle)` at `_ANGLES`, (17,)."""
        level = (1 + self.coverage) / 2
        normal = float(special.ndtri(level))
        widest = np.exp(self.log_sigma_error * _SCALE_NODES[-1]) * special.stdtrit(NU, level)
        angles = _ANGLES[:-1]
        low, high = np.zeros_like(angles), np.full_like(angles, widest + normal)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            inside = self._below(middle, angles) < level
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        # At the last angle sigma is 0 and what is left is normal.
        return np.append(high, normal)

    def _below(self, reach: Floats, angle: Floats) -> Floats:
        """P(ln X - mu_hat <= reach) at each angle, (n,)."""
        scale = np.cos(angle)[:, None] * np.exp(self.log_sigma_error * _SCALE_NODES)
        distance = reach[:, None] - np.sin(angle)[:, None] * _ERRORS
        below = special.stdtr(NU, distance[:, None, :] / scale[:, :, None])
        total: Floats = (below @ _ERROR_WEIGHTS) @ _SCALE_WEIGHTS
        return total
