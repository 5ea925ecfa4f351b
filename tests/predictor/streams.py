"""Streams of finished answers, for the tests of what watches a network."""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from policies.batch import Floats, Ints
from policies.forecast import DEGREES_OF_FREEDOM as NU
from predictor.conformal import Calibration, calibrate
from predictor.watch import ForecastWatch

CAP = 4096
MU, MU_SPREAD = 5.3, 0.9
AT_ONCE = 32


def lengths(count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """What a perfect network would know, and the lengths drawn from it."""
    mu, sigma = rng.normal(MU, MU_SPREAD, count), rng.uniform(0.2, 0.6, count)
    return mu, np.exp(mu + sigma * rng.standard_t(NU, count))


def network(
    mu: Floats, r2_mu: float, sigma_noise: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """A regression's mu of this R2, and a sigma that knows nothing of the request."""
    noise = np.sqrt(r2_mu * (1 - r2_mu)) * MU_SPREAD * rng.standard_normal(len(mu))
    return MU + r2_mu * (mu - MU) + noise, 0.4 * np.exp(sigma_noise * rng.standard_normal(len(mu)))


@dataclass(frozen=True, slots=True)
class Stream:
    """Answers in order of finishing, and what a network calibrated offline had said of them."""

    calibration: Calibration
    mu: Floats
    sigma: Floats
    tokens: Ints

    def __post_init__(self) -> None:
        for column in (self.mu, self.sigma, self.tokens):
            column.flags.writeable = False

    def take(self, rows: Ints) -> Stream:
        return Stream(self.calibration, self.mu[rows], self.sigma[rows], self.tokens[rows])


@functools.cache
def stream(
    count: int,
    seed: int,
    *,
    r2_mu: float = 0.73,
    sigma_noise: float = 0.3,
    factor: float = 1.0,
    factor_from: int = 0,
) -> Stream:
    """Answers in no particular order; `factor` multiplies lengths from one of them on.

    The defaults make a network whose R2 on log-lengths is 0.5; `r2_mu=0.15` makes it 0.1.
    """
    rng = np.random.default_rng(seed)
    held_out, answers = lengths(2000, rng)
    calibration = calibrate(
        *network(held_out, r2_mu, sigma_noise, rng),
        np.ceil(answers).astype(np.int64)[:, None],
        np.zeros((2000, 1), np.bool_),
    )
    mu, tokens = lengths(count, rng)
    tokens[factor_from:] *= factor
    said = calibration.corrected(*network(mu, r2_mu, sigma_noise, rng))
    return Stream(calibration, *said, np.ceil(tokens).clip(1, CAP).astype(np.int64))


def served_shortest_first(requests: Stream, slots: int) -> Stream:
    """The same answers in the order in which they finish when `slots` run at a time."""
    running: list[tuple[float, int]] = []
    finished: list[int] = []
    now = 0.0
    for request in np.argsort(requests.mu).tolist():
        if len(running) == slots:
            now, done = heapq.heappop(running)
            finished.append(done)
        heapq.heappush(running, (now + float(requests.tokens[request]), request))
    finished += [request for _, request in sorted(running)]
    return requests.take(np.array(finished))


def exchanged(requests: Stream, start: int = 0) -> Stream:
    """From `start` on every request has another one's forecast."""
    rows = np.arange(len(requests.mu))
    rows[start:] = np.roll(rows[start:], 1)
    return Stream(requests.calibration, requests.mu[rows], requests.sigma[rows], requests.tokens)


def reversed_order(requests: Stream, start: int = 0) -> Stream:
    """From `start` on what is forecast long was forecast short."""
    mu = requests.mu.copy()
    mu[start:] = 2 * MU - mu[start:]
    return Stream(requests.calibration, mu, requests.sigma, requests.tokens)


def feed(watch: ForecastWatch, answers: Stream, start: int = 0, end: int | None = None) -> None:
    """Tell a watch of some of the answers, beside a prior that was fitted to such answers."""
    rows = slice(start, end)
    tokens = answers.tokens[rows]
    same = np.ones(len(tokens))
    watch.observe(
        answers.mu[rows], answers.sigma[rows], MU * same, 0.95 * same,
        tokens, tokens >= CAP, np.full(len(tokens), CAP),
    )  # fmt: skip


class Watched(NamedTuple):
    """The watch at the end; after how many outcomes trust was lost and regained; and whether the
    interval given just before held the answer, (n,)."""

    watch: ForecastWatch
    lost: list[int]
    regained: list[int]
    inside: Floats


def watched(answers: Stream) -> Watched:
    watch = ForecastWatch(answers.calibration)
    lost: list[int] = []
    regained: list[int] = []
    held = []
    for start in range(0, len(answers.mu), AT_ONCE):
        trusted = watch.trusted
        held.append(inside(watch, answers, start, start + AT_ONCE))
        feed(watch, answers, start, start + AT_ONCE)
        if watch.trusted != trusted:
            (lost if trusted else regained).append(start + AT_ONCE)
    return Watched(watch, lost, regained, np.concatenate(held))


def inside(watch: ForecastWatch, answers: Stream, start: int = 0, end: int | None = None) -> Floats:
    """Whether the intervals that the watch gives now hold the answers, (n,): 0 or 1."""
    rows = slice(start, end)
    tokens = answers.tokens[rows]
    served = watch.forecasts(answers.mu[rows], answers.sigma[rows], np.full(len(tokens), CAP))
    return ((served.lower <= tokens) & (tokens <= served.upper)).astype(np.float64)
