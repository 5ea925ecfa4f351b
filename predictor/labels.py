"""Prompts with sampled lengths of their answers: what a network is trained and judged on."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.batch import Floats, Ints
from policies.fit import Bools
from predictor.label_columns import LabelColumns, LabelsError, read_columns
from predictor.prompts import Prompts
from predictor.splits import Split, split_of

__all__ = ["MAX_SAMPLES", "Labels", "LabelsError", "read_labels", "require_models"]

MAX_SAMPLES = 256
"""Samples kept per prompt, the last ones read: in a log one prompt may come back without end."""

_PARQUET = "*.parquet"


@dataclass(frozen=True, slots=True)
class Labels:
    """n prompts, each put to one model under one setting, with up to k sampled lengths.

    Attributes:
        prompts: The prompts.
        output_tokens: Lengths of the samples in tokens, 0 = padding, (n, k).
        censored: Whether a cap ended the sample, (n, k).
    """

    prompts: Prompts
    output_tokens: Ints
    censored: Bools

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def present(self) -> Bools:
        """Where there is a sample, (n, k)."""
        return self.output_tokens > 0

    @property
    def weights(self) -> Floats:
        """Weight of each sample: those of a prompt share 1, padding has 0, (n, k)."""
        present = self.present
        weights: Floats = present / present.sum(axis=1, keepdims=True)
        return weights

    @property
    def models(self) -> list[str]:
        """Who answered, each once, in order."""
        return sorted(set(self.prompts.model))

    def take(self, rows: Sequence[int] | Ints) -> Labels:
        """The labels at these positions."""
        return Labels(self.prompts.take(rows), self.output_tokens[rows], self.censored[rows])

    def of_models(self, models: Sequence[str]) -> Labels:
        """The rows of these models.

        Raises:
            LabelsError: One of them has no row.
        """
        require_models(models, self.models)
        wanted = set(models)
        return self.take(np.flatnonzero([name in wanted for name in self.prompts.model]))

    def split(self) -> dict[Split, Ints]:
        """Rows of each side. A text is on one side whoever answers it, so none leaks."""
        side_of = {text: split_of(text) for text in set(self.prompts.text)}
        sides = np.array([side_of[text] for text in self.prompts.text], np.str_)
        return {split: np.flatnonzero(sides == split.value) for split in Split}

    def fingerprint(self) -> str:
        """32 hexadecimal digits that tell contents apart, whatever file they came from."""
        digest = hashlib.blake2b(digest_size=16)
        for texts in (self.prompts.text, self.prompts.model):
            for text in texts:
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "big") + data)
        numbers = (self.prompts.prompt_tokens, self.prompts.max_tokens, self.output_tokens)
        for array in (*numbers, self.prompts.temperature, self.censored):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_labels(
    paths: Sequence[Path | str],
    *,
    cap_tokens: int | None = None,
    models: Sequence[str] | None = None,
    unnamed_model: str | None = None,
) -> Labels:
    """Read Parquet files of answer lengths (`predictor.label_columns` names the columns).

    Texts are cut as in serving (`predictor.excerpt`). Rows that agree in all but their samples
    become one row with the samples of all.

    Args:
        paths: Files, and folders of `*.parquet` (or with them in `parts/`, as jobs write them).
        cap_tokens: Samples at least this long count as cut there; None: none do.
        models: Keep the rows of these models only; None: all.
        unnamed_model: The model of rows that name none.

    Raises:
        LabelsError: Something cannot be used, no row is left, or every sample is cut.
    """
    if cap_tokens is not None and cap_tokens < 1:
        raise LabelsError(f"cap_tokens is {cap_tokens}, must be >= 1")
    files = [file for path in paths for file in _files(Path(path))]
    labels = _merged([read_columns(file, unnamed_model) for file in files])
    where = ", ".join(map(str, paths))
    if not len(labels):
        raise LabelsError(f"{where}: no rows; labels need at least one prompt with a length")
    if cap_tokens is not None:
        cut = labels.censored | (labels.output_tokens >= cap_tokens)
        labels = Labels(labels.prompts, np.minimum(labels.output_tokens, cap_tokens), cut)
    if models is not None:
        labels = labels.of_models(models)
    if labels.censored[labels.present].all():
        raise LabelsError(
            f"{where}: a cap ended all {int(labels.present.sum()):,} answers, so nothing is known "
            "of how long answers are; sample again with a larger max_tokens"
        )
    return labels


def require_models(asked: Sequence[str], known: Sequence[str]) -> None:
    """Check names of models, and suggest what may have been meant.

    Raises:
        LabelsError: One of `asked` is not in `known`.
    """
    for name in asked:
        if name not in known:
            raise LabelsError(
                f"no rows of model {name!r}; {_suggestion(name, known)} "
                f"({len(known)} models: {', '.join(known)})"
            )


def _suggestion(name: str, known: Sequence[str]) -> str:
    """By the name without its owner too: `llama-3.1-8b` is nearest to `meta-llama/Llama-3.1-8B`."""

    def likeness(candidate: str) -> float:
        pairs = ((name, candidate), (name.rpartition("/")[2], candidate.rpartition("/")[2]))
        return max(difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

    return f"did you mean {max(known, key=likeness)!r}?" if known else "there are no models"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise LabelsError(f"{path} does not exist; give a Parquet file or a folder of them")
        return [path]
    found = sorted(path.glob(_PARQUET)) or sorted((path / "parts").glob(_PARQUET))
    if not found:
        raise LabelsError(f"{path} holds no {_PARQUET}, nor does its parts/; give a Parquet file")
    return found


def _merged(parts: Sequence[LabelColumns]) -> Labels:
    """All rows, those with equal prompt, model and settings as one, in order of appearance."""
    text = [value for part in parts for value in part.text]
    model = [value for part in parts for value in part.model]
    prompt_tokens = np.concatenate([part.prompt_tokens for part in parts])
    max_tokens = np.concatenate([part.max_tokens for part in parts])
    temperature = np.concatenate([part.temperature for part in parts])
    keys = (_codes(text), _codes(model), prompt_tokens, max_tokens, temperature)
    first, group = _groups(np.stack(keys, axis=1).astype(np.float64))
    prompts = Prompts(text, model, prompt_tokens, max_tokens, temperature).take(first)
    row_of_sample = np.repeat(group, np.concatenate([part.samples for part in parts]))
    output_tokens = np.concatenate([part.output_tokens for part in parts])
    censored = np.concatenate([part.censored for part in parts])
    return Labels(prompts, *_padded(row_of_sample, len(first), output_tokens, censored))


def _codes(values: Sequence[str]) -> Ints:
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values], np.int64)


def _groups(keys: Floats) -> tuple[Ints, Ints]:
    """First row of each group of equal rows, and the group of each row, groups as they appear."""
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[group.reshape(-1)]


def _padded(row: Ints, rows: int, output_tokens: Ints, censored: Bools) -> tuple[Ints, Bools]:
    """Samples as a matrix of `rows` rows, the last `MAX_SAMPLES` of each."""
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    place -= np.maximum(np.repeat(counts, counts) - MAX_SAMPLES, 0)
    kept = place >= 0
    shape = rows, min(int(counts.max(initial=0)), MAX_SAMPLES)
    lengths, cut = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    at = row[order][kept], place[kept]
    lengths[at], cut[at] = output_tokens[order][kept], censored[order][kept]
    return lengths, cut
