"""A job's input with every prompt repeated: one row of work for each sample of its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from jobs.reading.inputs import BadRow, JobInput, JobRow
from predictor.excerpt import chat_text

GREEDY_BELOW_TEMPERATURE = 1e-5
"""vLLM decodes greedily below it."""


class SamplingSettings(msgspec.Struct, frozen=True):
    """How the answers to one prompt are drawn, engine defaults included.

    Attributes:
        temperature: 0 is greedy.
        top_p: Share of probability that is drawn from.
        top_k: Tokens that are drawn from; 0 is all.
        max_tokens: Cap on the answer's length.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int

    @property
    def is_greedy(self) -> bool:
        """Whether every answer is the same."""
        return self.temperature < GREEDY_BELOW_TEMPERATURE


@dataclass(frozen=True, slots=True)
class SampledInput:
    """The rows of an input, each as many times as its answer is to be sampled.

    Sample k of prompt p has `row_index` p * samples + k and `row_id` "<id>#k", and the samples of a
    prompt follow each other, so that an engine's prefix cache serves all but the first. A prompt
    that is decoded greedily has sample 0 only, since all would be equal; one that cannot be used is
    an error for each of its samples.

    Attributes:
        source: The prompts.
        samples: Samples per prompt, at least 1.
        max_tokens: Cap on the answers of a prompt that does not set it.
        sampling: `vllm.SamplingParams` of prompts that do not set them, without a seed.
        seed: With the prompt's id and k it seeds each sample; a prompt's own seed stands for it.
            None sends no seed: engines then draw as they like.
    """

    source: JobInput
    samples: int
    max_tokens: int
    sampling: Mapping[str, Any]
    seed: int | None = None

    def rows(self, skip: Container[int] = ()) -> Iterator[JobRow | BadRow]:
        """Every sample in order, except those whose `row_index` is in `skip`.

        Raises:
            InputError: A file cannot be read on.
        """
        for prompt in self.prompts(skip=_EndedPrompts(skip, self.samples)):
            for k in range(self.samples_of(prompt)):
                if prompt.row_index * self.samples + k not in skip:
                    yield self._sample(prompt, k)

    def prompts(self, skip: Container[int] = ()) -> Iterator[JobRow | BadRow]:
        """The prompts themselves, each once; a blank one is a bad row."""
        for row in self.source.rows(skip):
            yield row if isinstance(row, BadRow) or prompt_text(row).strip() else _blank(row)

    def samples_of(self, prompt: JobRow | BadRow) -> int:
        """Samples that a prompt has."""
        return 1 if isinstance(prompt, JobRow) and self.settings(prompt).is_greedy else self.samples

    def total(self, prompts: int | None) -> int | None:
        """Samples of so many prompts, if none sets its own temperature."""
        greedy = "temperature" in self.sampling and (
            self.sampling["temperature"] < GREEDY_BELOW_TEMPERATURE
        )
        return None if prompts is None else prompts * (1 if greedy else self.samples)

    def settings(self, prompt: JobRow) -> SamplingSettings:
        """How a prompt's answers are drawn."""
        given = {"max_tokens": self.max_tokens, **self.sampling, **prompt.sampling}
        return SamplingSettings(
            temperature=given.get("temperature", 1.0),
            top_p=given.get("top_p", 1.0),
            top_k=max(0, given.get("top_k", 0)),
            max_tokens=given["max_tokens"],
        )

    def _sample(self, prompt: JobRow | BadRow, k: int) -> JobRow | BadRow:
        row_index, row_id = prompt.row_index * self.samples + k, f"{prompt.row_id}#{k}"
        if isinstance(prompt, BadRow):
            return msgspec.structs.replace(prompt, row_index=row_index, row_id=row_id)
        sampling = prompt.sampling
        seed = sampling.get("seed", self.seed)
        if seed is not None and not self.settings(prompt).is_greedy:
            sampling = {**sampling, "seed": sample_seed(seed, prompt.row_id, k)}
        return msgspec.structs.replace(
            prompt, row_index=row_index, row_id=row_id, sampling=sampling
        )


@dataclass(frozen=True, slots=True)
class _EndedPrompts:
    """The prompts of which all samples are in `rows`, by ordinal."""

    rows: Container[int]
    samples: int

    def __contains__(self, prompt: object) -> bool:
        if not isinstance(prompt, int):
            return False
        first = prompt * self.samples
        return all(row in self.rows for row in range(first, first + self.samples))


def sample_seed(seed: int, prompt_id: str, k: int) -> int:
    """The seed of sample `k` of a prompt: equal in every process, 63 bits."""
    text = f"{seed}/{k}/{prompt_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def prompt_text(row: JobRow) -> str:
    """What is asked in plain text; its excerpt is `JobRow.excerpt`."""
    return row.prompt if row.prompt is not None else chat_text(row.messages or [])


def _blank(row: JobRow) -> BadRow:
    return BadRow(
        row_index=row.row_index,
        row_id=row.row_id,
        error=f"{row.row_id}: the prompt is blank, must have text to forecast from",
        echo=row.prompt_text,
        endpoint=row.batch_line.endpoint if row.batch_line else None,
    )
