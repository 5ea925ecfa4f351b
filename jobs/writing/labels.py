"""The labels of a sampled job: one row per prompt with the lengths of its sampled answers.

The lengths come from the job's parts in the order of the input, the prompts and their settings from
the input itself, read beside them: nothing is held but a few rows of either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.reading.rows import BadRow, JobRow
from jobs.reading.sampled import SampledInput, prompt_text
from jobs.writing.ordered import ORDERED_SCHEMA, SORT_BYTES, ordered_tables
from jobs.writing.results import to_table
from jobs.writing.storage import Storage

LABELS = "labels.parquet"
PARTIAL_LABELS = "labels-partial.parquet"
"""Labels of an unfinished job; deleted when the job goes on."""

LABEL_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("censored", pa.list_(pa.bool_()), nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("top_p", pa.float64(), nullable=False),
        pa.field("top_k", pa.int32(), nullable=False),
        pa.field("max_tokens", pa.int32(), nullable=False),
    ]
)
"""Columns of `labels.parquet`, which `predictor.labels.read_labels` reads."""

METADATA_KEY = b"tiebreak.labels"
"""Key of the file's metadata that holds, as JSON, how the labels were made."""

_NEEDED = pa.schema(
    [
        ORDERED_SCHEMA.field(name)
        for name in ("row_index", "finish_reason", "prompt_tokens", "output_tokens")
    ]
)
_ROWS_AT_ONCE = 1024
_CHARACTERS_AT_ONCE = 4 * 1024 * 1024


class LabelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A labelled prompt.

    Attributes:
        prompt_id: Its id in the input.
        prompt: Its text; of a chat the texts of the messages, one after another.
        model: Who answered.
        prompt_tokens: Its length with the chat template.
        output_tokens: Lengths of the sampled answers.
        censored: Whether each of them was cut off at its cap.
        temperature: Of the sampling.
        top_p: Of the sampling.
        top_k: Of the sampling; 0 is all tokens.
        max_tokens: The cap.
    """

    prompt_id: str
    prompt: str
    model: str
    prompt_tokens: int
    output_tokens: list[int]
    censored: list[bool]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


@dataclass(slots=True)
class LabelCounts:
    """What a labels file holds and what it leaves out.

    Attributes:
        prompts: Labelled prompts.
        samples: Their samples.
        censored: Samples that were cut off at their cap.
        failed_samples: Samples of labelled prompts that ended in errors and are missing.
        failed_prompts: Prompts without a label because every sample ended in an error.
        unfinished_prompts: Prompts without a label because not every sample has ended.
    """

    prompts: int = 0
    samples: int = 0
    censored: int = 0
    failed_samples: int = 0
    failed_prompts: int = 0
    unfinished_prompts: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class _Ended:
    """The samples of a prompt that have ended.

    Attributes:
        rows: How many, errors included.
        prompt_tokens: Length of the prompt.
        output_tokens: Lengths of the answers, in the order of the samples.
        censored: Whether each of them was cut off.
    """

    rows: int
    prompt_tokens: int
    output_tokens: list[int]
    censored: list[bool]


def write_labels(
    storage: Storage,
    source: SampledInput,
    name: str,
    *,
    model: str,
    how: Mapping[str, Any],
    sort_bytes: int = SORT_BYTES,
) -> LabelCounts:
    """Write one row for each prompt that has a result and of which every sample has ended.

    A prompt some of whose samples still run is left out even though others have ended: those that
    ended first are the short ones.

    Args:
        storage: The job's folder.
        source: The job's input.
        name: The file's name in the folder.
        model: Who answered.
        how: What the file's metadata says of how the labels were made, JSON-ready.
        sort_bytes: Lengths that are sorted in memory at once.

    Raises:
        InputError: The input cannot be read on.
        OutputError: The parts cannot be read, hold a row twice, or the file cannot be written.
    """
    metadata = {METADATA_KEY: json.dumps(how, sort_keys=True)}
    schema = LABEL_SCHEMA.with_metadata(metadata)
    counts = LabelCounts()

    def produce(out: IO[bytes]) -> None:
        nonlocal counts
        counts = LabelCounts()
        ended = _ended_samples(ordered_tables(storage, sort_bytes, _NEEDED), source.samples)
        with pq.ParquetWriter(out, schema, compression="zstd") as writer:
            for rows in _batches(_labels(source, ended, model, counts)):
                writer.write_table(to_table(rows, schema))

    storage.write(name, produce)
    return counts


def _labels(
    source: SampledInput, ended: Iterator[tuple[int, _Ended]], model: str, counts: LabelCounts
) -> Iterator[LabelRow]:
    """A label for each prompt that can have one; the others are counted."""
    ordinal, samples = next(ended, (-1, None))
    for prompt in source.prompts():
        mine = None
        if ordinal == prompt.row_index:
            mine = samples
            ordinal, samples = next(ended, (-1, None))
        if mine is None or mine.rows < source.samples_of(prompt):
            counts.unfinished_prompts += 1
        elif isinstance(prompt, BadRow) or not mine.output_tokens:
            counts.failed_prompts += 1
        else:
            counts.prompts += 1
            counts.samples += len(mine.output_tokens)
            counts.censored += sum(mine.censored)
            counts.failed_samples += mine.rows - len(mine.output_tokens)
            yield _label(source, prompt, mine, model)


def _label(source: SampledInput, prompt: JobRow, ended: _Ended, model: str) -> LabelRow:
    settings = source.settings(prompt)
    return LabelRow(
        prompt_id=prompt.row_id,
        prompt=prompt_text(prompt),
        model=model,
        prompt_tokens=ended.prompt_tokens,
        output_tokens=ended.output_tokens,
        censored=ended.censored,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
    )


def _ended_samples(tables: Iterable[Any], samples: int) -> Iterator[tuple[int, _Ended]]:
    """Ordinals of prompts, ascending, with what has ended of each."""
    rest: list[Any] = []
    for table in tables:
        joined = pa.concat_tables([*rest, table])
        starts = _starts(joined, samples)
        # The last prompt's samples may go on in the next table.
        yield from _grouped(joined.slice(0, starts[-1]), samples)
        rest = [joined.slice(starts[-1])]
    for table in rest:
        yield from _grouped(table, samples)


def _starts(table: Any, samples: int) -> list[int]:
    """Where the rows of each prompt begin."""
    ordinals = table.column("row_index").to_numpy() // samples
    starts: list[int] = np.flatnonzero(np.diff(ordinals, prepend=-1)).tolist()
    return starts


def _grouped(table: Any, samples: int) -> Iterator[tuple[int, _Ended]]:
    if not table.num_rows:
        return
    reason = table.column("finish_reason")
    cut = pc.equal(reason, "length").to_numpy()
    # Neither an error nor an answer broken off by the engine says where it would have ended.
    is_label = cut | pc.equal(reason, "stop").to_numpy()
    indices = table.column("row_index").to_numpy()
    prompt_tokens = pc.fill_null(table.column("prompt_tokens"), 0).to_numpy()
    output_tokens = pc.fill_null(table.column("output_tokens"), 0).to_numpy()
    starts = _starts(table, samples)
    for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True):
        kept = start + np.flatnonzero(is_label[start:end])
        yield (
            int(indices[start]) // samples,
            _Ended(
                rows=end - start,
                prompt_tokens=int(prompt_tokens[start:end].max()),
                output_tokens=output_tokens[kept].tolist(),
                censored=cut[kept].tolist(),
            ),
        )


def _batches(labels: Iterable[LabelRow]) -> Iterator[list[LabelRow]]:
    """Labels in lists that take little memory."""
    batch: list[LabelRow] = []
    characters = 0
    for label in labels:
        batch.append(label)
        characters += len(label.prompt)
        if len(batch) >= _ROWS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
