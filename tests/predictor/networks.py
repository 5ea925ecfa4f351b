"""Factories: a small encoder in a folder, prompts, and a network made for both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from policies.batch import Ints
from predictor.artifact import Artifact
from predictor.calibrations import Calibrations
from predictor.conformal import Calibration
from predictor.encoder import EncoderSpec, TextEncoder
from predictor.features import SCALAR_NAMES, InputScaler
from predictor.network import LengthNetwork, NetworkConfig
from predictor.prompts import Prompts

LAYERS, HIDDEN, POSITIONS = 3, 16, 64
CLS, SEP, PAD, UNKNOWN = 0, 1, 2, 3
WORDS = [f"w{index}" for index in range(600)]


def make_encoder(folder: Path, seed: int = 0) -> str:
    """A BERT with one token per word, random weights, saved as transformers saves it."""
    specials = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"]
    vocabulary = {token: index for index, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=POSITIONS,
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=POSITIONS,
                pad_token_id=PAD,
                initializer_range=0.5,
            )
        )
    model.save_pretrained(folder)
    return str(folder)


def make_spec(folder: Path, **changes: Any) -> EncoderSpec:
    """The small encoder, reading 16 tokens of which 4 are the tail."""
    return EncoderSpec(
        **({"name": make_encoder(folder), "max_tokens": 16, "tail_tokens": 4} | changes)
    )


def make_prompts(
    text: Sequence[str],
    *,
    model: Sequence[str] | None = None,
    prompt_tokens: Ints | Sequence[int] | None = None,
    max_tokens: Ints | Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
) -> Prompts:
    """Prompts to model `a`, of 1, 2, 3 ... tokens, capped at 512, at temperature 1."""
    n = len(text)
    return Prompts(
        text,
        model or ["a"] * n,
        np.arange(1, n + 1) if prompt_tokens is None else np.asarray(prompt_tokens, np.int64),
        np.full(n, 512) if max_tokens is None else np.asarray(max_tokens, np.int64),
        np.ones(n) if temperature is None else np.asarray(temperature, np.float64),
    )


def make_calibration(shift: float = 0.0, scale: float = 1.0) -> Calibration:
    return Calibration(shift, scale, [0.05, 0.5, 0.95], [-2.0, 0.0, 2.0], 100, 400)


def make_artifact(encoder: TextEncoder, **changes: Any) -> Artifact:
    """A network of random weights for models `a` and `b`, its targets those of real lengths."""
    texts = [f"write w{index} words w{7 * index % 90}?" for index in range(40)]
    prompts = make_prompts(texts, model=["a", "b"] * 20)
    scaler = InputScaler.fit(prompts, encoder.pooled(texts))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = LengthNetwork(
            NetworkConfig(encoder.width, len(SCALAR_NAMES), 2, (24, 24, 12), members=2)
        )
        torch.nn.init.normal_(network.offsets)
    network.set_targets(torch.tensor([4.0, 6.0]), torch.tensor([0.2, 0.9]))
    return Artifact(
        **(
            {
                "network": network.eval(),
                "scaler": scaler,
                "encoder": encoder.spec,
                "calibration": Calibrations(make_calibration(0.1, 1.5)),
                "training": {"loss": "nll"},
                "card": "# A card\n",
            }
            | changes
        )
    )
