"""KV blocks that several running requests use: a common prefix that is in memory once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request


class SharedBlocks:
    """Reads vLLM's own reference counts; prefixes are shared from the first block on."""

    def __init__(self, manager: KVCacheManager, block_size: int) -> None:
        self._manager = manager
        self._block_size = block_size

    @property
    def possible(self) -> bool:
        """Whether prefixes are cached at all."""
        return bool(self._manager.enable_caching)

    def begins_shared(self, request_id: str) -> bool:
        """Whether the first block of a running request is another's, too."""
        blocks = self._blocks_of(request_id)
        return bool(blocks) and blocks[0].ref_cnt > 1

    def tokens(self, blocks: Sequence[KVCacheBlock]) -> int:
        """Tokens that blocks hold."""
        return len(blocks) * self._block_size

    def hit(self, request: Request) -> Sequence[KVCacheBlock]:
        """Blocks of a waiting request's prefix that running requests use now."""
        cached = self._manager.get_computed_blocks(request)[0].blocks[0]
        used = next((i for i, block in enumerate(cached) if not block.ref_cnt), len(cached))
        return cached[:used]

    def count(
        self, running: Iterable[str], hit: Sequence[KVCacheBlock] = ()
    ) -> tuple[dict[str, int], int]:
        """What running requests share, with each other and with one that would start.

        Args:
            running: Ids of the running requests.
            hit: Blocks of the one that would start.

        Returns:
            Tokens in shared blocks of each running request that has any, and how many such blocks
            there are.
        """
        hits = {block.block_id for block in hit}
        pool = set(hits)
        tokens: dict[str, int] = {}
        for request_id in running:
            shared = 0
            for block in self._blocks_of(request_id):
                if block.ref_cnt < 2 and block.block_id not in hits:
                    break
                pool.add(block.block_id)
                shared += 1
            if shared:
                tokens[request_id] = shared * self._block_size
        return tokens, len(pool)

    def _blocks_of(self, request_id: str) -> Sequence[KVCacheBlock]:
        blocks: Sequence[KVCacheBlock] = self._manager.get_blocks(request_id).blocks[0]
        return blocks
