"""What the options of `tiebreak simulate` name: lengths, arrivals, forecasts, intervals, fleets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from cluster.config import ConfigError
from cluster.virtual_replica import FleetSpec
from jobs.simulating.arrivals import Arrivals, AtOnceArrivals, GammaArrivals, TraceArrivals
from jobs.simulating.castillo import DEFAULT_MODEL, CastilloLengths
from jobs.simulating.fleet_power import power_of
from jobs.simulating.forecasts import (
    ExactForecast,
    Forecasting,
    NoisyForecast,
    OracleForecast,
    PriorForecast,
    RandomForecast,
)
from jobs.simulating.intervals import (
    BinInterval,
    CommonInterval,
    Interval,
    QuantileInterval,
    RelativeInterval,
)
from jobs.simulating.learned_forecast import LearnedForecast, Network
from jobs.simulating.lengths import Lengths, LognormalLengths, LogTLengths, TraceLengths
from jobs.simulating.traces import FORMATS, TraceColumns, TraceFile
from policies.registry import UnknownNameError, check_name
from replicas.batch_limits import BatchLimits
from replicas.silicon_tables import Deployment, load_silicon_step_time, silicon_limits
from replicas.simulated_engine import DEFAULT_STEP_TIME
from replicas.step_time import StepTimeModel, UnitStepTime

LENGTHS = ("logt", "lognormal", "castillo", "trace")
ARRIVALS = ("poisson", "gamma", "at-once", "trace")
FORECASTS = ("noisy", "oracle", "exact", "random", "prior", "learned")
INTERVALS = ("quantile", "common", "bin", "relative")
EVICTIONS = ("recompute", "restart")
DEFAULT_KV_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """The options that describe the replicas, by the names that they have on the command line."""

    replicas: int
    kv_tokens: int | None
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    look_ahead: int
    on_eviction: str
    report_interval_s: float
    step: str
    gpu: str | None
    model: str | None
    tensor_parallel_size: int
    power: str | None


def lengths_of(text: str, castillo: str | None, trace: TraceFile | None) -> Lengths:
    """Where lengths come from, by name; raises `ConfigError`."""
    name, _, model = text.partition(":")
    check_choice("lengths", name, LENGTHS)
    if model and name != "castillo":
        raise ConfigError(f"--lengths {text!r}: only castillo takes a model; write {name!r}")
    if castillo is not None and name != "castillo":
        raise ConfigError(f"--castillo needs --lengths castillo, not {text!r}; leave it out")
    if name == "castillo":
        return CastilloLengths(model or DEFAULT_MODEL, castillo)
    if name == "trace":
        return TraceLengths(_needed(trace, "--lengths trace"))
    return LognormalLengths() if name == "lognormal" else LogTLengths()


def arrivals_of(name: str, burst: float | None, trace: TraceFile | None) -> Arrivals:
    """When requests arrive, at a rate that is set later; raises `ConfigError`."""
    check_choice("arrivals", name, ARRIVALS)
    if burst is not None and name != "gamma":
        raise ConfigError(f"--burst needs --arrivals gamma, not {name!r}; leave it out")
    if name == "trace":
        return TraceArrivals(_needed(trace, "--arrivals trace"))
    if name == "at-once":
        return AtOnceArrivals()
    return GammaArrivals(rate_per_s=1.0, burst=1.0 if burst is None else burst)


def trace_of(uri: str | None, columns: str | None) -> TraceFile | None:
    """The trace, if one is named; raises `ConfigError`."""
    if uri is None:
        if columns is not None:
            raise ConfigError("--trace-columns needs --trace FILE; name the trace or leave it out")
        return None
    if columns is None or columns in FORMATS:
        return TraceFile(uri, FORMATS[columns] if columns else None)
    names = columns.split(",")
    if len(names) not in (3, 4):
        raise ConfigError(
            f"--trace-columns is {columns!r}, must be TIMESTAMP,PROMPT,OUTPUT[,SECONDS_PER_UNIT] "
            f"or one of {', '.join(FORMATS)}"
        )
    unit_s = _number("trace-columns", names[3]) if len(names) == 4 else 1.0
    return TraceFile(uri, TraceColumns(names[0], names[1], names[2], unit_s))


def forecasts_of(
    r2_mu: float, r2_sigma: float, coverage: float, network: str | None
) -> dict[str, Forecasting]:
    """Every source of forecasts, by name."""
    noisy = NoisyForecast(r2_mu, r2_sigma, coverage=coverage)
    return {
        "noisy": noisy,
        "oracle": OracleForecast(),
        "exact": ExactForecast(),
        "random": RandomForecast(of=noisy),
        "prior": PriorForecast(),
        "learned": LearnedForecast(functools.partial(_network, network)),
    }


def _network(folder: str | None) -> Network:
    if folder is None:
        raise ConfigError(
            "the learned forecast needs --network FOLDER, as `tiebreak train` writes it; add it"
        )
    from predictor.learned import LearnedForecaster

    return LearnedForecaster.load(folder)


def interval_of(text: str, coverage: float) -> Interval:
    """The interval of a forecast, by name; raises `ConfigError`."""
    name, colon, figure = text.partition(":")
    check_choice("interval", name, INTERVALS)
    takes = {"bin": "WIDTH", "relative": "X"}.get(name)
    if bool(colon) != bool(takes):
        form = f"{name}:{takes}" if takes else name
        raise ConfigError(f"--interval is {text!r}, must be {form}")
    if name == "bin":
        return BinInterval(int(_number("interval", figure)))
    if name == "relative":
        return RelativeInterval(_number("interval", figure))
    return CommonInterval() if name == "common" else QuantileInterval(coverage)


def fleet_of(options: FleetOptions) -> tuple[FleetSpec, str]:
    """The replicas, and their step time for reports.

    Raises:
        ConfigError: An option is out of range or lacks another.
        StepTimeError: The step-time model cannot be had.
    """
    check_choice("on-eviction", options.on_eviction, EVICTIONS)
    for name in ("replicas", "block_size", "max_num_seqs", "tensor_parallel_size"):
        require_at_least(name.replace("_", "-"), getattr(options, name), 1)
    require_at_least("look-ahead", options.look_ahead, 0)
    require_at_least("report-interval", options.report_interval_s, 0)
    require_at_least("max-num-batched-tokens", options.max_num_batched_tokens, options.max_num_seqs)
    if options.max_model_len is not None:
        require_at_least("max-model-len", options.max_model_len, 2)
    step_time, told, limits = _step_time(options)
    if options.kv_tokens is not None or limits is None:
        tokens = options.kv_tokens if options.kv_tokens is not None else DEFAULT_KV_TOKENS
        require_at_least("kv-tokens", tokens, options.block_size)
        limits = BatchLimits(
            kv_blocks=tokens // options.block_size,
            block_size=options.block_size,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
        )
    fleet = FleetSpec(
        replicas=options.replicas,
        limits=limits,
        step_time=step_time,
        max_model_len=options.max_model_len,
        look_ahead=options.look_ahead,
        on_eviction=cast(Literal["recompute", "restart"], options.on_eviction),
        report_interval_s=options.report_interval_s,
        power=power_of(options.power, _deployment(options)),
    )
    return fleet, told


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise `ConfigError` unless the option's value reaches `least`."""
    if not value >= least:
        raise ConfigError(f"--{name} is {value:g}, must be at least {least:g}")


