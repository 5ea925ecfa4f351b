"""A network whose answers, faults and pace a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from policies.batch import Floats
from policies.forecast import DEGREES_OF_FREEDOM as NU
from predictor.calibrations import Calibrations
from predictor.conformal import PROBABILITIES, Calibration
from predictor.messages import ForecastQuery, Outcome
from predictor.prompts import Prompts

CALIBRATION = Calibration(
    shift=0.0,
    scale=1.0,
    probabilities=PROBABILITIES.tolist(),
    z=special.stdtrit(NU, PROBABILITIES).tolist(),
    prompts=1000,
    samples=1000,
)


class ScriptedNetwork:
    """Says `mu` of texts that are numbers, with sigma 0.3; NaN of `nan`, and fails on `fail`.

    It is its own source. `gate` holds it inside `predict`.
    """

    name = "scripted"
    model = "m"

    def __init__(
        self, mu: Callable[[float], float] = float, load_error: Exception | None = None
    ) -> None:
        self.calibration = Calibrations(CALIBRATION)
        self.cache_hits = 0
        self.last_failure: str | None = None
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._mu = mu
        self._load_error = load_error

    def load(self) -> ScriptedNetwork:
        if self._load_error is not None:
            raise self._load_error
        return self

    def predict(self, prompts: Prompts) -> tuple[Floats, Floats]:
        self.batches.append(list(prompts.text))
        self.entered.set()
        assert self.gate.wait(30)
        if "fail" in prompts.text:
            raise RuntimeError("the pass failed")
        mu = np.array([np.nan if t == "nan" else self._mu(float(t)) for t in prompts.text])
        return mu, np.full(len(mu), 0.3)


def asked(texts: Sequence[str], max_tokens: int = 4096) -> list[ForecastQuery]:
    return [ForecastQuery(f"r{i}", "m", 50, max_tokens, text) for i, text in enumerate(texts)]


def ended(query: ForecastQuery, tokens: int) -> Outcome:
    return Outcome("m", query.prompt_tokens, tokens, False, query.max_tokens)
