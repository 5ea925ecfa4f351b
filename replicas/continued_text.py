"""The text of an answer that goes on from its tokens, cut in the middle of a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_CHARACTER_TOKENS = 3
"""Tokens of a character of up to four bytes that may be there while one is missing."""

_CONTEXT_TOKENS = 8
"""Tokens that show whether a text ends with a character that is not complete."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def echo(tokenizer: Any, prompt: Sequence[int], generated_tokens: int, **options: Any) -> str:
    """What vLLM's detokenizer repeats before the first new text of a continued answer.

    It takes up where the prompt ends only if a character ends there too. Where the earlier output
    was cut within one, it gives all that it was primed with once more: the prompt and the answer's
    complete characters.

    Args:
        tokenizer: A tokenizer of the `tokenizers` library.
        prompt: The prompt, with the earlier output.
        generated_tokens: How many of its last tokens are earlier output.
        options: Of the tokenizer's `decode`.

    Returns:
        The text to leave out; empty when a character ended.
    """
    missing = 0
    while missing < min(generated_tokens, _CHARACTER_TOKENS):
        tail = list(prompt[: len(prompt) - missing][-_CONTEXT_TOKENS:])
        if not tokenizer.decode(tail, **options).endswith(_INCOMPLETE):
            break
        missing += 1
    if not missing:
        return ""
    repeated: str = tokenizer.decode(list(prompt[:-missing]), **options)
    return repeated
