"""Answers cut anywhere, between the bytes of a character too, read like uncut ones."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from replicas.continued_text import echo
from replicas.embedded_model import embedded_model_path

TEXTS = [
    "Hello \N{SLIGHTLY SMILING FACE} \u65e5\u672c\u8a9e\u306e\u5929\u6c17 ok",
    "\U0002070e",
    " a\N{REPLACEMENT CHARACTER}b \N{SLIGHTLY SMILING FACE}",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(f"{embedded_model_path()}/tokenizer.json")


def decoded(tokenizer: Tokenizer, prompt: list[int], output: list[int], earlier: int = 0) -> str:
    """As vLLM does it: a stream that was primed with the prompt."""
    stream = DecodeStream(ids=prompt, skip_special_tokens=True)
    repeated = echo(tokenizer, prompt, earlier, skip_special_tokens=True)
    text = ""
    for token in output:
        piece = stream.step(tokenizer, token) or ""
        if piece and repeated:
            piece, repeated = piece.removeprefix(repeated), ""
        text += piece
    return text


@pytest.mark.parametrize("prompt", ["Say it", "\u65e5"])
@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_cut_anywhere_reads_the_same(
    tokenizer: Tokenizer, text: str, prompt: str
) -> None:
    asked, answer = tokenizer.encode(prompt).ids, tokenizer.encode(text).ids
    whole = decoded(tokenizer, asked, answer)
    for cut in range(len(answer) + 1):
        before = decoded(tokenizer, asked, answer[:cut])
        after = decoded(tokenizer, asked + answer[:cut], answer[cut:], earlier=cut)
        assert before + after == whole, f"cut after {cut} of {len(answer)} tokens"


def test_some_of_these_cuts_do_repeat_the_prompt(tokenizer: Tokenizer) -> None:
    asked, answer = tokenizer.encode("Say it").ids, tokenizer.encode(TEXTS[0]).ids
    cuts = [c for c in range(1, len(answer)) if echo(tokenizer, asked + answer[:c], c)]
    assert cuts
