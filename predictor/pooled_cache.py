"""Pooled encoder features on disk, so that an interrupted training does not encode again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from predictor.atomic_file import replace_file
from predictor.encoder import EncoderSpec, Features, TextEncoder, encoder_source

BLOCK_TEXTS = 256
"""Texts that are encoded and written together: what a kill can lose."""


_LARGEST = float(np.finfo(np.float16).max)
Halves = NDArray[np.float16]


class PooledCache:
    """Features of texts in files of `BLOCK_TEXTS`, each named by the encoder and its texts.

    The blocks follow from the set of texts alone. Features depend, in their last bits, on which
    texts share a pass: whichever blocks exist already, the result is the same. They are rounded to
    half precision as in serving (`predictor.learned`).

    Args:
        folder: Holds the files; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pooled(
        self,
        texts: Sequence[str],
        spec: EncoderSpec,
        encoder: Callable[[], TextEncoder],
        advance: Callable[[int], None] = lambda done: None,
    ) -> Features:
        """Features of texts, (n, width), in the order given.

        Args:
            texts: The prompts, each once.
            spec: Of the encoder.
            encoder: Makes it; not called when all features are there.
            advance: Told how many more texts are done.
        """
        order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))
        identity = _identity(spec)
        loaded: TextEncoder | None = None
        parts = []
        for start in range(0, len(order), BLOCK_TEXTS):
            block = [texts[row] for row in order[start : start + BLOCK_TEXTS]]
            file = self._folder / f"{_digest(identity, block)}.npy"
            features = _read(file, len(block))
            if features is None:
                loaded = loaded or encoder()
                pooled = loaded.pooled(block, advance=advance)
                features = pooled.clip(-_LARGEST, _LARGEST).astype(np.float16)
                replace_file(file, partial(_write, features))
            else:
                advance(len(block))
            parts.append(features)
        ordered = np.empty((len(texts), parts[0].shape[1]), np.float32)
        ordered[order] = np.concatenate(parts)
        return ordered


def _identity(spec: EncoderSpec) -> bytes:
    """Tells encoders apart, a folder by the size and age of its files too."""
    source = Path(encoder_source(spec.name))
    files = sorted(path for path in source.glob("*") if path.is_file()) if source.is_dir() else []
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return msgspec.json.encode((spec, stamps))


def _digest(identity: bytes, texts: Sequence[str]) -> str:
    digest = hashlib.blake2b(identity, digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _write(features: Halves, stream: IO[bytes]) -> None:
    np.save(stream, features, allow_pickle=False)


def _read(file: Path, count: int) -> Halves | None:
    """The block in `file`; None if it is missing or not whole."""
    try:
        features: Halves = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = features.ndim == 2 and len(features) == count and features.dtype == np.float16
    return features if whole else None
