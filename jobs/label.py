"""`tiebreak label`: sampled answer lengths of a file of prompts, for training a predictor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from cluster.config import ClusterConfig, ConfigError
from cluster.lifecycle import connect_ray
from cluster.membership.engine_choice import uses_gpus
from cluster.prompts import Message, PromptEncoder
from jobs.command import run
from jobs.generate_job import GenerateOptions, RunResult
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
from jobs.reading.sampled import SampledInput
from jobs.report import OutputReport, render
from jobs.writing.labels import LABELS, PARTIAL_LABELS, LabelCounts, write_labels
from jobs.writing.manifest import JobFolder, claim_folder
from jobs.writing.outputs import ResultRow, ResultWriter

console = Console()


def label(
    config: ClusterConfig,
    input_uri: InputUri,
    output_uri: Annotated[
        str,
        typer.Option(
            "--output",
            help="Folder or URI for labels.parquet; the same command resumes an unfinished job "
            "there.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ],
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="Answers drawn for each prompt; one at temperature 0, where all would be equal.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 4,
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
            help="Cap on the answers of a row that does not say it itself; an answer that reaches "
            "it is recorded as censored.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 1024,
    temperature: Temperature = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Default: vLLM's, 1.", rich_help_panel=SAMPLING_PANEL),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Default: vLLM's, all tokens.", rich_help_panel=SAMPLING_PANEL),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Gives each sample a seed of its own, made of this one, the prompt's id and the "
            "sample's number. Not needed for samples that differ, and slower in the engine. On the "
            "CPU a seed and chunked prefill together end vLLM's engine: keep chunked prefill off "
            "there, as it is by default. Default: no seeds.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None,
    sampling: SamplingPairs = None,
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="Keep the prompts and sampled answers in parts/; the labels need their lengths "
            "only.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help=f"Generate nothing, write {PARTIAL_LABELS} of the prompts whose samples have all "
            "ended. It leans to short answers, which end first.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    overwrite: Overwrite = False,
    retry_errors: RetryErrors = False,
    window: Window = 8192,
    flush_s: FlushSeconds = 5.0,
    report_json: ReportJson = False,
) -> None:
    """Sample answers to a file of prompts and write their lengths, to train a predictor on."""
    if partial and (overwrite or retry_errors):
        raise ConfigError(
            f"--partial is given with {'--overwrite' if overwrite else '--retry-errors'}: it reads "
            "what an unfinished job left and must not delete it; give one of the two"
        )
    defaults = sampling_options(sampling, temperature=temperature, top_p=top_p, top_k=top_k)
    seed = defaults.pop("seed", None) if seed is None else seed
    prompts = open_input(
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
    summary = prompts.check()
    source = SampledInput(prompts, samples, max_tokens, defaults, seed)
    config = effective_config(config)
    identity = {
        "input": prompts.identity(),
        "model": config.model,
        "samples": samples,
        "max_tokens": max_tokens,
        "sampling": defaults,
        "seed": seed,
        "chat_template": chat_template,
        "text": text,
    }
    how = {name: value for name, value in identity.items() if name != "input"}
    with claim_folder(
        output_uri,
        identity,
        input_uri=input_uri,
        now_unix_s=time.time(),
        overwrite=overwrite,
        retry_errors=retry_errors,
    ) as folder:
        files = LabelFiles(folder, source, config.model, how)
        if folder.is_complete:
            files.write_missing()
            say_complete(folder, output_uri)
            return
        if partial:
            counts = files.write(PARTIAL_LABELS)
            _show_labels(counts, f"{shown_place(output_uri)}/{PARTIAL_LABELS}", report_json)
            return
        files.delete_partial()
        check_seeds(config, seed)
        writer_of = ResultWriter if text else LengthWriter
        result = run_rows(
            config,
            source,
            folder,
            writer_of(folder.storage, flush_interval_s=flush_s),
            RepeatedPromptEncoder(config.model),
            GenerateOptions(max_tokens, defaults, chat_template, window=window),
            title="labelling",
            rows=source.total(summary.rows),
        )
        report = output_report(folder.storage)
        if result.interrupted:
            _show_interrupted(report, result, report_json)
            raise typer.Exit(130)
        counts = files.write(LABELS)
        content = {**report.as_dict(result), "labels": counts.as_dict()}
        complete(folder, report, content, rows=result.rows)
        if report_json:
            console.print_json(data=content)
        else:
            console.print(render(report, result))
            _show_labels(counts, f"{shown_place(output_uri)}/{LABELS}", as_json=False)


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """The labels in a job's folder.

    Attributes:
        folder: The folder.
        source: The job's input.
        model: Who answers.
        how: What the files say of how they were made.
    """

    folder: JobFolder
    source: SampledInput
    model: str
    how: Mapping[str, Any]

    def write(self, name: str) -> LabelCounts:
        """Write the labels that there are, as `jobs.writing.labels.write_labels`."""
        return write_labels(self.folder.storage, self.source, name, model=self.model, how=self.how)

    def write_missing(self) -> None:
        """Write the labels of a complete job again if somebody has deleted them."""
        if LABELS not in self.folder.storage.names():
            self.write(LABELS)

    def delete_partial(self) -> None:
        """Delete labels that are about to be out of date."""
        self.folder.storage.delete(PARTIAL_LABELS)


class LengthWriter(ResultWriter):
    """Writes samples without the text of the prompt and of the answer."""

    def add(self, result: ResultRow) -> bool:
        """As `ResultWriter.add`."""
        return super().add(msgspec.structs.replace(result, prompt="", text=""))


class RepeatedPromptEncoder(PromptEncoder):
    """Encodes a prompt once for all its samples, which come one after another."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._latest: tuple[str | list[Message], bool, list[int]] | None = None

    def encode(self, prompt: str | list[Message], *, chat_template: bool = True) -> list[int]:
        """As `PromptEncoder.encode`; the samples of a prompt share one list."""
        latest = self._latest
        if latest is not None and latest[0] is prompt and latest[1] == chat_template:
            return latest[2]
        token_ids = super().encode(prompt, chat_template=chat_template)
        self._latest = prompt, chat_template, token_ids
        return token_ids


