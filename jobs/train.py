"""`tiebreak train`: heads that forecast answer lengths, from sampled or logged lengths."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jobs.errors import OutputError
from predictor.labels import read_labels
from predictor.training_settings import Loss, Schedule, TrainingSettings
from predictor.training_watch import Epoch, TrainingWatch

if TYPE_CHECKING:
    from predictor.training import Trained

DEFAULTS = TrainingSettings()
REPORT_EVERY_S = 5.0
"""Time between lines where there is no terminal for a progress bar."""

console = Console()
messages = Console(stderr=True)


def train_command(
    data: Annotated[
        list[Path],
        typer.Option(help="Parquet file of lengths, or a folder of them; repeat for several."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the network; run again to resume.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Keep the rows of this model; repeat for several.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Train without this model and score the transfer to it."),
    ] = None,
    unnamed_model: Annotated[
        str | None, typer.Option(help="The model of rows that name none.")
    ] = None,
    loss: Annotated[
        Loss,
        typer.Option(
            help="mse: of fitted labels; regression, nll: of the lengths themselves; auto: "
            "mse if most prompts have several."
        ),
    ] = DEFAULTS.loss,
    oversample: Annotated[
        bool, typer.Option(help="Count long and uncertain answers up to twice.")
    ] = DEFAULTS.oversample,
    epochs: Annotated[int, typer.Option(help="Most passes over the data.")] = DEFAULTS.epochs,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation likelihood that end it.")
    ] = DEFAULTS.patience,
    batch_size: Annotated[int, typer.Option(help="Prompts per step.")] = DEFAULTS.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of the heads.")] = DEFAULTS.learning_rate,
    encoder_learning_rate: Annotated[
        float, typer.Option(help="Of tuned encoder layers.")
    ] = DEFAULTS.encoder_learning_rate,
    schedule: Annotated[Schedule, typer.Option(help="Of both rates.")] = DEFAULTS.schedule,
    members: Annotated[
        int, typer.Option(help="Independent heads whose forecasts are averaged.")
    ] = DEFAULTS.members,
    components: Annotated[
        int,
        typer.Option(min=0, help="Principal components of the text that heads read; 0: all of it."),
    ] = DEFAULTS.components,
    model_width: Annotated[
        int,
        typer.Option(
            min=0,
            help="Width of what models differ in beside an offset; 8 where all answer all kinds "
            "of prompts.",
        ),
    ] = DEFAULTS.model_width,
    encoder: Annotated[
        str, typer.Option(help="The default, a folder, or a name on the model hub.")
    ] = DEFAULTS.encoder,
    tune_layers: Annotated[
        int, typer.Option(help="Last layers of the encoder to train too; 0 keeps it frozen.")
    ] = DEFAULTS.tune_layers,
    half: Annotated[
        bool, typer.Option("--half", help="Save weights in half precision.")
    ] = DEFAULTS.half,
    cap_tokens: Annotated[
        int | None, typer.Option(min=1, help="Lengths from here on count as cut there.")
    ] = None,
    coverage: Annotated[
        float, typer.Option(help="Of the interval in the scores, in (0, 1).")
    ] = DEFAULTS.coverage,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = DEFAULTS.seed,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; by default all cores.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the encoder's features for other trainings."),
    ] = None,
) -> None:
    """Train heads on an encoder, calibrate them, and score them on prompts held out for that.

    A run that was interrupted goes on where it was when the same command is given again, and comes
    to the same network.
    """
    import torch

    from predictor.training import train

    settings = TrainingSettings(
        loss=loss,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        encoder_learning_rate=encoder_learning_rate,
        schedule=schedule,
        members=members,
        components=components,
        model_width=model_width,
        oversample=oversample,
        tune_layers=tune_layers,
        encoder=encoder,
        half=half,
        coverage=coverage,
        cap_tokens=cap_tokens,
        leave_out=tuple(leave_out or ()),
        seed=seed,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    labels = read_labels(
        data, cap_tokens=cap_tokens, models=model or None, unnamed_model=unnamed_model
    )
    try:
        with _watch() as watch:
            trained = train(
                labels,
                out,
                settings,
                sources=[path.name for path in data],
                device=device,
                features=features,
                watch=watch,
            )
    except OSError as error:
        raise OutputError(f"{out}: {error}; make room or name another --out") from error
    _print(trained)


def _print(trained: Trained) -> None:
    scores = trained.card.scores
    console.print(
        f"wrote {trained.folder}: on {scores.prompts:,} test prompts R2 {scores.r2_mu:.3f} (mu) "
        f"{scores.r2_sigma:.3f} (sigma), Kendall tau {scores.kendall_tau:.3f}, negative "
        f"log-likelihood {scores.nll:.3f} against the prior's {scores.nll_prior:.3f}, coverage "
        f"{scores.coverage:.3f} at a mean width of {scores.interval_width:,.0f} tokens against "
        f"{scores.interval_width_prior:,.0f}; its README.md tells more",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _watch() -> Iterator[TrainingWatch]:
    """A progress bar on a terminal, else a line every few seconds."""
    if not messages.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=messages) as progress:
        yield _Bar(progress)


class _Bar(TrainingWatch):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("reading")

    def stage(self, name: str, total: int) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total or None)

    def advance(self, steps: int) -> None:
        self._progress.advance(self._task, steps)

    def epoch(self, epoch: Epoch) -> None:
        self._progress.update(self._task, description=f"training: {_line(epoch)}")


class _Lines(TrainingWatch):
    def __init__(self) -> None:
        self._name, self._done, self._total = "", 0, 0
        self._told_s = 0.0

    def stage(self, name: str, total: int) -> None:
        self._name, self._done, self._total = name, 0, total
        self._tell(name)

    def advance(self, steps: int) -> None:
        self._done += steps
        if time.monotonic() - self._told_s >= REPORT_EVERY_S:
            self._tell(f"{self._name}: {self._done:,} of {self._total:,}")

    def epoch(self, epoch: Epoch) -> None:
        self._tell(_line(epoch))

    def _tell(self, line: str) -> None:
        self._told_s = time.monotonic()
        messages.print(line, highlight=False, markup=False, soft_wrap=True)


def _line(epoch: Epoch) -> str:
    best = ", the best" if epoch.best else ""
    return f"epoch {epoch.number}, loss {epoch.loss:.4f}, validation {epoch.nll:.4f}{best}"
