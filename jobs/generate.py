"""`tiebreak generate`: the options of an offline job and its report."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from cluster.config import ClusterConfig
from cluster.prompts import PromptEncoder
from jobs.command import run
from jobs.energy_budget import EnergyBudget, check_budget, joules_in
from jobs.generate_job import GenerateOptions
from jobs.job_options import (
    OUTPUT_PANEL,
    SAMPLING_PANEL,
    ChatTemplate,
    Delimiter,
    FlushSeconds,
    IdColumn,
    InputFormatOption,
    InputUri,
    MessagesColumn,
    Overwrite,
    PromptColumn,
    ReportJson,
    RetryErrors,
    SamplingColumns,
    SamplingPairs,
    Temperature,
    Window,
    column_names,
    sampling_options,
)
from jobs.offline_job import (
    complete,
    effective_config,
    messages,
    output_report,
    run_rows,
    say_complete,
    shown_place,
)
from jobs.options import with_config
from jobs.reading.inputs import InputOptions, open_input
from jobs.report import render
from jobs.writing.manifest import claim_folder
from jobs.writing.ordered import ORDERED, write_openai_batch, write_ordered
from jobs.writing.outputs import ResultWriter

console = Console()

PAUSED_STATUS = 3
"""Exit status of a job that pauses because its energy budget is spent."""


def generate(
    config: ClusterConfig,
    input_uri: InputUri,
    output_uri: Annotated[
        str,
        typer.Option(
            "--output",
            help="Folder or URI for the answers; the same command resumes an unfinished job there.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ],
    input_format: InputFormatOption = None,
    prompt_column: PromptColumn = None,
    messages_column: MessagesColumn = None,
    id_column: IdColumn = None,
    sampling_columns: SamplingColumns = None,
    delimiter: Delimiter = None,
    chat_template: ChatTemplate = True,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most output tokens of a row that does not say it itself.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 256,
    temperature: Temperature = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Makes sampling repeatable.", rich_help_panel=SAMPLING_PANEL),
    ] = None,
    sampling: SamplingPairs = None,
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
    energy_budget: Annotated[
        float | None,
        typer.Option(
            metavar="JOULES",
            help="Energy that the answers may cost; then the job pauses with exit status 3, and "
            "the same command with a larger budget goes on.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None,
    overwrite: Overwrite = False,
    retry_errors: RetryErrors = False,
    window: Window = 8192,
    flush_s: FlushSeconds = 5.0,
    report_json: ReportJson = False,
) -> None:
    """Generate answers for a file of prompts on a running cluster, or on one made for the job."""
    source = open_input(
        input_uri,
        InputOptions(
            input_format=input_format,
            prompt_column=prompt_column,
            messages_column=messages_column,
            id_column=id_column,
            sampling_columns=column_names(sampling_columns),
            delimiter=delimiter,
        ),
    )
    summary = source.check()
    options = GenerateOptions(
        max_tokens=max_tokens,
        sampling=sampling_options(sampling, temperature=temperature, seed=seed),
        chat_template=chat_template,
        token_ids=token_ids,
        window=window,
    )
    config = effective_config(config)
    check_budget(energy_budget, config)
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
            if ordered and ORDERED not in folder.storage.names():
                write_ordered(folder.storage)
            say_complete(folder, output_uri)
            return
        spent_joules = max(folder.manifest.spent_joules, joules_in(folder.storage))
        budget = EnergyBudget(energy_budget, spent_joules)
        if budget.is_spent:
            _say_paused(budget.told())
            raise typer.Exit(PAUSED_STATUS)
        folder.resume()
        writer = ResultWriter(folder.storage, flush_interval_s=flush_s)
        encoder = PromptEncoder(config.model)
        result = run_rows(
            config,
            source,
            folder,
            writer,
            encoder,
            options,
            title="generating",
            rows=summary.rows,
            budget=budget,
        )
        report = output_report(folder.storage)
        if result.paused:
            folder.pause(
                budget.told(), spent_joules=budget.spent_joules, report=report.as_dict(result)
            )
        elif not result.interrupted:
            if source.is_openai_batch:
                write_openai_batch(folder.storage)
            if ordered:
                write_ordered(folder.storage)
            complete(folder, report, report.as_dict(result), rows=result.rows)
        if report_json:
            console.print_json(data=report.as_dict(result))
        else:
            console.print(render(report, result))
            place = shown_place(output_uri)
            console.print(f"answers in {place}/parts", soft_wrap=True, highlight=False)
        if result.interrupted:
            messages.print("interrupted; the same command goes on where this run stopped")
            raise typer.Exit(130)
        if result.paused:
            _say_paused(budget.told())
            raise typer.Exit(PAUSED_STATUS)


def _say_paused(why: str) -> None:
    messages.print(
        f"paused: {why}; the same command with a larger --energy-budget goes on",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    only_command = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    only_command.command()(with_config(generate))
    run(only_command)