def check_seeds(config: ClusterConfig, seed: int | None) -> None:
    """Refuse seeds where they would end the engines.

    vLLM's CPU build dies of a seeded request whose prompt is prefilled in more than one chunk.
    Replicas on the CPU do not do that unless `replicas.engine_args` tell them to.

    Raises:
        ConfigError: There is a seed, and replicas on the CPU prefill in chunks.
    """
    arguments = config.replicas.engine_args
    wanted = ("enable_chunked_prefill", "long_prefill_token_threshold")
    chunks = [name for name in wanted if arguments.get(name)]
    if seed is None or config.replicas.engine != "vllm" or not chunks:
        return
    connect_ray(config.ray.address)
    if not uses_gpus(config):
        raise ConfigError(
            f"--seed is {seed} and replicas.engine_args.{chunks[0]} is {arguments[chunks[0]]!r}: "
            "on the CPU a seeded request that is prefilled in chunks ends vLLM's engine; leave "
            "--seed out or chunked prefill off"
        )


def _show_labels(counts: LabelCounts, place: str, as_json: bool) -> None:
    if as_json:
        console.print_json(data={"labels": counts.as_dict()})
        return
    share = 100 * counts.censored / max(1, counts.samples)
    lines = [
        f"{counts.prompts:,} prompts labelled with {counts.samples:,} samples, "
        f"{share:.1f} % of them cut off at their cap"
    ]
    if counts.failed_samples:
        lines.append(f"{counts.failed_samples:,} of their samples failed and are missing")
    if counts.failed_prompts:
        lines.append(f"{counts.failed_prompts:,} prompts without a label: see errors/")
    if counts.unfinished_prompts:
        lines.append(f"{counts.unfinished_prompts:,} prompts left out: not all samples have ended")
    lines.append(f"labels in {place}")
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def _show_interrupted(report: OutputReport, result: RunResult, as_json: bool) -> None:
    if as_json:
        console.print_json(data=report.as_dict(result))
    else:
        console.print(render(report, result))
    messages.print(
        "interrupted; the same command goes on where this run stopped, with --partial it writes "
        "the labels that there are"
    )


if __name__ == "__main__":
    only_command = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    only_command.command()(with_config(label))
    run(only_command)
