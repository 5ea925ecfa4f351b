"""The honest prior: how long answers have been lately, given the model and the prompt's length."""

from __future__ import annotations

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from policies.batch import Ints
from policies.forecast import Forecast
from policies.length_histogram import BINS_PER_OCTAVE, MAX_TOKENS
from policies.model_lengths import ModelLengths, ModelLengthsState
from predictor.atomic_file import replace_file
from predictor.messages import Outcome

HALF_LIFE_SAMPLES = 2000.0
"""Answers after which one counts half. A fit then rests on at most 2,886 answers' worth."""

STATE_VERSION = 1


class PriorStateError(ValueError):
    """A saved state cannot be used; the message says what is wrong with it."""


class PriorState(msgspec.Struct, forbid_unknown_fields=True):
    """A prior as plain values.

    Attributes:
        version: `STATE_VERSION` of the writer.
        bins_per_octave: Resolution of the writer's histograms.
        models: What is known of each model.
    """

    version: int
    bins_per_octave: int
    models: dict[str, ModelLengthsState]


class PriorForecaster:
    """Forecasts from what finished answers looked like, fitted online.

    Per model and per power of two of the prompt's length it keeps a histogram of answer lengths
    that forgets exponentially, answers that a cap ended kept apart as right-censored, and fits a
    log-t to each (`ModelLengths`). It knows nothing of a prompt but its length.

    Args:
        coverage: Share of answers that the interval should contain, in (0, 1); its ends are
            equally far out in probability.
        half_life_samples: Answers after which one counts half.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, coverage: float = 0.9, half_life_samples: float = HALF_LIFE_SAMPLES) -> None:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage is {coverage}, must be above 0 and below 1")
        if not (math.isfinite(half_life_samples) and half_life_samples > 0):
            raise ValueError(f"half_life_samples is {half_life_samples}, must be finite and > 0")
        self._coverage = coverage
        self._half_life_samples = half_life_samples
        self._models: dict[str, ModelLengths] = {}

    @property
    def models(self) -> list[str]:
        """Models that have answered."""
        return sorted(self._models)

    def observe(
        self, model: str, prompt_tokens: int, output_tokens: int, censored: bool = False
    ) -> None:
        """Learn from one finished answer.

        Args:
            model: Who answered.
            prompt_tokens: Length of the prompt, at least 1.
            output_tokens: Length of the answer, at least 1.
            censored: Whether a cap ended it.

        Raises:
            ValueError: A length is out of range.
        """
        self.observe_many([Outcome(model, prompt_tokens, output_tokens, censored)])

    def observe_many(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from finished answers, the latest last; from none of them when one is bad.

        Raises:
            ValueError: A length is out of range.
        """
        if not outcomes:
            return
        prompts = _tokens("prompt_tokens", [outcome.prompt_tokens for outcome in outcomes])
        lengths = _tokens("output_tokens", [outcome.output_tokens for outcome in outcomes])
        censored = np.array([outcome.censored for outcome in outcomes], np.bool_)
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, outcome in enumerate(outcomes):
            rows[outcome.model].append(row)
        for name, at in rows.items():
            model = self._models.setdefault(name, ModelLengths())
            model.observe(prompts[at], lengths[at], censored[at], self._half_life_samples)

    def forecast(
        self, model: str, prompt_tokens: ArrayLike, max_tokens: ArrayLike
    ) -> list[Forecast]:
        """Forecasts for requests to one model.

        Args:
            model: Who will answer; an unknown one has the default distribution.
            prompt_tokens: Lengths of the prompts, at least 1, (n,).
            max_tokens: The requests' own caps, at least 1, (n,); the intervals end there.

        Raises:
            ValueError: A size is out of range or the shapes differ.
        """
        prompts = _tokens("prompt_tokens", prompt_tokens)
        caps = _tokens("max_tokens", max_tokens)
        if prompts.shape != caps.shape:
            raise ValueError(
                f"{len(prompts)} prompt_tokens but {len(caps)} max_tokens: give one of each per "
                "request"
            )
        lengths = self._models.get(model) or ModelLengths()
        lengths.refresh()
        return lengths.forecasts(prompts, caps, self._coverage)

    def state(self) -> dict[str, Any]:
        """All that was learnt, with the fits, as values that JSON can hold."""
        for lengths in self._models.values():
            lengths.refresh()
        models = {name: lengths.state() for name, lengths in self._models.items()}
        state: dict[str, Any] = msgspec.to_builtins(
            PriorState(STATE_VERSION, BINS_PER_OCTAVE, models), str_keys=True
        )
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Replace what was learnt by what `state()` returned; unchanged when that is unusable.

        Raises:
            PriorStateError: The state is of another version or not intact.
        """
        try:
            found = msgspec.convert(state, PriorState, str_keys=True)
            if (found.version, found.bins_per_octave) != (STATE_VERSION, BINS_PER_OCTAVE):
                raise PriorStateError(
                    f"version {found.version} with {found.bins_per_octave} bins per octave, this "
                    f"program reads version {STATE_VERSION} with {BINS_PER_OCTAVE}"
                )
            models = {name: ModelLengths.of(lengths) for name, lengths in found.models.items()}
        except (msgspec.ValidationError, ValueError) as error:
            raise PriorStateError(f"unusable prior state: {error}") from error
        self._models = models

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state so that a reader sees the old file or the new one, never a part.

        Raises:
            OSError: The file cannot be written.
        """
        write_state(path, self.state())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        coverage: float = 0.9,
        half_life_samples: float = HALF_LIFE_SAMPLES,
        *,
        writes: bool = True,
    ) -> tuple[PriorForecaster, str | None]:
        """The forecaster saved at `path`, or a fresh one.

        Never fails because of the file: a missing one is normal, an unusable one is reported, and
        moved aside to `<path>.unusable` by who `writes` there.

        Returns:
            The forecaster, and a warning when a file was there and could not be used.
        """
        forecaster = cls(coverage, half_life_samples)
        target = Path(path)
        try:
            content = target.read_bytes()
        except FileNotFoundError:
            return forecaster, None
        except OSError as error:
            return forecaster, f"the prior at {target} cannot be read, starting afresh: {error}"
        try:
            forecaster.load_state(msgspec.json.decode(content))
        except (msgspec.DecodeError, PriorStateError, RecursionError) as error:
            moved = ""
            if writes:
                aside = target.with_name(target.name + ".unusable")
                with contextlib.suppress(OSError):
                    target.replace(aside)
                    moved = f" and was moved to {aside.name}"
            return forecaster, (
                f"the prior at {target} is unusable{moved}, starting afresh: {error}"
            )
        return forecaster, None


def write_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Replace the file at `path` by `state` as JSON, all or nothing.

    Raises:
        OSError: The file cannot be written.
    """
    content = msgspec.json.encode(state)
    replace_file(Path(path), lambda stream: stream.write(content))


def _tokens(name: str, values: ArrayLike) -> Ints:
    """`values` as token counts, (n,)."""
    counts = np.asarray(values)
    if counts.ndim != 1:
        raise ValueError(f"{name} has shape {counts.shape}, must be one value per request")
    if counts.size and counts.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {counts.dtype} values, must be integers")
    bad = np.flatnonzero((counts < 1) | (counts > MAX_TOKENS))
    if len(bad):
        raise ValueError(
            f"{name} is {counts[bad[0]]} at position {bad[0]}, must be in 1..{MAX_TOKENS}"
        )
    return counts.astype(np.int64)
