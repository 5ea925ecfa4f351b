"""`tiebreak generate`: the options of an offline job, its progress bar and its report."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from cluster.config import ClusterConfig, ConfigError
from cluster.lifecycle import find_controller, running_cluster
from cluster.prompts import PromptEncoder
from jobs.command import run
from jobs.errors import InputError
from jobs.generate_job import GenerateJob, GenerateOptions, Progress, RunResult
from jobs.options import given_model, with_config
from jobs.reading.inputs import InputFormat, InputOptions, JobInput, open_input
from jobs.reading.sampling import SAMPLING_NAMES, SamplingError, checked_sampling
from jobs.report import COLUMNS, OutputReport, render
from jobs.writing.manifest import JobFolder, claim_folder
from jobs.writing.ordered import write_openai_batch, write_ordered
from jobs.writing.outputs import ResultWriter
from jobs.writing.parts import ERRORS, RESULTS, count_rows, live_files, read_batches

console = Console()
messages = Console(stderr=True)

INPUT_PANEL = "Input"
SAMPLING_PANEL = "Sampling"
OUTPUT_PANEL = "Output"

LOG_INTERVAL_S = 10.0
"""How often progress is printed where there is no terminal to draw a bar on."""


def generate(
    config: ClusterConfig,
    input_uri: Annotated[
        str,
        typer.Option(
            "--input",
            help="File, folder, glob or URI with prompts: JSONL (plain or OpenAI batch lines), "
            "Parquet, CSV or text lines.",
            rich_help_panel=INPUT_PANEL,
        ),
    ],
    output_uri: Annotated[
        str,
        typer.Option(
            "--output",
            help="Folder or URI for the answers; the same command resumes an unfinished job there.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ],
    input_format: Annotated[
        InputFormat | None,
        typer.Option("--format", help="Default: from the file names.", rich_help_panel=INPUT_PANEL),
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="Column of prompts. Default: prompt.", rich_help_panel=INPUT_PANEL),
    ] = None,
    messages_column: Annotated[
        str | None,
        typer.Option(help="Column of chats. Default: messages.", rich_help_panel=INPUT_PANEL),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="Column of row ids. Default: id, row_id or custom_id if there; '' numbers rows.",
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    chat_template: Annotated[
        bool,
        typer.Option(
            help="Put each prompt to the model as a user's chat message.",
            rich_help_panel=INPUT_PANEL,
        ),
    ] = True,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most output tokens of a row that does not say it itself.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="0 decodes greedily. Default: vLLM's, 1.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Makes sampling repeatable.", rich_help_panel=SAMPLING_PANEL),
    ] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any other sampling parameter, e.g. top_p=0.9; may be repeated.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None,
    token_ids: Annotated[
        bool, typer.Option(help="Write token ids too.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    ordered: Annotated[
        bool,
        typer.Option(
            help="At the end write output.parquet in the input's order.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Delete what an earlier job left in the output folder.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors",
            help="Run the rows again that ended in errors.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    window: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rows in flight at once, from which the policy chooses.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 8192,
    flush_s: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds of finished work that a kill of this process can cost.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = 5.0,
    report_json: Annotated[
        bool,
        typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT_PANEL),
    ] = False,
) -> None:
    """Generate answers for a file of prompts on a running cluster, or on one made for the job."""
    source = open_input(
        input_uri,
        InputOptions(
            input_format=input_format,
            prompt_column=prompt_column,
            messages_column=messages_column,
            id_column=id_column,
        ),
    )
    summary = source.check()
    options = GenerateOptions(
        max_tokens=max_tokens,
        sampling=_sampling(sampling or [], temperature, seed),
        chat_template=chat_template,
        token_ids=token_ids,
        window=window,
    )
    controller = find_controller(config.ray.address)
    config = _of_running_cluster(config, controller)
    identity = {
        "input": source.identity(),
        "model": config.model,
        "max_tokens": max_tokens,
        "sampling": options.sampling,
        "chat_template": chat_template,
        "token_ids": token_ids,
    }
    with claim_folder(
        output_uri,
        identity,
        input_uri=input_uri,
        now_unix_s=time.time(),
        overwrite=overwrite,
        retry_errors=retry_errors,
    ) as folder:
        if folder.is_complete:
            messages.print(
                f"{output_uri} is complete already: {folder.manifest.result_rows:,} results, "
                f"{folder.manifest.error_rows:,} errors; --overwrite starts anew"
            )
        else:
            writer = ResultWriter(folder.storage, flush_interval_s=flush_s)
            result = _run(config, source, summary.rows, folder, writer, options)
            report = _finish(folder, source, result, ordered)
            if report_json:
                console.print_json(data=report.as_dict(result))
            else:
                console.print(render(report, result))
                place = output_uri if "://" in output_uri else str(Path(output_uri).resolve())
                console.print(f"answers in {place}/parts", soft_wrap=True, highlight=False)
            if result.interrupted:
                messages.print("interrupted; the same command goes on where this run stopped")
                raise typer.Exit(130)


def _run(
    config: ClusterConfig,
    source: JobInput,
    rows: int | None,
    folder: JobFolder,
    writer: ResultWriter,
    options: GenerateOptions,
) -> RunResult:
    encoder = PromptEncoder(config.model)
    if options.chat_template and not encoder.has_chat_template:
        raise InputError(
            f"model {config.model!r} has no chat template: pass --no-chat-template to send prompts "
            "as they are"
        )
    with contextlib.ExitStack() as exit_stack:
        with messages.status("starting the cluster and loading the model"):
            controller, _ = exit_stack.enter_context(running_cluster(config))
        for replica in ray.get(controller.status.remote()).replicas:
            if replica.state == "failed":
                messages.print(f"{replica.replica_id} did not start: {replica.error}", markup=False)
        with JobProgress(rows, done=writer.result_rows + writer.error_rows) as progress:
            job = GenerateJob(
                controller, source, writer, encoder, options, _job_id(folder), progress.update
            )
            return asyncio.run(job.run())


def _finish(folder: JobFolder, source: JobInput, result: RunResult, ordered: bool) -> OutputReport:
    """Read the parts for the report, and once every row has ended close the job."""
    report = OutputReport()
    for name in live_files(folder.storage, RESULTS):
        for batch in read_batches(folder.storage, name, COLUMNS):
            report.add(batch.to_pandas())
    if not result.interrupted:
        if source.is_openai_batch:
            write_openai_batch(folder.storage)
        if ordered:
            write_ordered(folder.storage)
        errors = count_rows(folder.storage, ERRORS)
        folder.complete(
            rows=report.rows + errors,
            result_rows=report.rows,
            error_rows=errors,
            now_unix_s=time.time(),
            report=report.as_dict(result),
        )
    return report


def _of_running_cluster(config: ClusterConfig, controller: Any | None) -> ClusterConfig:
    """The configuration of the cluster that is joined, if one runs."""
    if controller is None:
        return config
    running = ClusterConfig(**ray.get(controller.config.remote()))
    wanted = given_model(config)
    if wanted is not None and wanted != running.model:
        raise ConfigError(
            f"--model is {wanted!r}, but the running cluster serves {running.model!r}: leave "
            "--model out, or `tiebreak down` first"
        )
    messages.print(f"joining the running cluster: {running.model}, policy {running.policy.name}")
    return running


def _sampling(pairs: list[str], temperature: float | None, seed: int | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in SAMPLING_NAMES:
            known = ", ".join(sorted(SAMPLING_NAMES))
            raise ConfigError(f"--sampling {pair!r} is not NAME=VALUE with a name among: {known}")
        values[name] = yaml.safe_load(text)
    if temperature is not None:
        values["temperature"] = temperature
    if seed is not None:
        values["seed"] = seed
    try:
        return checked_sampling(values)
    except SamplingError as error:
        raise ConfigError(f"--sampling: {error}") from None


def _job_id(folder: JobFolder) -> str:
    """The same for every run of the job, so that a run continues under its predecessor's ids."""
    text = json.dumps([folder.storage.uri, folder.manifest.identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class JobProgress:
    """A progress bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, rows: int | None, done: int) -> None:
        self._done = done
        self._rows = rows
        self._last_log_s = time.monotonic()
        self._bar = ProgressBar(
            TextColumn("[bold]generating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=messages,
            disable=not messages.is_terminal,
        )
        self._task = self._bar.add_task("generate", total=rows, completed=done, rate="")
        self._started_s = time.monotonic()

    def __enter__(self) -> JobProgress:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show what the job has done."""
        now_s = time.monotonic()
        completed = self._done + progress.finished + progress.errors
        rate = f"{progress.output_tokens / max(now_s - self._started_s, 1e-9):,.0f} tokens/s"
        if progress.errors:
            rate += f", {progress.errors:,} errors"
        if progress.disk_full:
            rate += ", NO ROOM for the output: free some space, nothing is lost"
        self._bar.update(self._task, completed=completed, rate=rate)
        if not messages.is_terminal and now_s - self._last_log_s >= LOG_INTERVAL_S:
            self._last_log_s = now_s
            of = f" of {self._rows:,}" if self._rows else ""
            messages.print(f"{completed:,}{of} rows, {rate}")


if __name__ == "__main__":
    only_command = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    only_command.command()(with_config(generate))
    run(only_command)
