"""Watches a network while it serves: keeps its intervals honest, and notices when it misleads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from policies.batch import Floats, Ints
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.length_histogram import MAX_TOKENS
from predictor.conformal import Calibration
from predictor.drift import drift, residuals
from predictor.evidence import COLUMNS, Evidence
from predictor.messages import WatchStats

WINDOW_OUTCOMES = 512
"""Outcomes that a judgement rests on at most."""

DRIFT_OUTCOMES = 128
"""Outcomes that the correction of location and scale rests on. When all lengths triple, coverage of
a 90 % interval falls to 77 % over the next 64 outcomes and is 88 % or more over every 64 after
them, whether it rests on 64, 128 or 256; the variation in quiet times differs as little (0.022 to
0.024 over 128 outcomes)."""

DRIFT_WORTH = 20.0
"""Outcomes that the calibration made offline counts for in it."""

SPANS = (96, 192, 512)
"""Latest outcomes over which the network is judged; none is before the first span is full. Short
ones see a sudden failure soon, the long one a lesser failure."""

MARGIN_NATS = 0.1
"""By how much per outcome the prior must be the better forecaster for trust to be lost. A network
with an R2 of 0.5 on log-lengths gains 0.35 over the prior, given to the wrong requests it loses
0.22 to 0.30, in reverse 0.5. But in a batch served shortest forecast first, 512 at a time, that
same network seems to lose up to 0.08 over a window, and one with an R2 of 0.1 up to 0.09: see
`ForecastWatch`."""

DOUBT = 3.0
"""How many standard errors beyond that. Over 10 streams of 4,096 outcomes of each kind no useful
network ever lost trust: R2 0.5, 0.1 and 0.05 in random order, 0.5 and 0.1 served shortest forecast
first, 64 and 512 at a time, 0.1 in order of arrival. R2 0.5 with its forecasts given to the wrong
requests lost it after 96 to 512 outcomes (median 160), where that began half way after 96 to 384
more; in reverse after 96, half way after 64 to 96 more. R2 0.1 in reverse took 350 to 960; given to
the wrong requests it differs so little from the prior that its loss stays within the margin."""

RELIEF = 2.0
"""By how many standard errors above 0 the network must be the better one to be trusted again."""

RELIEF_OUTCOMES = 256
"""Over how many outcomes."""

LEVEL_STEP = 0.005
"""By how much one outcome outside moves the level of that end of the interval. Of 0.002, 0.005 and
0.02 the middle one: coverage over 128 outcomes then varies as by chance (0.024, binomial 0.027),
and a table of quantiles that is wrong by half is made good within 1,000 outcomes."""

STATE_VERSION = 1

_LOG_MOST = float(np.log(MAX_TOKENS))
_EVERY = 32  # outcomes between judgements: no more is learnt from fewer
_LEVELS = (1e-4, 0.45)
_PSEUDO_T: Floats = np.asarray(special.stdtrit(NU, (np.arange(32) + 0.5) / 32), np.float64)
_LEAST_SPREAD = 1e-3  # of gains, where the forecasts are as good as equal


class WatchStateError(ValueError):
    """A saved watch cannot be used; the message says what is wrong with it."""


class WatchState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A watch as plain values.

    Attributes:
        version: `STATE_VERSION` of the writer.
        calibration: Of the network that was watched.
        coverage: Share of answers that the intervals were to contain.
        outcomes: The window (`Evidence.state`).
        unjudged: The latest of them that no judgement has seen.
        levels: Probabilities left below and above the interval.
        shift: Correction of location in the network's sigmas.
        scale: Correction of its sigma.
        trusted: Whether the network was trusted.
        reason: Why it was not.
        fallbacks: Times that trust was lost.
    """

    version: int
    calibration: Calibration
    coverage: float
    outcomes: list[list[float]]
    unjudged: int
    levels: tuple[float, float]
    shift: float
    scale: float
    trusted: bool
    reason: str
    fallbacks: int


class Bounded(NamedTuple):
    """Corrected forecasts, arrays of shape (n,).

    Attributes:
        mu: Location of ln X.
        sigma: Scale of ln X.
        lower: Lower ends in tokens, at least 1.
        upper: Upper ends in tokens, at least `lower`, at most the cap.
    """

    mu: Floats
    sigma: Floats
    lower: Ints
    upper: Ints


