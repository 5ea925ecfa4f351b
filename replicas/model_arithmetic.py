"""Arithmetic that a language model's token takes, from the model's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GATED_DECODERS = frozenset(
    {"gemma", "gemma2", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"}
)
"""Types of models whose layers are full attention and gated MLPs, dense or all of experts."""


def flops_per_token(config: Mapping[str, Any]) -> float | None:
    """Floating-point operations of one token: twice the weights that it is multiplied with.

    Attention over the context is left out, and every token is counted with its logits.

    Args:
        config: What the model's `config.json` says.

    Returns:
        FLOP; None where the layers are of a kind that is not in `GATED_DECODERS`, or a size is
        missing.
    """
    if config.get("model_type") not in GATED_DECODERS:
        return None
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        experts = int(config.get("num_experts_per_tok") or 1)
        width = int(config.get("moe_intermediate_size") or config["intermediate_size"])
        attention = 2 * hidden * head * (heads + kv_heads)
        router = hidden * int(config.get("num_local_experts") or config.get("num_experts") or 0)
        layer = attention + 3 * hidden * width * experts + router
        return 2.0 * (layer * int(config["num_hidden_layers"]) + hidden * int(config["vocab_size"]))
    except (KeyError, TypeError, ValueError):
        return None


def flops_per_token_in(folder: Path) -> float | None:
    """The same of a model in a folder; None where its configuration cannot be read, too."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return flops_per_token(config) if isinstance(config, dict) else None
