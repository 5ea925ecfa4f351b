"""The columns of one Parquet file of answer lengths, checked row by row.

Every complaint names the file, the row (from 0), the value, what it must be and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policies.batch import Floats, Ints
from policies.fit import Bools
from policies.length_histogram import MAX_TOKENS
from predictor.errors import PredictorError
from predictor.excerpt import chat_excerpt, excerpt

REQUIRED = ("prompt", "prompt_tokens", "output_tokens", "model")
OPTIONAL = ("censored", "temperature", "max_tokens", "finish_reason")
DEFAULT_TEMPERATURE = 1.0
"""Taken where a row does not say, as engines do."""

_CUT = "length"  # the finish reason of an answer that a cap ended
_ERROR = "error"  # that of a row without an answer, in the ordered output of a job


class LabelsError(PredictorError):
    """Labels cannot be used as they are; the message is one line with the fix."""


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """n rows of one file with s samples in all.

    Attributes:
        text: Excerpts of the prompts, n.
        model: Who answered, n.
        prompt_tokens: Prompt lengths, (n,).
        max_tokens: Caps on the answers, 0 where not known, (n,).
        temperature: Sampling temperatures, (n,).
        samples: Sampled answers of each row, at least 1, (n,).
        output_tokens: Their lengths, row after row, (s,).
        censored: Whether a cap ended them, (s,).
    """

    text: list[str]
    model: list[str]
    prompt_tokens: Ints
    max_tokens: Ints
    temperature: Floats
    samples: Ints
    output_tokens: Ints
    censored: Bools


def read_columns(path: Path, unnamed_model: str | None = None) -> LabelColumns:
    """The rows of one Parquet file.

    Args:
        path: The file. `prompt`, `prompt_tokens`, `output_tokens` (an integer or a list of them)
            and `model` are required; `censored` (a bool, or a list as long as `output_tokens`),
            `temperature`, `max_tokens` and `finish_reason` (`length`: a cap ended the answer; rows
            with `error` have none and are skipped) are read where present.
        unnamed_model: The model of rows that name none; None: there must be no such rows.

    Raises:
        LabelsError: The file, a column or a value cannot be used.
    """
    return _Reader(path, unnamed_model).columns()


class _Reader:
    """Reads one file; holds its name for the complaints."""

    def __init__(self, path: Path, unnamed_model: str | None) -> None:
        self._path = path
        self._unnamed_model = unnamed_model
        try:
            names = pq.ParquetFile(path).schema_arrow.names
            needed = [name for name in REQUIRED if name != "model" or unnamed_model is None]
            missing = [name for name in needed if name not in names]
            if missing:
                raise LabelsError(
                    f"{path} has no column {', '.join(map(repr, missing))}, only "
                    f"{', '.join(names) or 'none'}; labels need {', '.join(REQUIRED)}"
                    + ("; name the model of all its rows if it is one" * (missing == ["model"]))
                )
            wanted = [name for name in (*REQUIRED, *OPTIONAL) if name in names]
            self._table = pq.read_table(path, columns=wanted, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise LabelsError(
                f"{path} cannot be read as Parquet ({' '.join(str(error).split())}); give a "
                "Parquet file of labels or a folder of them"
            ) from error
        self._rows = np.arange(self._table.num_rows)  # where each row is in the file
        self._skip_errors()

    def columns(self) -> LabelColumns:
        """All columns, checked."""
        samples, output_tokens = self._output_tokens()
        return LabelColumns(
            self._texts(),
            self._models(),
            self._counts("prompt_tokens", 1),
            self._counts("max_tokens", 0),
            self._temperature(),
            samples,
            output_tokens,
            self._censored(samples),
        )

    def _skip_errors(self) -> None:
        reasons = self._column("finish_reason")
        if reasons is None or pa.types.is_null(reasons.type):
            return
        reasons = self._strings("finish_reason", nullable=True)
        answered = pc.fill_null(pc.not_equal(reasons, _ERROR), True)
        self._table = self._table.filter(answered)
        self._rows = self._rows[answered.to_numpy(zero_copy_only=False)]

    def _column(self, name: str) -> Any:
        """The column as one array, dictionaries decoded; None where there is none."""
        if name not in self._table.column_names:
            return None
        array = self._table[name].combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # of no chunks
            array = pa.array([], array.type)
        return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array

    def _fail(self, row: int, what: str, fix: str = "mend or drop the row") -> NoReturn:
        raise LabelsError(f"{self._path}, row {self._rows[row]}: {what}; {fix}")

    def _fail_type(self, name: str, array: Any, expected: str) -> NoReturn:
        raise LabelsError(
            f"{self._path}: column {name!r} holds {array.type}, must be {expected}; convert it"
        )

    def _texts(self) -> list[str]:
        array = self._strings("prompt")
        cut = _logged_excerpt if "finish_reason" in self._table.column_names else excerpt
        encoded = array.dictionary_encode()
        distinct = [cut(text) for text in encoded.dictionary.to_pylist()]
        rows = encoded.indices.to_pylist()
        for code, text in enumerate(distinct):
            if not text.strip():
                self._fail(rows.index(code), "the prompt is empty, must be text")
        return [distinct[code] for code in rows]

    def _models(self) -> list[str]:
        array = self._column("model")
        if array is None or pa.types.is_null(array.type):
            names: list[str | None] = [None] * self._table.num_rows
        else:
            names = self._strings("model", nullable=True).to_pylist()
        found = [name or self._unnamed_model for name in names]
        if None in found:
            self._fail(found.index(None), "it names no model", "name the model of such rows")
        return [name for name in found if name is not None]

    def _strings(self, name: str, *, nullable: bool = False) -> Any:
        array = self._column(name)
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            self._fail_type(name, array, "text")
        if array.null_count and not nullable:
            self._fail(_first(array.is_null()), f"{name} is null, must be text")
        return array

    def _counts(self, name: str, least: int) -> Ints:
        """Token counts of at least `least`, which also stands for null where it is 0, (n,)."""
        array = self._column(name)
        if array is None:
            return np.zeros(self._table.num_rows, np.int64)
        if least == 0 and not pa.types.is_null(array.type):
            array = pc.fill_null(array, 0)
        elif least == 0:
            return np.zeros(len(array), np.int64)
        return self._integers(name, array, least, np.arange(len(array)))

    def _integers(self, name: str, array: Any, least: int, rows: Ints) -> Ints:
        """Whole numbers in `least`..`MAX_TOKENS`; `rows` says where each stands, for complaints."""
        if array.null_count:
            at = _first(array.is_null())
            self._fail(int(rows[at]), f"{name} is null, must be a whole number >= {least}")
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
            self._fail_type(name, array, "whole numbers")
        values = array.to_numpy(zero_copy_only=False)
        bad = ~((values >= least) & (values <= MAX_TOKENS) & (values == np.floor(values)))
        if bad.any():
            at = int(bad.argmax())
            self._fail(
                int(rows[at]),
                f"{name} is {values[at]}, must be a whole number in {least}..{MAX_TOKENS}",
            )
        return np.asarray(values, np.int64)

    def _temperature(self) -> Floats:
        array = self._column("temperature")
        if array is None or pa.types.is_null(array.type):
            return np.full(self._table.num_rows, DEFAULT_TEMPERATURE)
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
            self._fail_type("temperature", array, "numbers")
        filled = pc.fill_null(array.cast(pa.float64()), DEFAULT_TEMPERATURE)
        values: Floats = filled.to_numpy(zero_copy_only=False)
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            at = int(bad.argmax())
            self._fail(at, f"temperature is {values[at]}, must be finite and >= 0")
        return values

    def _output_tokens(self) -> tuple[Ints, Ints]:
        """Samples per row (n,) and their lengths (s,)."""
        array = self._column("output_tokens")
        if not _is_list(array.type):
            samples = np.ones(len(array), np.int64)
            return samples, self._integers("output_tokens", array, 1, np.arange(len(array)))
        samples = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        if (samples == 0).any():
            at = int((samples == 0).argmax())
            self._fail(at, "output_tokens holds no length, must hold at least one")
        rows = np.repeat(np.arange(len(samples)), samples)
        lengths = self._integers("output_tokens", pc.list_flatten(array), 1, rows)
        return samples.astype(np.int64), lengths

    def _censored(self, samples: Ints) -> Bools:
        """Whether a cap ended each sample, by either column that can say so, (s,)."""
        cut = np.zeros(int(samples.sum()), np.bool_)
        reasons, flags = self._column("finish_reason"), self._column("censored")
        if reasons is not None and not pa.types.is_null(reasons.type):
            ended = pc.fill_null(
                pc.equal(self._strings("finish_reason", nullable=True), _CUT), False
            )
            cut |= np.repeat(ended.to_numpy(zero_copy_only=False), samples)
        if flags is None or pa.types.is_null(flags.type):
            return cut
        if not _is_list(flags.type):
            return cut | np.repeat(self._flags(flags), samples)
        counts = pc.fill_null(pc.list_value_length(flags), 0).to_numpy(zero_copy_only=False)
        if (counts != samples).any():
            at = int((counts != samples).argmax())
            self._fail(
                at,
                f"censored holds {counts[at]} values for {samples[at]} output_tokens, must match",
            )
        return cut | self._flags(pc.list_flatten(flags))

    def _flags(self, array: Any) -> Bools:
        if not pa.types.is_boolean(array.type):
            self._fail_type("censored", array, "bool or a list of bool")
        flags: Bools = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
        return flags


def _logged_excerpt(prompt: str) -> str:
    """The excerpt of a logged prompt, which for a chat holds its messages as JSON."""
    if prompt.startswith("[{"):
        try:
            messages = json.loads(prompt)
        except (ValueError, RecursionError):
            return excerpt(prompt)
        if _is_chat(messages):
            return chat_excerpt(messages)
    return excerpt(prompt)


def _is_chat(messages: Sequence[Any]) -> bool:
    return all(isinstance(part, dict) and {"role", "content"} <= part.keys() for part in messages)


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _first(mask: Any) -> int:
    return int(mask.to_numpy(zero_copy_only=False).argmax())
