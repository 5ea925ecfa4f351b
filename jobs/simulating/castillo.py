"""Sampled answer lengths, CASTILLO's or one's own labels, as the lengths of simulated requests."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import InputError, one_line
from jobs.reading.columns import require_column
from jobs.simulating.lengths import DrawnLengths, LengthSource, ReadTrace
from jobs.simulating.prompt_table import DrawnPrompts, PromptTable
from policies.batch import Floats, Ints
from policies.fit import fit

RUN_CAP_TOKENS = 15_001
"""Output tokens at which CASTILLO's runs were stopped: an answer of this length was cut, and it is
only known that it would have been at least so long."""

DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"

_COLUMNS = ("model", "prompt_tokens", "output_tokens")
_CAP_COLUMN = "max_tokens"
_DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def castillo_folder() -> Path:
    """Where CASTILLO is looked for: `castillo` in `$TIEBREAK_DATA`."""
    return Path(os.environ.get("TIEBREAK_DATA") or _DEFAULT_DATA) / "castillo"


@dataclass(frozen=True, slots=True)
class CastilloLengths:
    """Prompts that a model answered k times: a request draws a prompt and one of its answers.

    In CASTILLO k is 10; a file that `tiebreak label` wrote will do too. The other answers are what
    an oracle knows of the request's distribution: its mu and sigma are their maximum-likelihood
    log-t (`policies.fit`), so that no request's own length is in its forecast. Fitted to so few
    answers, sigma is somewhat small: of CASTILLO, the central 90 % interval holds 85 to 89 % of the
    left-out lengths, depending on the model.

    Answers that reached the cap of their run (`max_tokens` in the file, else `RUN_CAP_TOKENS`)
    enter the fit as right-censored. As true lengths they are
    exact under every `max_tokens` up to that cap, and a larger one is refused. Rows whose answers
    all have one length are kept, since the model did that; their sigma is the fit's floor.

    Attributes:
        model: Whose answers: a name in the data, or the part after its slash.
        path: The Parquet file or the folder of `validate.parquet`; None for `castillo_folder()`.
        split: Which file of the folder: `validate`, or `train`, on which predictors are trained.
    """

    model: str = DEFAULT_MODEL
    path: str | None = None
    split: str = "validate"

    @property
    def file(self) -> Path:
        """The Parquet file that is read."""
        place = castillo_folder() if self.path is None else Path(self.path).expanduser()
        return place if place.suffix == ".parquet" else place / f"{self.split}.parquet"

    def open(self, read: ReadTrace) -> LengthSource:
        """The model's rows with their fits.

        Raises:
            InputError: The data is absent or unreadable, or has no answers of the model.
        """
        answers = _read(self.file, self.model)
        mu, sigma = _fit_without_each(answers.samples, answers.cap_tokens)
        return _OpenCastillo(answers, mu, sigma)


@dataclass(frozen=True, slots=True)
class _Answers:
    """Rows of one model.

    Attributes:
        prompts: Where their texts stand.
        prompt_tokens: (rows,).
        samples: Answer lengths, (rows, k).
        cap_tokens: Where the runs were stopped.
    """

    prompts: PromptTable
    prompt_tokens: Ints
    samples: Ints
    cap_tokens: int


@dataclass(frozen=True, slots=True)
class _OpenCastillo:
    """Rows of one model with their fits.

    Attributes:
        answers: The rows.
        mu: Location of ln X by the other answers of the row, (rows, k).
        sigma: Its scale, (rows, k).
    """

    answers: _Answers
    mu: Floats
    sigma: Floats

    @property
    def cap_tokens(self) -> int | None:
        return self.answers.cap_tokens

    def draw(self, start: int, count: int, random: np.random.Generator) -> DrawnLengths:
        rows, answers = self.answers.samples.shape
        used = random.integers(rows, size=count), random.integers(answers, size=count)
        return DrawnLengths(
            self.answers.prompt_tokens[used[0]],
            self.answers.samples[used],
            self.mu[used],
            self.sigma[used],
            DrawnPrompts(self.answers.prompts, used[0]),
        )

    def sample(self, count: int, random: np.random.Generator) -> DrawnLengths:
        return self.draw(0, count, random)

    def notes(self, requests: int) -> list[str]:
        samples, cap_tokens = self.answers.samples, self.answers.cap_tokens
        cut = int((samples >= cap_tokens).sum())
        equal = int((samples == samples[:, :1]).all(axis=1).sum())
        rows, answers = samples.shape
        return [
            f"lengths of {rows:,} prompts x {answers} answers; {cut:,} answers ran into "
            f"{cap_tokens:,} tokens and count as censored; {equal:,} prompts have "
            f"{answers} equal lengths and are kept"
        ]


def _read(file: Path, model: str) -> _Answers:
    """The rows of one model."""
    if not file.is_file():
        raise InputError(
            f"CASTILLO is not there: no file {file.name} in {file.parent}; set TIEBREAK_DATA to "
            "the folder that holds castillo/, give --castillo PATH, or choose log-normal lengths"
        )
    try:
        names = pq.read_schema(file).names
        for column in _COLUMNS:
            require_column(str(file), column, names)
        capped = _CAP_COLUMN in names
        table = pq.read_table(file, columns=[*_COLUMNS, *([_CAP_COLUMN] if capped else [])])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: cannot be read as Parquet: {one_line(error)}; repair or replace the file"
        ) from error
    name = _resolve(file, model, sorted(set(pc.unique(table["model"].cast("string")).to_pylist())))
    rows = table.filter(pc.equal(table["model"].cast("string"), name))
    cap_tokens = pc.min(rows[_CAP_COLUMN]).as_py() if capped else None
    return _Answers(PromptTable(file, name), *_checked(file, rows), cap_tokens or RUN_CAP_TOKENS)


def _resolve(file: Path, model: str, names: list[str]) -> str:
    """The model's full name."""
    if model in names:
        return model
    short = [name for name in names if name.rpartition("/")[2].lower() == model.lower()]
    if len(short) == 1:
        return short[0]
    nearest = difflib.get_close_matches(model, names, 1)
    fix = f"did you mean {nearest[0]!r}?" if nearest else "name one of them"
    raise InputError(
        f"{file}: no answers of the model {model!r}, models are: {', '.join(names)}; {fix}"
    )


