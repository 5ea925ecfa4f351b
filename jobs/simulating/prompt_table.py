"""The prompts behind simulated requests, for forecasters that read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.reading.columns import require_column
from policies.batch import Ints
from predictor.excerpt import excerpt
from predictor.prompts import Prompts

_DEFAULT_TEMPERATURE = 1.0  # vLLM's, for files that do not say


class PromptTable:
    """The prompts of one model in a Parquet file of sampled lengths, read when they are needed.

    Args:
        file: With columns `model`, `prompt`, `prompt_tokens` and perhaps `temperature`.
        model: Whose rows.
    """

    def __init__(self, file: Path, model: str) -> None:
        self._file = file
        self._model = model

    @cached_property
    def prompts(self) -> Prompts:
        """In the order of the file; their caps are not known.

        Raises:
            InputError: The file has no text of its prompts.
        """
        names = pq.read_schema(self._file).names
        require_column(str(self._file), "prompt", names)
        columns = [n for n in ("model", "prompt", "prompt_tokens", "temperature") if n in names]
        table = pq.read_table(self._file, columns=columns)
        rows = table.filter(pc.equal(table["model"].cast("string"), self._model))
        if rows["prompt"].null_count or not pa.types.is_string(rows["prompt"].type):
            raise InputError(
                f"{self._file}: prompt is of type {rows['prompt'].type} with "
                f"{rows['prompt'].null_count} nulls, must be text in every row of {self._model}"
            )
        return Prompts(
            text=[excerpt(text) for text in rows["prompt"].to_pylist()],
            model=[self._model] * len(rows),
            prompt_tokens=_column(rows, "prompt_tokens", np.int64),
            max_tokens=np.zeros(len(rows), np.int64),
            temperature=_column(rows, "temperature", np.float64),
        )


def _column(rows: pa.Table, name: str, kind: type) -> Any:
    if name not in rows.column_names:
        return np.full(len(rows), _DEFAULT_TEMPERATURE)
    return rows[name].to_numpy().astype(kind)


@dataclass(frozen=True, slots=True)
class DrawnPrompts:
    """The prompts of n requests.

    Attributes:
        table: Where they stand.
        rows: Position of each in `table.prompts`, (n,).
    """

    table: PromptTable
    rows: Ints
