"""`tiebreak evaluate`: what a trained network is worth on prompts whose lengths are known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from predictor.labels import Labels, LabelsError, read_labels
from predictor.splits import Split

console = Console()
messages = Console(stderr=True)


def evaluate_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the network, from `tiebreak train`.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Parquet file of sampled lengths, or a folder; repeat for several."),
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="Keep the rows of this model; repeat for several.")
    ] = None,
    unnamed_model: Annotated[
        str | None, typer.Option(help="The model of rows that name none.")
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(
            help="Keep the prompts of one side only; of a file that was trained on, test."
        ),
    ] = None,
    cap_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Lengths from here on count as cut there; by default as in training."
        ),
    ] = None,
    coverage: Annotated[float, typer.Option(help="Of the intervals, in (0, 1).")] = 0.9,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    report_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a network, asked as in serving, and the prior of its training labels beside it."""
    # Imported when it is needed: torch takes seconds that no other command should wait for.
    from predictor.evaluation import evaluate, learnt_from, trained_cap
    from predictor.scores import Scores

    cap_tokens = trained_cap(folder) if cap_tokens is None else cap_tokens
    labels = read_labels(
        data, cap_tokens=cap_tokens, models=model or None, unnamed_model=unnamed_model
    )
    if split is not None:
        labels = _side(labels, split)
    learnt = learnt_from(folder, labels)
    with messages.status(f"forecasting {len(labels):,} prompts"):
        scores: Scores = evaluate(
            folder,
            labels,
            coverage=coverage,
            cap_tokens=cap_tokens,
            device=device,
            threads=threads,
        )
    if learnt:
        messages.print(
            f"[yellow]note:[/] the network was trained on {learnt:,} of these {len(labels):,} "
            "prompts: the scores flatter it; keep others with --split test",
            highlight=False,
        )
    if report_json:
        console.print_json(msgspec.json.encode(scores).decode())
    else:
        console.print(_table(msgspec.structs.asdict(scores), coverage))


def _side(labels: Labels, split: Split) -> Labels:
    rows = labels.split()[split]
    if not len(rows):
        raise LabelsError(
            f"none of {len(labels):,} prompts falls on the {split.value} side; give more, or leave "
            "--split out"
        )
    return labels.take(np.asarray(rows))


def _table(scores: dict[str, float], coverage: float) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("score", "value", "meaning"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for name, form, meaning in (
        ("prompts", ",.0f", "a prompt put to several models counts for each"),
        ("r2_mu", ".3f", "against the fit of each prompt's samples"),
        ("r2_sigma", ".3f", "the network's own sigma, before calibration"),
        ("kendall_tau", ".3f", "E[min(X, cap)] against a sample's lengths, mean over the samples"),
        ("nll", ".3f", "nats per answer"),
        ("nll_prior", ".3f", "by model and prompt length alone"),
        ("coverage", ".3f", f"of the {coverage:.0%} interval"),
        ("coverage_due", ".3f", "what it should be, ends at a cap counted"),
        ("interval_width", ",.0f", "tokens"),
        ("interval_width_prior", ",.0f", "tokens"),
    ):
        table.add_row(name, format(scores[name], form), meaning)
    return table
