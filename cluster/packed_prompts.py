"""Prompts as they travel to replicas: inside messages, or by reference to shared objects."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import ray

from replicas.protocol import PromptSlice, pack_tokens

logger = logging.getLogger(__name__)

INLINE_PROMPT_BYTES = 1024
"""Prompts up to this size travel inside the submission; longer ones by object reference."""

CHUNK_BYTES = 512 * 1024
"""Long prompts that are submitted together share objects of about this size."""


def pack_prompts(prompts: Sequence[tuple[list[int], list[int]]]) -> list[bytes | PromptSlice]:
    """Prompts as they travel: short ones as bytes, long ones as slices of shared objects.

    Args:
        prompts: Each prompt and the output that it is continued from. Prompts that are one list,
            as those of the n answers to a request, travel once where there is no output yet.
    """
    packed: list[bytes] = []
    places: list[int] = []
    place_of: dict[int, int] = {}
    for prompt, output in prompts:
        place = len(packed) if output else place_of.setdefault(id(prompt), len(packed))
        if place == len(packed):
            packed.append(pack_tokens(prompt + output if output else prompt))
        places.append(place)
    travelling = _travelling(packed)
    return [travelling[place] for place in places]


def _travelling(packed: list[bytes]) -> list[bytes | PromptSlice]:
    travelling: list[bytes | PromptSlice] = list(packed)
    chunk: list[int] = []
    size = 0
    for index, prompt in enumerate(packed):
        if len(prompt) > INLINE_PROMPT_BYTES:
            chunk.append(index)
            size += len(prompt)
        if chunk and (size >= CHUNK_BYTES or index == len(packed) - 1):
            parts = [packed[i] for i in chunk]
            for i, part in zip(chunk, _shared(parts), strict=True):
                travelling[i] = part
            chunk, size = [], 0
    return travelling


def _shared(parts: list[bytes]) -> Sequence[bytes | PromptSlice]:
    """Slices of one new object that holds all the parts; the parts where the store is full."""
    try:
        reference = ray.put(b"".join(parts))
    except ray.exceptions.RayError as error:
        logger.warning("prompts travel inside messages, the object store takes none: %s", error)
        return parts
    stops = list(itertools.accumulate(map(len, parts)))
    return [
        PromptSlice(reference, stop - len(p), stop) for p, stop in zip(parts, stops, strict=True)
    ]
