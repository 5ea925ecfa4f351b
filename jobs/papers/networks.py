"""CASTILLO as labels, and the networks that the studies train on them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jobs.papers.castillo import data_folder
from jobs.papers.study import Cell
from jobs.simulating.castillo import RUN_CAP_TOKENS
from predictor.labels import Labels, read_labels
from predictor.training_settings import Loss, TrainingSettings

NETWORKS = Path("out/papers/networks")
"""Where the trained networks stay."""

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
MODELS = (LLAMA_8B, "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen2.5-7B-Instruct-1M")
"""Models whose withheld prompts are scored."""


def short_name(model: str) -> str:
    """A model's name without its maker and what all have in common."""
    return model.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-Instruct-1M")


@lru_cache(maxsize=4)
def labels_of(files: str, models: tuple[str, ...] = ()) -> Labels:
    """Labels of the data set.

    Args:
        files: Its files without their ending, joined by "+".
        models: Only their answers; empty: of all.
    """
    folder = data_folder()
    assert folder is not None, "a study without its data has no cells"
    paths = [folder / f"{name}.parquet" for name in files.split("+")]
    return read_labels(paths, cap_tokens=RUN_CAP_TOKENS, models=models or None)


def trained(cell: Cell) -> Path:
    """Folder of a network, trained now if it is not there; a training that was stopped goes on.

    Args:
        cell: Has its `name`, `models` (None: all), `leave_out`, `loss` and `seed`; may have the
            `files` it learns from and its `model_width`.
    """
    from predictor.training import train

    folder: Path = NETWORKS / cell["name"].replace(" ", "-").replace(",", "")
    if not (folder / "config.json").is_file():
        settings = TrainingSettings(
            loss=Loss(cell["loss"]),
            leave_out=tuple(cell["leave_out"]),
            model_width=cell.get("model_width", TrainingSettings().model_width),
            cap_tokens=RUN_CAP_TOKENS,
            seed=cell["seed"],
        )
        files = cell.get("files", "train")
        labels = labels_of(files, tuple(cell["models"] or ()))
        sources = [f"{name}.parquet" for name in files.split("+")]
        train(labels, folder, settings, sources=sources, features=NETWORKS / "features")
    return folder