class ForecastWatch:
    """Follows finished answers of a network that has been calibrated offline.

    *Correction.* Location and scale of the latest residuals, a log-t fit that leans on the offline
    calibration, move mu and sigma. Lengths that all grow or shrink keep their ranking.

    *Coverage.* Each end of the interval has its own probability level, which an answer outside it
    widens by `LEVEL_STEP` times 1 - tail and one inside narrows by `LEVEL_STEP` times tail
    (adaptive conformal inference, Gibbs and Candes 2021, arXiv:2106.00170). What is covered is
    min(X, cap): an answer that was ended by its cap is inside if and only if the upper end is at
    the cap. One that something else ended early tells nothing about an end that it did not reach.

    *Trust.* The network is trusted from the start, as it comes with scores on held-out prompts. It
    is judged by its gain: log-likelihood, corrected as above, over that of the prior, mean over
    the latest outcomes. Trust is lost when over one of `SPANS` the gain is `DOUBT` standard errors
    below `-MARGIN_NATS`; it comes back when the gain over `RELIEF_OUTCOMES` is `RELIEF` standard
    errors above 0. Whoever serves goes on asking a network out of favour, so that it can return.

    Why not by rank: outcomes come in the order of finishing, and the policy starts short forecasts
    first. Among answers that finish together a long forecast started late and therefore turned out
    short. So within the window forecasts and lengths of a good network correlate little or even
    negatively, while those of the prior, which the order does not follow, are untouched. The
    likelihood of a length given its forecast suffers much less, and `MARGIN_NATS` allows for it, up
    to about 1,000 answers under way at a time. With 2,048, four times the window, a good network
    does fall out of favour amid such a batch, until the prior's order has undone the selection.
    Rank correlations are reported, and in the light of this; they decide nothing.

    Args:
        calibration: Of the network, made on held-out prompts.
        coverage: Share of answers that an interval should contain, in (0, 1).

    Attributes:
        trusted: Whether the network's forecasts should be served; else the prior's.
        reason: Why they should not; empty when they should.

    Raises:
        CalibrationError: The coverage is out of the calibration's reach.
    """

    def __init__(self, calibration: Calibration, coverage: float = 0.9) -> None:
        calibration.bounds(0.0, 1.0, coverage)
        self._calibration = calibration
        self._coverage = coverage
        self._tail = (1 - coverage) / 2
        self._window = Evidence(np.empty((COLUMNS, 0)))
        self._unjudged = 0
        self._levels = (self._tail, self._tail)
        self._shift, self._scale = 0.0, 1.0
        self._fallbacks = 0
        self.trusted = True
        self.reason = ""

    def forecasts(self, mu: ArrayLike, sigma: ArrayLike, max_tokens: ArrayLike) -> Bounded:
        """What the network's forecasts are worth saying now, trusted or not.

        Args:
            mu: Location of ln X as the network gives it, calibrated offline, (n,).
            sigma: Scale of ln X, likewise, above 0, (n,).
            max_tokens: The requests' own caps; 0: not known, (n,).
        """
        location, spread = self._corrected(np.asarray(mu), np.asarray(sigma))
        cap = np.asarray(max_tokens)
        cap = np.where(cap > 0, cap, MAX_TOKENS)
        below, above = self._levels
        low, high = self._calibration.quantile(np.array([below, 1 - above]))
        ends = np.stack((location + spread * low, location + spread * high))
        # What lies beyond the cap is the cap itself, not what is left of it after exp(log(cap)).
        lower, upper = np.where(ends < np.log(cap), np.exp(np.minimum(ends, _LOG_MOST)), cap)
        lower, upper = np.floor(lower), np.ceil(upper)
        lower = np.clip(lower, 1, cap).astype(np.int64)
        return Bounded(location, spread, lower, np.clip(upper, lower, cap).astype(np.int64))

    def observe(
        self,
        learned_mu: ArrayLike,
        learned_sigma: ArrayLike,
        prior_mu: ArrayLike,
        prior_sigma: ArrayLike,
        output_tokens: ArrayLike,
        censored: ArrayLike,
        max_tokens: ArrayLike,
    ) -> None:
        """Take note of finished answers, the latest last; of none when one is bad.

        Args:
            learned_mu: Location of ln X as the network gave it, before any correction here, (n,).
            learned_sigma: Its scale, above 0, (n,).
            prior_mu: Location that the prior gives the same requests, before it learns of the
                outcomes, (n,).
            prior_sigma: Its scale, above 0, (n,).
            output_tokens: Lengths of the answers, at least 1, (n,).
            censored: Whether something cut the answer: its cap or an early end, (n,).
            max_tokens: The requests' own caps; 0: not known, (n,).

        Raises:
            ValueError: Shapes differ or a value is out of range.
        """
        new = Evidence.of(
            learned_mu,
            learned_sigma,
            prior_mu,
            prior_sigma,
            output_tokens,
            censored,
            max_tokens,
        )
        for part in new.parts(_EVERY):
            self._follow(part)
        self._window = self._window.followed_by(new).latest(WINDOW_OUTCOMES)
        self._unjudged += len(new)
        if self._unjudged >= _EVERY:
            self._unjudged = 0
            self._correct()
            self._judge()

    def stats(self) -> WatchStats:
        """How good forecasts have been over the window. Costs about ten milliseconds."""
        window, gains = self._window, self._gains()
        return WatchStats(
            outcomes=len(window),
            trusted=self.trusted,
            reason=self.reason,
            fallbacks=self._fallbacks,
            coverage=window.coverage(),
            target=self._coverage,
            rank=window.rank(*self._corrected(*window.learned)),
            rank_prior=window.rank(*window.prior),
            gain=float(gains.mean()) if len(gains) else math.nan,
            shift=self._shift,
            scale=self._scale,
        )

    def state(self) -> WatchState:
        """Everything, as values that JSON can hold."""
        return WatchState(
            version=STATE_VERSION,
            calibration=self._calibration,
            coverage=self._coverage,
            outcomes=self._window.state(),
            unjudged=self._unjudged,
            levels=self._levels,
            shift=self._shift,
            scale=self._scale,
            trusted=self.trusted,
            reason=self.reason,
            fallbacks=self._fallbacks,
        )

    def load_state(self, state: WatchState | dict[str, Any]) -> None:
        """Continue where `state()` was taken; unchanged when that is unusable.

        Args:
            state: The state, or what JSON made of it.

        Raises:
            WatchStateError: It is of another version, another network or another coverage, or not
                intact.
        """
        try:
            found = msgspec.convert(msgspec.to_builtins(state), WatchState)
        except (msgspec.ValidationError, ValueError) as error:
            raise WatchStateError(f"unusable state of a watch: {error}") from error
        if found.version != STATE_VERSION:
            raise WatchStateError(
                f"state of a watch has version {found.version}, this program reads {STATE_VERSION}"
            )
        if found.calibration != self._calibration or found.coverage != self._coverage:
            raise WatchStateError(
                "state of a watch over another network or another coverage: start afresh"
            )
        self._window = _window_of(found)
        self._levels, self._shift, self._scale = found.levels, found.shift, found.scale
        self.trusted, self.reason = found.trusted, found.reason
        self._fallbacks, self._unjudged = found.fallbacks, found.unjudged

    def _corrected(self, mu: Floats, sigma: Floats) -> tuple[Floats, Floats]:
        return mu + self._shift * sigma, sigma * self._scale

    def _follow(self, new: Evidence) -> None:
        """Fill `inside` of answers that came together, and move the levels."""
        _, _, lower, upper = self.forecasts(*new.learned, new.cap)
        below, above = new.tokens < lower, new.tokens > upper
        early = new.cut & (new.tokens < new.cap)
        new.inside[:] = np.where(early & ~above, np.nan, ~(below | above))
        moved = [
            level + LEVEL_STEP * float((self._tail - outside[known]).sum())
            for level, outside, known in (
                (self._levels[0], below, ~(early & below)),
                (self._levels[1], above, ~early | above),
            )
        ]
        low, high = np.clip(moved, *_LEVELS).tolist()
        self._levels = low, high

    def _correct(self) -> None:
        recent = self._window.latest(DRIFT_OUTCOMES)
        seen = residuals(recent.tokens, *recent.learned)
        residual = np.concatenate((seen, _PSEUDO_T))
        cut = np.concatenate((recent.cut, np.zeros(len(_PSEUDO_T), np.bool_)))
        weight = np.full(len(residual), DRIFT_WORTH / len(_PSEUDO_T))
        weight[: len(seen)] = 1.0
        fitted = drift(residual[None, :], cut[None, :], weight[None, :])
        self._shift, self._scale = (float(value[0]) for value in fitted)

    def _gains(self) -> Floats:
        """Log-likelihood over that of the prior, (answers in the window,)."""
        window = self._window
        learned = window.log_likelihood(*self._corrected(*window.learned))
        gains: Floats = learned - window.log_likelihood(*window.prior)
        return gains

    def _judge(self) -> None:
        gains = self._gains()
        if not self.trusted:
            mean, error = _mean(gains[-RELIEF_OUTCOMES:])
            if len(gains) >= RELIEF_OUTCOMES and mean > RELIEF * error:
                self.trusted, self.reason = True, ""
            return
        for span in SPANS:
            if len(gains) < span:
                return
            mean, error = _mean(gains[-span:])
            if mean < -MARGIN_NATS - DOUBT * error:
                self.trusted = False
                self._fallbacks += 1
                self.reason = (
                    f"over {span} outcomes the prior was the better forecaster by {-mean:.2f} nats "
                    f"per outcome (standard error {error:.2f}, tolerated {MARGIN_NATS})"
                )
                return


def _mean(values: Floats) -> tuple[float, float]:
    """Mean and its standard error."""
    spread = max(float(values.std()), _LEAST_SPREAD)
    return float(values.mean()), spread / math.sqrt(len(values))


def _window_of(state: WatchState) -> Evidence:
    """The window of a state.

    Raises:
        WatchStateError: The state is not intact.
    """
    try:
        window = Evidence.from_state(state.outcomes)
        numbers = (*state.levels, state.shift, state.scale)
        in_range = all(_LEVELS[0] <= level <= _LEVELS[1] for level in state.levels)
        if not (np.isfinite(numbers).all() and in_range and state.scale > 0):
            raise ValueError(f"levels, shift and scale are {numbers}")
    except ValueError as error:
        raise WatchStateError(f"unusable state of a watch: {error}") from error
    return window.latest(WINDOW_OUTCOMES)