def _step_time(options: FleetOptions) -> tuple[StepTimeModel, str, BatchLimits | None]:
    """The model, what a report says of it, and the limits that come with it."""
    if options.step != "silicon" and (options.gpu or options.model):
        raise ConfigError(
            f"--gpu and --model describe --step silicon, not {options.step!r}; leave them out"
        )
    if options.step == "unit":
        return UnitStepTime(), "unit: every step takes one second", None
    if options.step == "linear":
        return DEFAULT_STEP_TIME, f"linear, declared, fitted on nothing: {DEFAULT_STEP_TIME}", None
    if options.step == "silicon":
        return _silicon(options)
    path = Path(options.step)
    if not path.is_file():
        raise ConfigError(
            f"--step is {options.step!r}, which is neither unit, linear or silicon nor a file; "
            "`tiebreak calibrate` writes such a file"
        )
    from replicas.calibration import load_step_time

    return load_step_time(path), f"fitted, {path}", None


def _silicon(options: FleetOptions) -> tuple[StepTimeModel, str, BatchLimits]:
    deployment = _deployment(options)
    if deployment is None:
        raise ConfigError("--step silicon needs --gpu and --model; add them")
    model = load_silicon_step_time(deployment)
    limits = silicon_limits(
        deployment,
        block_size=options.block_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
    )
    return model, f"{model.label}; a lower bound, since only kernels were measured", limits


def _deployment(options: FleetOptions) -> Deployment | None:
    if not options.gpu or not options.model:
        return None
    return Deployment(options.gpu, options.model, options.tensor_parallel_size)


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Raise `ConfigError` unless the option's value is one of `known`."""
    try:
        check_name(f"value of --{option}", value, known)
    except UnknownNameError as error:
        raise ConfigError(str(error)) from None


def _needed(trace: TraceFile | None, what: str) -> TraceFile:
    if trace is None:
        raise ConfigError(f"{what} needs --trace FILE; add it")
    return trace


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--{option}: {text!r} is not a number") from None
