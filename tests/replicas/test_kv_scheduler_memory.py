"""Memory that cannot be projected is refused when the engine starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

from jobs.bare_scheduler import Sizes, bare_scheduler
from replicas.kv_scheduler import ProjectedMemoryScheduler, UnsupportedEngineError


class WindowedScheduler(ProjectedMemoryScheduler):
    """Told that all layers look back over a window only."""

    def __init__(self, *, kv_cache_config: KVCacheConfig, **kwargs: Any) -> None:
        (group,) = kv_cache_config.kv_cache_groups
        window = SlidingWindowSpec(
            block_size=group.kv_cache_spec.block_size,
            num_kv_heads=1,
            head_size=1,
            dtype=torch.float32,
            sliding_window=8,
        )
        windowed = KVCacheConfig(
            num_blocks=kv_cache_config.num_blocks,
            kv_cache_tensors=kv_cache_config.kv_cache_tensors,
            kv_cache_groups=[KVCacheGroupSpec(group.layer_names, window)],
        )
        super().__init__(kv_cache_config=windowed, **kwargs)


def test_a_cache_that_is_not_of_full_attention_is_refused() -> None:
    with pytest.raises(UnsupportedEngineError, match=r"SlidingWindowSpec.*replicas\.scheduler"):
        bare_scheduler(WindowedScheduler, Sizes())


def test_an_option_that_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'max_evictions'"):
        bare_scheduler(ProjectedMemoryScheduler, Sizes(), {"tiebreak": {"max_eviction": 2}})
