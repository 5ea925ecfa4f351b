"""`tiebreak fit-labels`: the log-t of each prompt, and how far such labels can be trusted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from jobs.errors import OutputError
from predictor.atomic_file import replace_file
from predictor.label_fit import LabelFit, compare_scipy, fit_labels, split_half
from predictor.labels import Labels, read_labels

console = Console()
messages = Console(stderr=True)


def fit_labels_command(
    files: Annotated[
        list[Path], typer.Argument(help="Parquet files of sampled lengths, or folders of them.")
    ],
    output: Annotated[
        Path | None, typer.Option("--out", help="Parquet file to write: the fit of each prompt.")
    ] = None,
    report_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    compare: Annotated[
        int,
        typer.Option(
            "--compare-scipy",
            min=0,
            help="Fit this many prompts one at a time with scipy.optimize too, and print the "
            "ratio of the times and the largest difference; 0: do not.",
        ),
    ] = 0,
    model: Annotated[
        list[str] | None, typer.Option(help="Keep the rows of this model; repeat for several.")
    ] = None,
    unnamed_model: Annotated[
        str | None, typer.Option(help="The model of rows that name none.")
    ] = None,
    cap_tokens: Annotated[
        int | None, typer.Option(min=1, help="Lengths from here on count as cut there.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the halves of the samples, and of scipy's prompts.")
    ] = 0,
) -> None:
    """Fit mu and sigma to each prompt's sampled lengths, and report how reliable they are."""
    labels = read_labels(
        files, cap_tokens=cap_tokens, models=model or None, unnamed_model=unnamed_model
    )
    started_s = time.perf_counter()
    fitted = fit_labels(labels)
    elapsed_s = time.perf_counter() - started_s
    report = _report(labels, fitted, elapsed_s, seed)
    if compare:
        compared = compare_scipy(labels, compare, seed)
        report["scipy"] = {
            "prompts": compared.prompts,
            "seconds_per_prompt": compared.scipy_s,
            "fit_seconds_per_prompt": compared.fit_s,
            "ratio": compared.ratio,
            "largest_mu_difference": compared.mu_difference,
            "largest_sigma_difference": compared.sigma_difference,
            "fit_found_better": compared.fit_better,
            "scipy_found_better": compared.scipy_better,
        }
    if output is not None:
        write_fits(output, labels, fitted)
        messages.print(f"wrote {output}", highlight=False, markup=False)
    if report_json:
        console.print_json(data=report)
    else:
        console.print(_table(report))


def write_fits(path: Path, labels: Labels, fitted: LabelFit) -> None:
    """One row per prompt: the prompt's excerpt, model, settings, fit and numbers of samples.

    Raises:
        OutputError: The file cannot be written.
    """
    prompts = labels.prompts
    table = pa.table(
        {
            "prompt": list(prompts.text),
            "model": list(prompts.model),
            "prompt_tokens": prompts.prompt_tokens,
            "temperature": prompts.temperature,
            "max_tokens": prompts.max_tokens,
            "mu": fitted.mu,
            "sigma": fitted.sigma,
            "samples": fitted.samples,
            "censored_samples": fitted.cut,
            "collapsed": fitted.collapsed,
        }
    )
    try:
        replace_file(path, lambda stream: pq.write_table(table, stream))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}; name another --out") from error


def _report(labels: Labels, fitted: LabelFit, elapsed_s: float, seed: int) -> dict[str, Any]:
    reliability = split_half(labels, seed)
    return {
        "prompts": len(labels),
        "samples": int(fitted.samples.sum()),
        "censored_samples": int(fitted.cut.sum()),
        "single_sample_prompts": int((fitted.samples == 1).sum()),
        "tied_prompts": int(fitted.tied.sum()),
        "collapsed_prompts": int(fitted.collapsed.sum()),
        "mu_median": float(np.median(fitted.mu)),
        "sigma_median": float(np.median(fitted.sigma)),
        "fit_seconds": elapsed_s,
        "split_half": {
            "prompts": reliability.prompts,
            "mu": _finite(reliability.mu),
            "sigma": _finite(reliability.sigma),
        },
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _table(report: dict[str, Any]) -> Table:
    halves = report["split_half"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    rows: list[tuple[str, str, str]] = [
        ("prompts", f"{report['prompts']:,}", f"fitted in {report['fit_seconds']:.2f} s"),
        ("samples", f"{report['samples']:,}", ""),
        ("  ended by a cap", f"{report['censored_samples']:,}", "entered as censored"),
        ("prompts with one sample", f"{report['single_sample_prompts']:,}", "sigma is not known"),
        ("prompts with equal samples", f"{report['tied_prompts']:,}", ""),
        (
            "prompts with collapsed sigma",
            f"{report['collapsed_prompts']:,}",
            "held at the least sigma, or that of the standard deviation",
        ),
        ("median mu", f"{report['mu_median']:.3f}", ""),
        ("median sigma", f"{report['sigma_median']:.3f}", ""),
        (
            "split-half reliability of mu",
            _shown(halves["mu"]),
            f"of {halves['prompts']:,} prompts, stepped up by Spearman and Brown",
        ),
        ("split-half reliability of sigma", _shown(halves["sigma"]), ""),
    ]
    if "scipy" in report:
        scipy = report["scipy"]
        rows += [
            (
                "scipy.optimize, one at a time",
                f"{scipy['ratio']:,.0f} x",
                f"the time per prompt: {scipy['seconds_per_prompt'] * 1e3:.3g} ms on "
                f"{scipy['prompts']:,} prompts against {scipy['fit_seconds_per_prompt'] * 1e3:.3g}"
                " ms on all",
            ),
            ("  largest difference of mu", f"{scipy['largest_mu_difference']:.2g}", ""),
            (
                "  largest difference of sigma",
                f"{scipy['largest_sigma_difference']:.2g}",
                f"the higher likelihood is the fit's on {scipy['fit_found_better']} prompts, "
                f"scipy's on {scipy['scipy_found_better']}",
            ),
        ]
    for row in rows:
        table.add_row(*row)
    return table


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
