"""The command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.asking import asked
from cluster.client import NoClusterError, connect_controller
from cluster.config import ClusterConfig, fields
from cluster.lifecycle import (
    RayUnreachableError,
    StartError,
    connect_ray,
    create_controller,
    start_ray_head,
    stop_controller,
    stop_ray_head,
    wait_for_replicas,
)
from cluster.messages import ClusterStatus
from jobs.bench import bench
from jobs.calibrate import calibrate
from jobs.command import run
from jobs.doctor import examine
from jobs.evaluate import evaluate_command
from jobs.figures import energy, meter
from jobs.fit_labels import fit_labels_command
from jobs.forecast import forecast
from jobs.generate import generate
from jobs.label import label
from jobs.metrics import metrics
from jobs.options import shown, with_config
from jobs.replay import replay_command
from jobs.rows_report import report
from jobs.scale import scale
from jobs.score import score
from jobs.serve import serve
from jobs.simulate import simulate
from jobs.top import top
from jobs.train import train_command
from jobs.why import why
from replicas.protocol import EnergyTotals

app = typer.Typer(
    name="tiebreak",
    help="Schedule LLM inference over a Ray cluster of vLLM replicas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
messages = Console(stderr=True)

app.command()(with_config(generate))
app.command()(with_config(serve))
app.command()(with_config(label))
app.command("fit-labels")(fit_labels_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command()(with_config(forecast))
app.command()(with_config(calibrate))
app.command("replay")(replay_command)
app.command()(report)
# A negative number must not be taken for an option.
app.command(context_settings={"ignore_unknown_options": True})(with_config(scale))
app.command()(with_config(top))
app.command()(with_config(why))
app.add_typer(bench, name="bench")
app.command()(simulate)
app.command()(metrics)
app.command()(score)


@app.command()
@with_config
def up(config: ClusterConfig) -> None:
    """Start a cluster that stays: Ray if none runs here, the controller and the replicas."""
    if not _ray_runs(config):
        start_ray_head()
        messages.print("started Ray on this machine")
    connect_ray(config.ray.address, start_local=False)
    try:
        controller = connect_controller()
    except NoClusterError:
        controller = create_controller(config, detached=True)
    else:
        messages.print("a cluster is running already; `tiebreak down` first to start it anew")
    try:
        with messages.status("loading the replicas"):
            status = wait_for_replicas(controller)
    except StartError:
        stop_controller(controller)
        raise
    _print_status(status)


@app.command()
@with_config
def down(config: ClusterConfig) -> None:
    """Stop the cluster, and Ray too if `tiebreak up` started it."""
    connect_ray(config.ray.address, start_local=False)
    try:
        stop_controller(connect_controller())
        messages.print("stopped the cluster")
    except NoClusterError as error:
        messages.print(str(error))
    if stop_ray_head():
        messages.print("stopped Ray")


@app.command()
@with_config
def status(
    config: ClusterConfig,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the running cluster: its queue and its replicas."""
    connect_ray(config.ray.address, start_local=False)
    current: ClusterStatus = asked(connect_controller().status)
    if json:
        import msgspec

        console.print_json(msgspec.json.encode(current).decode())
    else:
        _print_status(current)


@app.command()
@with_config
def config(config: ClusterConfig) -> None:
    """Print the effective configuration as YAML, with each field's meaning."""
    values = config.model_dump(mode="json")
    open_section = ""
    for field in fields():
        section, _, name = field.name.rpartition(".")
        if section != open_section:
            typer.echo(f"{section}:")
            open_section = section
        value = values[section][name] if section else values[name]
        indent = "  " if section else ""
        typer.echo(f"{indent}# {field.description}\n{indent}{name}: {shown(value)}")


@app.command()
@with_config
def doctor(config: ClusterConfig) -> None:
    """Check this machine for what the configuration needs, and say how to mend it."""
    marks = {True: "[green]ok[/]", None: "[yellow]note[/]", False: "[red]bad[/]"}
    table = Table("check", "", box=None, pad_edge=False)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    findings = list(examine(config))
    for finding in findings:
        table.add_row(finding.name, marks[finding.ok], escape(finding.seen), escape(finding.fix))
    console.print(table)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


def _ray_runs(config: ClusterConfig) -> bool:
    try:
        connect_ray(config.ray.address, start_local=False)
    except RayUnreachableError:
        if config.ray.address is not None:
            raise
        return False
    return True


def _print_status(status: ClusterStatus) -> None:
    console.print(
        f"policy {status.policy}, model {status.model}: {status.waiting:,} waiting, "
        f"{status.running:,} running, {status.finished:,} finished, {status.refused:,} refused; "
        f"{status.preemptions:,} evictions, {status.recalls:,} recalls to another replica, "
        f"{status.recomputed_tokens:,} tokens computed again; forecasts: {status.predictor}",
        highlight=False,
        markup=False,
    )
    if status.journal:
        console.print(f"journal: {status.journal}", highlight=False, markup=False)
    if status.rows:
        console.print(f"finished requests: {status.rows}", highlight=False, markup=False)
    columns = ("replica", "state", "where", "engine", "runs", "KV blocks", "peak", "energy")
    table = Table(*columns, box=None, pad_edge=False)
    for r in status.replicas:
        devices = f" cores {r.cores}" if r.cores else f" GPUs {r.gpus}" if r.gpus else ""
        table.add_row(
            r.replica_id,
            f"{r.state}: {escape(r.error)}" if r.error else r.state,
            escape(r.node + devices),
            r.engine,
            f"{r.running} of {r.slots}",
            f"{r.used_blocks:,} of {r.kv_blocks:,}",
            f"{r.projected_peak_blocks:,}",
            _metered(r.energy),
        )
    console.print(table)


def _metered(totals: EnergyTotals) -> str:
    what = meter(totals.source)
    return what if totals.source == "none" else f"{energy(totals.metered_joules)}, {what}"


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `tiebreak`; `words` are the arguments, None takes the process's own."""
    run(app, words)


if __name__ == "__main__":
    main()
