"""What offline jobs do around their rows: find the cluster, run, report, complete the folder."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.asking import asked
from cluster.config import ClusterConfig, ConfigError
from cluster.lifecycle import find_controller, running_cluster
from cluster.prompts import PromptEncoder
from jobs.energy_budget import EnergyBudget
from jobs.errors import InputError
from jobs.generate_job import GenerateJob, GenerateOptions, RunResult
from jobs.job_progress import JobProgress
from jobs.options import given_model
from jobs.reading.row_source import RowSource
from jobs.report import COLUMNS, OutputReport
from jobs.writing.manifest import JobFolder
from jobs.writing.outputs import ResultWriter
from jobs.writing.parts import ERRORS, RESULTS, count_rows, live_files, read_batches
from jobs.writing.storage import Storage

messages = Console(stderr=True)


def effective_config(config: ClusterConfig) -> ClusterConfig:
    """The configuration of the cluster that the job will join if one runs, else `config`.

    Raises:
        ConfigError: Another model was asked for than the running cluster serves.
    """
    controller = find_controller(config.ray.address)
    if controller is None:
        return config
    running = ClusterConfig(**asked(controller.config))
    wanted = given_model(config)
    if wanted is not None and wanted != running.model:
        raise ConfigError(
            f"--model is {wanted!r}, but the running cluster serves {running.model!r}: leave "
            "--model out, or `tiebreak down` first"
        )
    messages.print(f"joining the running cluster: {running.model}, policy {running.policy.name}")
    return running


def run_rows(
    config: ClusterConfig,
    source: RowSource,
    folder: JobFolder,
    writer: ResultWriter,
    encoder: PromptEncoder,
    options: GenerateOptions,
    *,
    title: str,
    rows: int | None,
    budget: EnergyBudget | None = None,
) -> RunResult:
    """Generate what is not finished yet, on the running cluster or on one made for this run.

    Args:
        config: Of the cluster.
        source: All rows.
        folder: The job's folder, claimed.
        writer: Writes to it.
        encoder: Of the cluster's model.
        options: How to generate.
        title: What the progress bar says the job is doing, in one word.
        rows: Number of rows in the source; None: not known.
        budget: What they may cost; None: any amount of energy.

    Raises:
        ConfigError: There is an energy budget, and nobody measures energy.
        InputError: A chat template is wanted and the model has none.
    """
    if options.chat_template and not encoder.has_chat_template:
        raise InputError(
            f"model {config.model!r} has no chat template: pass --no-chat-template to send prompts "
            "as they are"
        )
    with contextlib.ExitStack() as exit_stack:
        with messages.status("starting the cluster and loading the model"):
            controller, _ = exit_stack.enter_context(running_cluster(config))
        for replica in asked(controller.status).replicas:
            if replica.state == "failed":
                messages.print(f"{replica.replica_id} did not start: {replica.error}", markup=False)
        done = writer.result_rows + writer.error_rows
        with JobProgress(messages, title, rows, done) as progress:
            job = GenerateJob(
                controller,
                source,
                writer,
                encoder,
                options,
                _job_id(folder),
                job_name(folder),
                progress.update,
                budget,
            )
            return asyncio.run(job.run())


def output_report(storage: Storage) -> OutputReport:
    """The report on every result in a job's folder.

    Raises:
        OutputError: A part cannot be read.
    """
    report = OutputReport()
    for name in live_files(storage, RESULTS):
        for batch in read_batches(storage, name, COLUMNS, rows=65_536):
            report.add(batch.to_pandas())
    return report


def complete(
    folder: JobFolder, report: OutputReport, content: Mapping[str, Any], *, rows: int
) -> None:
    """Record that every row has ended.

    Args:
        folder: The job's folder.
        report: On its results.
        content: What the manifest keeps of the report.
        rows: Rows of the input.

    Raises:
        OutputError: As `JobFolder.complete`.
    """
    errors = count_rows(folder.storage, ERRORS)
    folder.complete(
        rows=rows,
        result_rows=report.rows,
        error_rows=errors,
        now_unix_s=time.time(),
        report=content,
    )


def say_complete(folder: JobFolder, output_uri: str) -> None:
    """Tell that there is nothing to do."""
    messages.print(
        f"{output_uri} is complete already: {folder.manifest.result_rows:,} results, "
        f"{folder.manifest.error_rows:,} errors; --overwrite starts anew"
    )


def shown_place(output_uri: str) -> str:
    """The output as a URI or an absolute path."""
    return output_uri if "://" in output_uri else str(Path(output_uri).resolve())


def job_name(folder: JobFolder) -> str:
    """What the cluster's statistics call the job: its folder's name and the first of its id."""
    name = folder.storage.uri.rstrip("/").rpartition("/")[2]
    return f"{name}-{_job_id(folder)[:6]}"


def _job_id(folder: JobFolder) -> str:
    """The same for every run of the job, so that a run continues under its predecessor's ids."""
    text = json.dumps([folder.storage.uri, folder.manifest.identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
