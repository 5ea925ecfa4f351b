"""What one engine can hold and compute at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one engine can hold and compute at once.

    Attributes:
        kv_blocks: KV-cache blocks that requests can use.
        block_size: Tokens per block.
        max_num_seqs: Requests that can run at once.
        max_num_batched_tokens: Tokens one step may compute; longer prompts are prefilled in chunks.

    Raises:
        ValueError: A limit is below 1, or a step could not decode every running request.
    """

    kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_size", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be >= 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, must be >= "
                f"max_num_seqs ({self.max_num_seqs}) so that a step can decode every request"
            )

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit into the KV cache."""
        return self.kv_blocks * self.block_size

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens of one request."""
        return -(-tokens // self.block_size)
