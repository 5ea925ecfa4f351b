"""`tiebreak simulate`: policies side by side in virtual time, or one instance of the papers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from cluster.config import ConfigError
from cluster.simulation import StalledError
from jobs.drawing import require_matplotlib
from jobs.errors import OutputError
from jobs.simulating.arms import parse_arms
from jobs.simulating.arrivals import AtOnceArrivals, TraceArrivals
from jobs.simulating.choices import (
    FORECASTS,
    FleetOptions,
    arrivals_of,
    check_choice,
    fleet_of,
    forecasts_of,
    interval_of,
    lengths_of,
    require_at_least,
    trace_of,
)
from jobs.simulating.command_options import (
    DEFAULT_ARMS,
    DEFAULT_LOAD,
    ArrivalsOption,
    BlockSizeOption,
    BurstOption,
    CastilloOption,
    CoverageOption,
    EvictionKeyOption,
    ForecastOption,
    GpuOption,
    InstanceOption,
    IntervalOption,
    KvTokensOption,
    LengthsOption,
    LoadOption,
    LookAheadOption,
    MaxModelLenOption,
    MaxNumBatchedTokensOption,
    MaxNumSeqsOption,
    MaxTokensOption,
    ModelOption,
    NetworkOption,
    OfflineShareOption,
    OnEvictionOption,
    OutOption,
    OverdueOption,
    PolicyOption,
    PowerOption,
    R2MuOption,
    R2SigmaOption,
    RateOption,
    ReplicasOption,
    ReportIntervalOption,
    ReportJsonOption,
    RequestsOption,
    SeedOption,
    SeedsOption,
    StepOption,
    TensorParallelSizeOption,
    TiesOption,
    TraceColumnsOption,
    TraceOption,
    UntilOption,
)
from jobs.simulating.comparison import Load, Plan, compare
from jobs.simulating.instance import (
    EVICTION_KEYS,
    INSTANCE_POLICIES,
    OVERDUE,
    TIES,
    InstanceOptions,
    render_instance,
    run_instance,
)
from jobs.simulating.instance_file import load_instance
from jobs.simulating.results import ComparisonReport
from jobs.simulating.tables import render_table
from jobs.simulating.workload import OfflineWork, WorkloadSpec
from policies.batch import UnknownLengthError

messages = Console(stderr=True)

_TABLE_COLUMNS = 220

_WITH_INSTANCE = {
    "instance",
    "policy",
    "step",
    "eviction_key",
    "overdue",
    "ties",
    "seed",
    "report_json",
}
_INSTANCE_ONLY = ("eviction_key", "overdue", "ties")


def simulate(
    context: typer.Context,
    policy: PolicyOption = None,
    forecast: ForecastOption = "noisy",
    network: NetworkOption = None,
    r2_mu: R2MuOption = 0.82,
    r2_sigma: R2SigmaOption = 0.76,
    coverage: CoverageOption = 0.9,
    interval: IntervalOption = "quantile",
    requests: RequestsOption = 2000,
    lengths: LengthsOption = "logt",
    castillo: CastilloOption = None,
    trace: TraceOption = None,
    trace_columns: TraceColumnsOption = None,
    max_tokens: MaxTokensOption = 4096,
    offline_share: OfflineShareOption = 0.0,
    arrivals: ArrivalsOption = "poisson",
    burst: BurstOption = None,
    load: LoadOption = None,
    rate: RateOption = None,
    seed: SeedOption = 0,
    seeds: SeedsOption = 1,
    replicas: ReplicasOption = 1,
    kv_tokens: KvTokensOption = None,
    block_size: BlockSizeOption = 16,
    max_num_seqs: MaxNumSeqsOption = 256,
    max_num_batched_tokens: MaxNumBatchedTokensOption = 8192,
    max_model_len: MaxModelLenOption = None,
    look_ahead: LookAheadOption = 0,
    on_eviction: OnEvictionOption = "recompute",
    report_interval: ReportIntervalOption = 0.25,
    step: StepOption = "linear",
    gpu: GpuOption = None,
    model: ModelOption = None,
    tensor_parallel_size: TensorParallelSizeOption = 1,
    power: PowerOption = None,
    instance: InstanceOption = None,
    eviction_key: EvictionKeyOption = EVICTION_KEYS[0],
    overdue: OverdueOption = OVERDUE[0],
    ties: TiesOption = TIES[0],
    until: UntilOption = None,
    out: OutOption = None,
    report_json: ReportJsonOption = False,
) -> None:
    """Simulate policies side by side on the same requests, through the production scheduler."""
    given = _given(context)
    if instance is not None:
        _require_only(given, _WITH_INSTANCE)
        options = InstanceOptions(_one(policy, step), eviction_key, overdue, ties, seed)
        outcome = run_instance(load_instance(instance), options)
        if report_json:
            typer.echo(json.dumps(outcome.as_dict()))
        else:
            Console().print(render_instance(outcome, options))
        return
    for name in _INSTANCE_ONLY:
        if name in given:
            raise ConfigError(f"--{_option(name)} needs --instance FILE; leave it out")
    require_at_least("requests", requests, 1)
    require_at_least("seed", seed, 0)
    require_at_least("seeds", seeds, 1)
    if until is not None:
        require_at_least("until", until, 1)
        if until > requests:
            raise ConfigError(f"--until is {until}, must be at most --requests ({requests})")
    check_choice("forecast", forecast, FORECASTS)
    fleet, step_told = fleet_of(
        FleetOptions(
            replicas=replicas,
            kv_tokens=kv_tokens,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            look_ahead=look_ahead,
            on_eviction=on_eviction,
            report_interval_s=report_interval,
            step=step,
            gpu=gpu,
            model=model,
            tensor_parallel_size=tensor_parallel_size,
            power=power,
        )
    )
    source = trace_of(trace, trace_columns)
    forecasts = forecasts_of(r2_mu, r2_sigma, coverage, network)
    spec = WorkloadSpec(
        requests=requests,
        lengths=lengths_of(lengths, castillo, source),
        arrivals=arrivals_of(arrivals, burst, source),
        interval=interval_of(interval, coverage),
        max_tokens=max_tokens,
        offline=OfflineWork(offline_share) if offline_share else None,
        seed=seed,
    )
    plan = Plan(
        arms=parse_arms(policy or [DEFAULT_ARMS], FORECASTS),
        forecasts=forecasts,
        forecast=forecast,
        workload=spec,
        fleet=fleet,
        loads=_loads(load, rate, spec),
        seeds=range(seed, seed + seeds),
        until=until,
    )
    _run(plan, _told(arrivals, burst, trace), step_told, out, report_json)


def _run(plan: Plan, arrivals: str, step_told: str, out: Path | None, report_json: bool) -> None:
    if out is not None:
        require_matplotlib()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be used as a folder: {error}") from None
    with messages.status("preparing") as status:
        try:
            comparison = compare(plan, out, status.update)
            report = ComparisonReport(plan, arrivals, step_told, comparison)
            if out is not None:
                status.update("drawing the report")
                report.write(out)
        except (StalledError, UnknownLengthError) as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise OutputError(f"cannot write rows and reports: {error}") from None
    if report_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    console = Console()
    # A table wider than the terminal is broken by the terminal, not squeezed by rich.
    wide = Console(width=max(console.width, _TABLE_COLUMNS))
    for name, text in report.facts().items():
        console.print(f"[bold]{name}:[/] {escape(text)}", highlight=False)
    for table in report.tables():
        wide.print()
        wide.print(render_table(table))
    if out is not None:
        console.print(f"report in {out.resolve() / 'report.html'}", soft_wrap=True, highlight=False)


def _loads(multiples: list[str] | None, rates: list[str] | None, spec: WorkloadSpec) -> list[Load]:
    if multiples and rates:
        raise ConfigError("--load and --rate both say how much is offered; give one of them")
    if isinstance(spec.arrivals, AtOnceArrivals):
        if multiples or rates:
            raise ConfigError("--arrivals at-once has no rate; leave --load and --rate out")
        return [Load()]
    if rates:
        return [Load(rate_per_s=value) for value in _positive("rate", rates)]
    if multiples:
        return [Load(multiple=value) for value in _positive("load", multiples)]
    return [Load() if isinstance(spec.arrivals, TraceArrivals) else Load(multiple=DEFAULT_LOAD)]


def _positive(name: str, texts: list[str]) -> list[float]:
    """Ascending numbers above 0, several in a text with commas between."""
    values = []
    for text in (part.strip() for given in texts for part in given.split(",")):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(f"--{name} is {text!r}, must be a number above 0")
        values.append(value)
    return sorted(set(values))


def _one(policies: list[str] | None, step: str) -> str:
    """The policy of an instance; 'unit' must be the step."""
    if step != "unit":
        raise ConfigError(f"--instance needs --step unit, got {step!r}; add it")
    if policies is None or len(policies) != 1:
        raise ConfigError(
            f"--instance needs one --policy of {', '.join(INSTANCE_POLICIES)}; give exactly one"
        )
    return policies[0]


def _told(arrivals: str, burst: float | None, trace: str | None) -> str:
    if arrivals == "trace":
        return f"those of {trace}"
    return arrivals if burst is None else f"{arrivals} with burst factor {burst:g}"


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _require_only(given: set[str], allowed: set[str]) -> None:
    for name in sorted(given - allowed):
        raise ConfigError(
            f"--{_option(name)} describes a workload or a report, and --instance FILE is the whole "
            "workload; leave one of them out"
        )


def _option(name: str) -> str:
    return name.replace("_", "-")
