"""What the predictor reads of a prompt: its head and its tail, the same in training and serving.

A client cuts the prompt before it submits, so that the control plane carries a bounded text however
long the prompt is; labels are cut in the same place when a network is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD_CHARS = 1536
"""Characters kept from the start of a prompt."""

TAIL_CHARS = 512
"""Characters kept from its end, where instructions often stand after a long document."""

GAP = "\n[...]\n"
"""Stands for what was left out."""


def excerpt(text: str) -> str:
    """`text` if it is short, else its head and tail; cutting an excerpt again changes nothing."""
    if len(text) <= HEAD_CHARS + len(GAP) + TAIL_CHARS:
        return text
    return text[:HEAD_CHARS] + GAP + text[-TAIL_CHARS:]


def chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The texts of a chat's messages, one after another, without their roles."""
    return "\n".join(filter(None, map(_text, messages)))


def chat_excerpt(messages: Sequence[Mapping[str, Any]]) -> str:
    """The excerpt of a chat."""
    return excerpt(chat_text(messages))


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    told = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    return "\n".join(text for text in told if isinstance(text, str))
