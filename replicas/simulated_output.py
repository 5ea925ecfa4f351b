"""What a simulated engine answers: deterministic lengths, tokens and text."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from replicas.protocol import Generation

_TOKEN_BYTES = 4
_VLLM_DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SimulatedOutput:
    """The whole answer to one request, wherever and in however many attempts it is produced.

    The token at a position is a function of the original prompt and the position alone, and the
    length one of the request's id and the seed, so every simulated engine with the same seed
    continues a request as the one before would have.

    Attributes:
        prompt_tokens: Tokens of the original prompt.
        generated_tokens: Output tokens that exist already.
        output_tokens: Length of the answer, counted from the original prompt.
        max_tokens: The cap on `output_tokens` that the request set.
        finish_reason: `stop`, or `length` where the cap cut the answer.
        digest: Identifies the original prompt.
        vocabulary_tokens: Token ids are below this.
    """

    prompt_tokens: int
    generated_tokens: int
    output_tokens: int
    max_tokens: int
    finish_reason: str
    digest: bytes
    vocabulary_tokens: int

    def token(self, position: int) -> int:
        """Id of the output token at `position`, counted from 0 after the original prompt."""
        hashed = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=self.digest)
        return int.from_bytes(hashed.digest(), "little") % self.vocabulary_tokens


@dataclass(frozen=True, slots=True)
class OutputLengths:
    """Log-normal output lengths: `ln X ~ Normal(ln median_tokens, log_sigma)`.

    Attributes:
        median_tokens: Median length in tokens, at least 1.
        log_sigma: Standard deviation of ln X; 0 gives every request the median.
        seed: Makes other lengths of the same request ids.

    Raises:
        ValueError: A parameter is out of range.
    """

    median_tokens: float
    log_sigma: float
    seed: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.median_tokens) and self.median_tokens >= 1):
            raise ValueError(
                f"output median is {self.median_tokens} tokens, must be finite and >= 1"
            )
        if not (math.isfinite(self.log_sigma) and self.log_sigma >= 0):
            raise ValueError(f"output log sigma is {self.log_sigma}, must be finite and >= 0")

    def draw(self, request_id: str, at_most: int) -> int:
        """Length in 1..`at_most` + 1; the value above `at_most` stands for all longer ones."""
        generator = random.Random(f"{self.seed}/{request_id}")
        log_tokens = math.log(self.median_tokens) + self.log_sigma * generator.gauss(0.0, 1.0)
        return max(1, round(math.exp(min(log_tokens, math.log(at_most + 1)))))


def plan_output(
    generation: Generation, lengths: OutputLengths, max_total_tokens: int, vocabulary_tokens: int
) -> SimulatedOutput:
    """The answer to `generation`.

    `sampling` is that of the original request: `max_tokens` counts from the original prompt
    (absent: 16, None: whatever fits, as in vLLM). `extra_args["simulated_output_tokens"]` sets the
    natural length, else it is drawn. `min_tokens` and `ignore_eos` are obeyed.

    Args:
        generation: What to answer; its prompt must be packed tokens.
        lengths: Where natural lengths come from.
        max_total_tokens: Most tokens that one request can have, for `max_tokens=None`.
        vocabulary_tokens: Upper end of the token ids.

    Raises:
        ValueError: The prompt or the sampling cannot be run; the message says why.
    """
    packed = generation.prompt
    if not isinstance(packed, bytes) or not packed or len(packed) % _TOKEN_BYTES:
        raise ValueError(
            f"prompt is {_shape(packed)}, must be the bytes of at least one int32 token id "
            "(pack_tokens)"
        )
    known_tokens = len(packed) // _TOKEN_BYTES
    generated_tokens = generation.generated_tokens
    if not 0 <= generated_tokens < known_tokens:
        raise ValueError(
            f"generated_tokens is {generated_tokens}, must be in 0..{known_tokens - 1}: the prompt "
            f"has {known_tokens} tokens and begins with the original one"
        )
    prompt_tokens = known_tokens - generated_tokens
    max_tokens = _max_tokens(generation, prompt_tokens, max_total_tokens)
    natural_tokens = _natural_tokens(generation, lengths, max_tokens)
    return SimulatedOutput(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        output_tokens=min(natural_tokens, max_tokens),
        max_tokens=max_tokens,
        finish_reason="stop" if natural_tokens <= max_tokens else "length",
        digest=hashlib.blake2b(packed[: prompt_tokens * _TOKEN_BYTES], digest_size=16).digest(),
        vocabulary_tokens=vocabulary_tokens,
    )


def _max_tokens(generation: Generation, prompt_tokens: int, max_total_tokens: int) -> int:
    asked = generation.sampling.get("max_tokens", _VLLM_DEFAULT_MAX_TOKENS)
    if asked is None:
        asked = max(1, max_total_tokens - prompt_tokens)
    return _count("max_tokens", asked)


def _natural_tokens(generation: Generation, lengths: OutputLengths, max_tokens: int) -> int:
    """Where the answer would end by itself, at most `max_tokens` + 1."""
    sampling = generation.sampling
    if sampling.get("ignore_eos"):
        return max_tokens + 1
    asked = (sampling.get("extra_args") or {}).get("simulated_output_tokens")
    if asked is None:
        natural_tokens = lengths.draw(generation.request_id, max_tokens)
    else:
        natural_tokens = _count("simulated_output_tokens", asked)
    return max(natural_tokens, _count("min_tokens", sampling.get("min_tokens") or 0, least=0))


def _count(name: str, value: object, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}, must be an integer >= {least}")
    return value


def _shape(prompt: object) -> str:
    return f"{len(prompt)} bytes" if isinstance(prompt, bytes) else f"a {type(prompt).__name__}"
