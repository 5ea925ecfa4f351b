"""A linear step time fitted to the measured steps of an engine, and the file that keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from replicas.step_time import LinearStepTime, StepTimeError, StepWork

MIN_STEPS = 100
"""Fewer steps do not tell five coefficients from noise."""

HELD_OUT_EVERY = 5
"""Each so many-th step is kept from the fit and tells its error."""

MAX_ROUNDS = 10
OUTLIER_DEVIATIONS = 4.0
"""Steps further from the fit than this, in robust standard deviations, are left out of it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FitError:
    """How far a step time is from steps that it was not fitted on, outliers included.

    Attributes:
        steps: Steps that were held out.
        median: Median relative error of a step.
        p90: 90th percentile of it.
        total: Relative error of the sum over all steps, signed: above 0 it predicts too much.
        r2: Share of the variance of durations that it explains.
    """

    steps: int
    median: float
    p90: float
    total: float
    r2: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fit and its quality.

    Attributes:
        step_time: The fitted step time.
        steps: Steps it was fitted on.
        outliers: Steps left out of the fit as such.
        error: On the steps held out.
    """

    step_time: LinearStepTime
    steps: int
    outliers: int
    error: FitError


def fit(steps: Floats) -> Calibration:
    """Fit a `LinearStepTime` to measured steps.

    Least squares of the relative error with coefficients that are not negative. Steps that took far
    longer or shorter than the others tell are outliers and left out: the fit is repeated without
    them until they stay the same. At the end all coefficients are scaled so that the steps, the
    outliers too, sum to the time that was measured.

    Args:
        steps: Shape `(steps, 5)`, as `StepLog.read` gives them.

    Raises:
        StepTimeError: There are too few steps, none that prefills or decodes, or no solution.
    """
    seconds, work = steps[:, 0], steps[:, 1:]
    usable = (seconds > 0) & np.isfinite(steps).all(axis=1)
    seconds, work = seconds[usable], work[usable]
    if len(seconds) < MIN_STEPS:
        raise StepTimeError(
            f"{len(seconds)} steps were measured, a fit needs {MIN_STEPS}: run the engine longer"
        )
    for column, what in ((0, "prefilled"), (2, "decoded")):
        if not work[:, column].any():
            raise StepTimeError(f"no step {what} a token, so its cost cannot be told")
    held_out = np.arange(len(seconds)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    coefficients, kept = _robust(seconds[~held_out], work[~held_out])
    most = work[~held_out].max(axis=0)
    base, per_prefill_token, per_prefill_pair, per_decode_token, per_kv_token = coefficients
    step_time = LinearStepTime(
        base_s=base,
        per_prefill_token_s=per_prefill_token,
        per_decode_token_s=per_decode_token,
        per_kv_token_s=per_kv_token,
        per_prefill_pair_s=per_prefill_pair,
        measured=StepWork(*(int(value) for value in most)),
    )
    return Calibration(
        step_time=step_time,
        steps=int(kept.sum()),
        outliers=int((~kept).sum()),
        error=error_of(step_time, np.column_stack((seconds, work))[held_out]),
    )


def error_of(step_time: LinearStepTime, steps: Floats) -> FitError:
    """How far a step time is from measured steps, shape `(steps, 5)`."""
    seconds = steps[:, 0]
    predicted = np.array([step_time.seconds(StepWork(*row)) for row in steps[:, 1:].tolist()])
    relative = np.abs(predicted / seconds - 1)
    variance = float(((seconds - seconds.mean()) ** 2).sum())
    residual = float(((seconds - predicted) ** 2).sum())
    return FitError(
        steps=len(seconds),
        median=float(np.median(relative)),
        p90=float(np.quantile(relative, 0.9)),
        total=float(predicted.sum() / seconds.sum() - 1),
        r2=1 - residual / variance if variance else float(residual == 0),
    )


def _robust(seconds: Floats, work: Floats) -> tuple[list[float], NDArray[np.bool_]]:
    """Coefficients of a step, of each column of `work`, and which steps they were fitted on."""
    design = np.column_stack((np.ones(len(seconds)), work))
    scale = np.maximum(np.abs(design).max(axis=0), np.finfo(float).tiny)
    design /= scale
    kept = np.ones(len(seconds), np.bool_)
    # Errors count relative to what is expected of a step. Relative to what was measured, steps that
    # happened to be fast would count most, and the fit would come out too fast.
    expected = seconds
    for _ in range(MAX_ROUNDS):
        try:
            solution, _ = nnls(design[kept] / expected[kept, None], (seconds / expected)[kept])
        except (RuntimeError, ValueError) as error:
            raise StepTimeError(
                f"no step time fits {kept.sum()} measured steps ({error}): run the engine longer"
            ) from error
        expected = np.maximum(design @ solution, np.finfo(float).tiny)
        residual = np.abs(seconds / expected - 1)
        spread = 1.4826 * float(np.median(residual[kept]))
        inside = residual <= max(OUTLIER_DEVIATIONS * spread, 1e-9)
        if (inside == kept).all():
            break
        kept = inside
    # What holds an engine up now and then is part of its time, if not of the shape of it.
    solution *= seconds.sum() / expected.sum()
    coefficients: list[float] = (solution / scale).tolist()
    return coefficients, kept


class StepTimeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of a fitted step time holds.

    Attributes:
        engine: What was measured, in words.
        coefficients: Of `LinearStepTime`, in seconds.
        measured: The largest step, in each respect, of those fitted on.
        steps: Steps fitted on.
        outliers: Steps left out as outliers.
        error: On steps held out.
    """

    engine: str
    coefficients: dict[str, float]
    measured: dict[str, int]
    steps: int
    outliers: int
    error: FitError


_COEFFICIENTS = (
    "base_s",
    "per_prefill_token_s",
    "per_prefill_pair_s",
    "per_decode_token_s",
    "per_kv_token_s",
)


def save_step_time(path: Path, calibration: Calibration, engine: str) -> None:
    """Write a fitted step time as YAML.

    Raises:
        StepTimeError: The file cannot be written.
    """
    step_time = calibration.step_time
    assert step_time.measured is not None, "it was fitted"
    content = StepTimeFile(
        engine=engine,
        coefficients={name: getattr(step_time, name) for name in _COEFFICIENTS},
        measured=step_time.measured._asdict(),
        steps=calibration.steps,
        outliers=calibration.outliers,
        error=calibration.error,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.yaml.encode(content))
    except OSError as error:
        raise StepTimeError(f"cannot write the step time to {path}: {error}") from error


def load_step_time(path: Path) -> LinearStepTime:
    """Read a step time that `save_step_time` wrote.

    Raises:
        StepTimeError: The file cannot be read or is not of a step time; one line.
    """
    try:
        content = msgspec.yaml.decode(path.read_bytes(), type=StepTimeFile)
        return LinearStepTime(**content.coefficients, measured=StepWork(**content.measured))
    except OSError as error:
        raise StepTimeError(f"cannot read the step time in {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise StepTimeError(
            f"{path} does not hold a step time as `tiebreak calibrate` writes it: {reason}"
        ) from error
