"""How good forecasts are on prompts whose answers' lengths are known."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from scipy import special, stats

from policies.batch import Floats, Ints
from policies.forecast import DEGREES_OF_FREEDOM as NU
from policies.logt import DENSITY_AT_0, moments
from predictor.label_fit import fit_labels
from predictor.labels import Labels
from predictor.messages import Outcome
from predictor.prior import PriorForecaster

CAP_TOKENS = 32_768
"""Cap taken where neither the labels nor the caller know one."""

ANY_MODEL = ""
"""Under this name a prior knows the answers of all models; it stands in for an unknown one."""

_NEVER_FORGETS = 1e15  # samples; a prior of labels must not prefer those that were read last
_UNCAPPED = 1 << 24


class Scores(msgspec.Struct, frozen=True):
    """What forecasts are worth on labelled prompts.

    Attributes:
        prompts: Prompts scored; one put to several models counts once for each.
        r2_mu: R2 of mu against the labels' fits.
        r2_sigma: R2 of sigma as the network itself gives it: the calibrated one holds the network's
            error too, which no prompt's own samples show.
        kendall_tau: Kendall's tau-b between E[min(X, cap)] and one realised length per prompt, as
            the mean over the samples: the first of every prompt, the second, and so on.
        nll: Mean negative log-likelihood of the lengths in nats, those that a cap ended through the
            survival function; every prompt weighs the same.
        nll_prior: That of the prior.
        coverage: Share of lengths inside the interval; every prompt weighs the same.
        coverage_due: What it would be were every end right: one at the cap, or at a single token,
            has no answers beyond it, so that its share of the misses falls away.
        interval_width: Mean width of the interval in tokens, ended at the cap.
        interval_width_prior: That of the prior's.
    """

    prompts: int
    r2_mu: float
    r2_sigma: float
    kendall_tau: float
    nll: float
    nll_prior: float
    coverage: float
    coverage_due: float
    interval_width: float
    interval_width_prior: float


@dataclass(frozen=True, slots=True)
class Distributions:
    """Forecasts of n prompts.

    Attributes:
        mu: Location of ln X, (n,).
        sigma: Scale of ln X, above 0, (n,).
        lower: Lower end of the interval in tokens, (n,).
        upper: Upper end in tokens, without regard to the cap, (n,).
    """

    mu: Floats
    sigma: Floats
    lower: Floats
    upper: Floats


def score(
    labels: Labels,
    forecast: Distributions,
    prior: Distributions,
    own_sigma: Floats,
    coverage: float = 0.9,
    cap_tokens: int | None = None,
) -> Scores:
    """Score forecasts, and a prior beside them, on the same prompts.

    Args:
        labels: The prompts with their lengths.
        forecast: What was forecast, as it would be served.
        prior: What the prior says.
        own_sigma: Sigma as the network gives it before calibration, (n,).
        coverage: Share of answers that the intervals should contain.
        cap_tokens: Cap of prompts that name none; None: `CAP_TOKENS`.
    """
    cap = caps(labels, cap_tokens)
    fitted = fit_labels(labels)
    lower, upper = ends(forecast, cap)
    prior_lower, prior_upper = ends(prior, cap)
    return Scores(
        prompts=len(labels),
        r2_mu=r2(fitted.mu, forecast.mu),
        r2_sigma=r2(fitted.sigma, own_sigma),
        kendall_tau=kendall_tau(labels, moments(forecast.mu, forecast.sigma, cap).mean),
        nll=mean_nll(labels, forecast.mu, forecast.sigma),
        nll_prior=mean_nll(labels, prior.mu, prior.sigma),
        coverage=float(covered(labels, forecast, cap_tokens).mean()),
        coverage_due=coverage_due(lower, upper, cap, coverage),
        interval_width=float((upper - lower).mean()),
        interval_width_prior=float((prior_upper - prior_lower).mean()),
    )


def caps(labels: Labels, cap_tokens: int | None) -> Ints:
    """The cap of each prompt: its own if it names one, (n,)."""
    own = labels.prompts.max_tokens
    return np.where(own > 0, own, CAP_TOKENS if cap_tokens is None else cap_tokens)


def ends(forecast: Distributions, cap: Ints) -> tuple[Ints, Ints]:
    """Intervals as requests carry them: whole tokens in 1..cap, each (n,)."""
    lower = np.clip(np.floor(forecast.lower), 1, cap).astype(np.int64)
    upper = np.clip(np.ceil(forecast.upper), lower, cap).astype(np.int64)
    return lower, upper


def covered(labels: Labels, forecast: Distributions, cap_tokens: int | None = None) -> Floats:
    """Share of each prompt's answers that its interval holds, cut at its cap, (n,).

    Args:
        labels: The prompts with their lengths.
        forecast: With the intervals.
        cap_tokens: Cap of prompts that name none; None: `CAP_TOKENS`.
    """
    cap = caps(labels, cap_tokens)
    lower, upper = ends(forecast, cap)
    tokens = np.minimum(labels.output_tokens, cap[:, None])
    inside = (tokens >= lower[:, None]) & (tokens <= upper[:, None])
    shares: Floats = (labels.weights * inside).sum(axis=1)
    return shares


def coverage_due(lower: Ints, upper: Ints, cap: Ints, coverage: float) -> float:
    """The mean coverage of right intervals, `ends` of them each (n,).

    An interval asked to hold 90 % leaves 5 % beyond each end. Of min(X, cap) nothing lies above an
    end at the cap, and no answer is shorter than one token.
    """
    open_ends = (lower > 1).astype(np.int64) + (upper < cap)
    return float(1 - (1 - coverage) / 2 * open_ends.mean())


def kendall_tau(labels: Labels, order: Floats) -> float:
    """Mean over the samples of tau-b between `order` (n,) and that sample's lengths.

    NaN where no sample has two prompts of different length.
    """
    found = []
    for column in range(labels.output_tokens.shape[1]):
        rows = labels.present[:, column]
        if rows.sum() > 1:
            found.append(
                stats.kendalltau(order[rows], labels.output_tokens[rows, column]).statistic
            )
    known = np.array(found)[~np.isnan(found)] if found else np.empty(0)
    return float(known.mean()) if len(known) else float(np.nan)


def mean_nll(labels: Labels, mu: Floats, sigma: Floats) -> float:
    """Mean negative log-likelihood of X in nats, every prompt weighing the same."""
    log_x = np.log(np.maximum(labels.output_tokens, 1))
    t = (log_x - mu[:, None]) / sigma[:, None]
    log_density = np.log(DENSITY_AT_0) - (NU + 1) / 2 * np.log1p(t * t / NU)
    ended = log_density - np.log(sigma)[:, None] - log_x
    # The survival is above 1e-300 for any t below 1e85.
    likelihood = np.where(labels.censored, np.log(special.stdtr(NU, -t)), ended)
    return float(-(labels.weights * likelihood).sum() / len(labels))


def fit_prior(labels: Labels, coverage: float = 0.9) -> PriorForecaster:
    """The prior that knows these labels: of each model, and of `ANY_MODEL` for all others.

    Nothing is forgotten: unlike in serving, the order of labels means nothing.

    Args:
        labels: What to learn from.
        coverage: Share of answers that its intervals should contain.
    """
    prior = PriorForecaster(coverage, _NEVER_FORGETS)
    rows, columns = np.nonzero(labels.present)
    outcomes = [
        Outcome(
            labels.prompts.model[row],
            int(labels.prompts.prompt_tokens[row]),
            int(labels.output_tokens[row, column]),
            bool(labels.censored[row, column]),
        )
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    prior.observe_many(outcomes)
    prior.observe_many([msgspec.structs.replace(o, model=ANY_MODEL) for o in outcomes])
    return prior


def prior_distributions(prior: PriorForecaster, labels: Labels) -> Distributions:
    """What a prior made by `fit_prior` says of each prompt."""
    known = set(prior.models)
    names = [name if name in known else ANY_MODEL for name in labels.prompts.model]
    columns = np.empty((4, len(labels)))
    for name in sorted(set(names)):
        rows = np.flatnonzero([other == name for other in names])
        tokens = labels.prompts.prompt_tokens[rows]
        made = prior.forecast(name, tokens, np.full(len(rows), _UNCAPPED))
        columns[:, rows] = np.array([(f.mu, f.sigma, f.lower, f.upper) for f in made]).T
    return Distributions(*columns)


def r2(label: Floats, forecast: Floats) -> float:
    """Share of the labels' variance, (n,), that the forecast, (n,), explains; NaN without any."""
    variance = float(((label - label.mean()) ** 2).sum())
    if not variance:
        return float(np.nan)
    return 1 - float(((label - forecast) ** 2).sum()) / variance
