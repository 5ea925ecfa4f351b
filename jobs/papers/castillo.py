"""CASTILLO: ten sampled answer lengths per prompt and model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jobs.simulating.castillo import castillo_folder
from policies.batch import Ints

SAMPLES = 10
"""Samples per prompt and model."""

_FILES = ("train.parquet", "validate.parquet")


def data_folder() -> Path | None:
    """Where the data set lies; None when a part of it is not there."""
    folder = castillo_folder()
    return folder if all((folder / name).exists() for name in _FILES) else None


def model_names() -> list[str]:
    """Models of the data set, sorted; none when it is not there."""
    folder = data_folder()
    if folder is None:
        return []
    names: set[str] = set()
    for name in _FILES:
        names.update(pq.read_table(folder / name, columns=["model"])["model"].to_pylist())
    return sorted(names)


def read_lengths(model: str | None = None) -> tuple[Ints, Ints]:
    """Both parts of the data set together.

    Args:
        model: Only the answers of this model.

    Returns:
        Sampled output lengths in tokens, (n, 10), and prompt lengths, (n,).

    Raises:
        FileNotFoundError: The data set is not there.
        ValueError: The model is not in it.
    """
    folder = data_folder()
    if folder is None:
        raise FileNotFoundError("CASTILLO was not found; set TIEBREAK_DATA to the folder above it")
    outputs, prompts = [], []
    for name in _FILES:
        rows = pq.read_table(
            folder / name,
            columns=["output_tokens", "prompt_tokens"],
            filters=None if model is None else [("model", "=", model)],
        )
        flat = rows["output_tokens"].combine_chunks().flatten()
        outputs.append(flat.to_numpy().reshape(-1, SAMPLES).astype(np.int64))
        prompts.append(rows["prompt_tokens"].to_numpy().astype(np.int64))
    lengths = np.concatenate(outputs)
    if not len(lengths):
        raise ValueError(f"CASTILLO has no answers of the model {model!r}")
    return lengths, np.concatenate(prompts)