def _checked(file: Path, rows: pa.Table) -> tuple[Ints, Ints]:
    answers = rows["output_tokens"].combine_chunks()
    counts = set(pc.unique(pc.list_value_length(answers)).to_pylist())
    flat = answers.flatten()
    if len(counts) != 1 or None in counts or min(counts) < 2 or flat.null_count:
        raise InputError(
            f"{file}: output_tokens lists have {sorted(map(str, counts))} lengths and "
            f"{flat.null_count} empty values, must all have one number of lengths, at least 2, so "
            "that the others can forecast each"
        )
    samples = flat.to_numpy(zero_copy_only=False).astype(np.int64).reshape(len(rows), -1)
    prompt_tokens = rows["prompt_tokens"].fill_null(0).to_numpy()
    if min(samples.min(), prompt_tokens.min()) < 1:
        raise InputError(
            f"{file}: the shortest answer is {samples.min()} and the shortest prompt "
            f"{prompt_tokens.min()} tokens (0: none given), must be at least 1; repair the file"
        )
    return prompt_tokens.astype(np.int64), samples


def _fit_without_each(samples: Ints, cap_tokens: int) -> tuple[Floats, Floats]:
    """Location and scale (rows, k) by the k - 1 answers other than each."""
    answers = samples.shape[1]
    others = np.array([[j for j in range(answers) if j != i] for i in range(answers)])
    groups = samples[:, others].reshape(-1, answers - 1)
    mu, sigma = fit(groups, groups >= cap_tokens)
    return mu.reshape(samples.shape), sigma.reshape(samples.shape)
