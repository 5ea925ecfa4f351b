"""Which prompts a network learns from, which stop it, which calibrate it, and which judge it.

The side of a prompt follows from its text alone: the same prompt in another file, for another
model, or in a later run of labelling falls on the same side, so nothing leaks and nothing need be
remembered.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum


class Split(StrEnum):
    """What a prompt is used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"


_UP_TO = ((0.1, Split.TEST), (0.2, Split.CALIBRATION), (0.3, Split.VALIDATION), (1.0, Split.TRAIN))


def prompt_key(text: str) -> int:
    """64 bits that tell prompts apart up to case and white space."""
    normal = " ".join(text.split()).casefold()
    return int.from_bytes(
        hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def split_of(text: str) -> Split:
    """Test, calibration and validation a tenth each, the rest for training."""
    share = prompt_key(text) / 2**64
    return next(split for limit, split in _UP_TO if share < limit)
