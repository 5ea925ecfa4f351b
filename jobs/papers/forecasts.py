"""What trained networks are worth: on prompts they have not seen, and in the scheduler."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jobs.papers.arms import PaperArm, figures, run_arm
from jobs.papers.castillo import data_folder
from jobs.papers.fleets import fleet_of, step_time_source
from jobs.papers.forecasts_section import write
from jobs.papers.networks import LLAMA_8B, MODELS, labels_of, short_name, trained
from jobs.papers.study import Cell, Result, Study
from jobs.papers.tie_online import MAX_TOKENS, capacity_per_s
from jobs.simulating.arrivals import GammaArrivals
from jobs.simulating.castillo import CastilloLengths
from jobs.simulating.forecasts import (
    ExactForecast,
    Forecasting,
    OracleForecast,
    PriorForecast,
    RandomForecast,
)
from jobs.simulating.learned_forecast import LearnedForecast
from jobs.simulating.workload import WorkloadSpec
from policies.bundle import policy
from predictor.labels import Labels
from predictor.lexical import lexical_features
from predictor.splits import Split
from predictor.training_settings import TrainingSettings

LOOP = "all thirteen"
"""The network that is tried in the scheduler."""

_OWN_SIDE = "its own test side"
_RIDGE = 10.0  # in prompts; the features are z-scored
_REGIMES = ("slots", "memory")


def study(*, requests: int = 1_500, seeds: int = 2, load: float = 2.0) -> Study:
    """The study: networks on CASTILLO's withheld prompts, and one of them in the simulator.

    Args:
        requests: Of each simulated run.
        seeds: Workloads of each kind.
        load: Multiple of the capacity.
    """
    every: list[Cell] = [
        _network(LOOP),
        *(_network(f"{short_name(name)} alone", models=[name]) for name in MODELS),
        _network("without Llama-3.1-8B", leave_out=[LLAMA_8B]),
        {**_network(LOOP), "scored_on": _OWN_SIDE},
        {"part": "linear"},
    ]
    loops: list[Cell] = [
        {
            "part": "loop",
            "network": every[0],
            "regime": regime,
            "seed": seed,
            "requests": requests,
            "load": load,
            "step_time": step_time_source(),
        }
        for regime in _REGIMES
        for seed in range(seeds)
    ]
    return Study(
        name="forecasts",
        title="What a forecast learnt from the prompt is worth",
        cells=[*every, *loops] if data_folder() is not None else [],
        measure=measure,
        write=write,
        needs_data=True,
    )


def _network(
    name: str,
    *,
    models: list[str] | None = None,
    leave_out: list[str] | None = None,
    loss: str = TrainingSettings().loss.value,
) -> Cell:
    return {
        "part": "network",
        "name": name,
        "models": models,
        "leave_out": leave_out or [],
        "loss": loss,
        "seed": 0,
    }


def measure(cell: Cell) -> Result:
    """One network, the linear model, or one run of all arms."""
    if cell["part"] == "linear":
        return _linear()
    if cell["part"] == "loop":
        return _loop(cell)
    return _scores(cell)


def _scores(cell: Cell) -> Result:
    from jobs.papers.remembering_encoder import load
    from predictor.evaluation import evaluate

    folder = trained(cell)
    forecaster = load(folder)
    targets = [name for name in MODELS if not cell["models"] or name in cell["models"]]
    result: Result = {}
    for name in targets:
        if cell.get("scored_on") == _OWN_SIDE:
            labels = labels_of("train", (name,))
            labels = labels.take(labels.split()[Split.TEST])
        else:
            labels = labels_of("validate", (name,))
        scores = evaluate(folder, labels, cap_tokens=MAX_TOKENS, forecaster=forecaster)
        result[short_name(name)] = msgspec.to_builtins(scores)
    return result


def _linear() -> Result:
    """Ridge regression of mu on the lexical features and the model: what an encoder must beat."""
    from predictor.label_fit import fit_labels
    from predictor.scores import kendall_tau, r2

    training = labels_of("train", ())
    names = sorted(set(training.prompts.model))
    x, y = _lexical(training, names), fit_labels(training).mu
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = (x - mean) / std
    weights = np.linalg.solve(z.T @ z + _RIDGE * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    result: Result = {}
    for name in MODELS:
        labels = labels_of("validate", (name,))
        mu = (_lexical(labels, names) - mean) / std @ weights + y.mean()
        result[short_name(name)] = {
            "prompts": len(labels),
            "r2_mu": r2(fit_labels(labels).mu, mu),
            "kendall_tau": kendall_tau(labels, mu),
        }
    return result


def _lexical(labels: Labels, models: list[str]) -> np.ndarray:
    known = {text: lexical_features(text) for text in set(labels.prompts.text)}
    model = np.array([[own == name for name in models] for own in labels.prompts.model], float)
    return np.hstack([np.array([known[text] for text in labels.prompts.text]), model])


def _loop(cell: Cell) -> Result:
    learned = _learned(str(trained(cell["network"])))
    forecasts: dict[str, Forecasting] = {
        "random": RandomForecast(learned),
        "prior": PriorForecast(),
        "learned": learned,
        "oracle": OracleForecast(),
        "exact": ExactForecast(),
    }
    capacity = capacity_per_s(cell["regime"], 1, cell["seed"], cell["step_time"])
    workload = WorkloadSpec(
        requests=cell["requests"],
        lengths=CastilloLengths(),
        arrivals=GammaArrivals(cell["load"] * capacity),
        max_tokens=MAX_TOKENS,
        seed=cell["seed"],
    )
    fleet = fleet_of(cell["regime"], 1, cell["step_time"])
    arms: dict[str, PaperArm] = {"fcfs": PaperArm("FCFS", policy("fcfs"), PriorForecast())}
    arms |= {name: PaperArm(name, policy("tiebreak"), source) for name, source in forecasts.items()}
    return {"arms": {name: _kept(run_arm(arm, workload, fleet)) for name, arm in arms.items()}}


def _kept(summary: Any) -> dict[str, Any]:
    names = ("per_token_mean_s", "latency_mean_s", "latency_p99_s", "kendall", "coverage")
    kept = figures(summary)
    return {name: kept[name] for name in names}


@lru_cache(maxsize=2)
def _learned(folder: str) -> LearnedForecast:
    from jobs.papers.remembering_encoder import load

    return LearnedForecast(lambda: load(Path(folder)))
