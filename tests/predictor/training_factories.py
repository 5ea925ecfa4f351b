"""Labels whose lengths follow from their texts, and an encoder small enough to make in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from predictor.labels import Labels
from predictor.prompts import Prompts
from predictor.training_settings import TrainingSettings

WORDS = ("write", "list", "explain", "poem", "essay", "word", "table", "story", "code", "why")


def texts(count: int, seed: int = 0) -> list[str]:
    """Different prompts of random words, the first of which decides how long answers are."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), 6)) + f" {seed} {row}"
        for row in range(count)
    ]


def labels_of(
    prompts: list[str],
    *,
    samples: int = 6,
    models: tuple[str, ...] = ("one",),
    cap: int | None = None,
    seed: int = 0,
) -> Labels:
    """Sampled lengths: ln X is log-t around a location that the first word and the model decide."""
    rng = np.random.default_rng(seed)
    pairs = [(text, model) for text in prompts for model in models]
    mu = np.array(
        [3.0 + 0.4 * WORDS.index(text.split()[0]) + 0.5 * models.index(m) for text, m in pairs]
    )
    drawn = np.exp(mu[:, None] + 0.2 * rng.standard_t(3.5, (len(pairs), samples)))
    tokens = np.maximum(drawn, 1).astype(np.int64)
    return Labels(
        Prompts(
            [text for text, _ in pairs],
            [model for _, model in pairs],
            np.array([len(text.split()) for text, _ in pairs], np.int64),
            np.full(len(pairs), cap or 0),
            np.ones(len(pairs)),
        ),
        tokens if cap is None else np.minimum(tokens, cap),
        np.zeros(tokens.shape, np.bool_) if cap is None else tokens >= cap,
    )


def write_labels(path: Path, labels: Labels, **more: list[Any]) -> Path:
    """The labels as a Parquet file; `more` replaces or adds columns, None takes one away."""
    columns: dict[str, Any] = {
        "prompt": list(labels.prompts.text),
        "model": list(labels.prompts.model),
        "prompt_tokens": labels.prompts.prompt_tokens.tolist(),
        "max_tokens": labels.prompts.max_tokens.tolist(),
        "temperature": labels.prompts.temperature.tolist(),
        "output_tokens": [
            tokens[there].tolist()
            for tokens, there in zip(labels.output_tokens, labels.present, strict=True)
        ],
        "censored": [
            cut[there].tolist() for cut, there in zip(labels.censored, labels.present, strict=True)
        ],
    }
    columns |= more
    return write_table(
        path, **{name: value for name, value in columns.items() if value is not None}
    )


def write_table(path: Path, **columns: Any) -> Path:
    """A Parquet file of these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def tiny_encoder(folder: Path, seed: int = 0) -> str:
    """A BERT of two layers with random weights and a tokenizer of words, saved in `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, "length", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=300,
        )
        BertModel(config).save_pretrained(folder)
    return str(folder)


def quick_settings(folder: Path, **changes: Any) -> TrainingSettings:
    """Settings that train a small network on a tiny encoder in about a second on one thread."""
    torch.set_num_threads(1)
    encoder = folder / "encoder"
    base: dict[str, Any] = {
        "encoder": str(encoder) if encoder.exists() else tiny_encoder(encoder),
        "hidden": (16, 8),
        "dropout": (0.1, 0.0),
        "members": 2,
        "epochs": 4,
        "batch_size": 64,
        "learning_rate": 1e-2,
    }
    return TrainingSettings(**base | changes)
