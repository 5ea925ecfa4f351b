"""Command-line options that offline jobs share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from cluster.config import ConfigError
from jobs.reading.inputs import InputFormat
from jobs.reading.sampling import SAMPLING_NAMES, SamplingError, checked_sampling

INPUT_PANEL = "Input"
SAMPLING_PANEL = "Sampling"
OUTPUT_PANEL = "Output"

InputUri = Annotated[
    str,
    typer.Option(
        "--input",
        help="File, folder, glob or URI with prompts: JSONL (plain or OpenAI batch lines), "
        "Parquet, CSV or text lines.",
        rich_help_panel=INPUT_PANEL,
    ),
]
InputFormatOption = Annotated[
    InputFormat | None,
    typer.Option("--format", help="Default: from the file names.", rich_help_panel=INPUT_PANEL),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(help="Column of prompts. Default: prompt.", rich_help_panel=INPUT_PANEL),
]
MessagesColumn = Annotated[
    str | None,
    typer.Option(help="Column of chats. Default: messages.", rich_help_panel=INPUT_PANEL),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of row ids. Default: id, row_id or custom_id if there; '' numbers rows.",
        rich_help_panel=INPUT_PANEL,
    ),
]
SamplingColumns = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Columns read as sampling parameters, separated by commas; '' reads none. Default: "
        "every column with the name of one.",
        rich_help_panel=INPUT_PANEL,
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        help="Of CSV, one character. Default: a comma; a tab for .tsv.",
        rich_help_panel=INPUT_PANEL,
    ),
]
ChatTemplate = Annotated[
    bool,
    typer.Option(
        help="Put each prompt to the model as a user's chat message.",
        rich_help_panel=INPUT_PANEL,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="0 decodes greedily. Default: vLLM's, 1.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
SamplingPairs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Any other sampling parameter, e.g. min_p=0.1; may be repeated.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Window = Annotated[
    int,
    typer.Option(
        min=1,
        help="Rows in flight at once, from which the policy chooses.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Delete what an earlier job left in the output folder.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
RetryErrors = Annotated[
    bool,
    typer.Option(
        "--retry-errors",
        help="Run the rows again that ended in errors.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
FlushSeconds = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Seconds of finished work that a kill of this process can cost.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ReportJson = Annotated[
    bool,
    typer.Option("--json", help="Print the report as JSON.", rich_help_panel=OUTPUT_PANEL),
]


def column_names(text: str | None) -> list[str] | None:
    """The names in `text`, which commas separate; None: not given."""
    return None if text is None else [name for name in map(str.strip, text.split(",")) if name]


def sampling_options(pairs: list[str] | None, **given: Any) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams` from `NAME=VALUE` words and named options.

    Args:
        pairs: The words of `--sampling`.
        **given: Options of their own, which stand over the words; None: not given.

    Raises:
        ConfigError: A name is unknown or a value out of range.
    """
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, separator, text = pair.partition("=")
        if not separator or name not in SAMPLING_NAMES:
            known = ", ".join(sorted(SAMPLING_NAMES))
            raise ConfigError(f"--sampling {pair!r} is not NAME=VALUE with a name among: {known}")
        values[name] = yaml.safe_load(text)
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return checked_sampling(values)
    except SamplingError as error:
        raise ConfigError(f"--sampling: {error}") from None
