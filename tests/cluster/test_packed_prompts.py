"""Prompts arrive as they were, and one that several requests share travels once."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster import packed_prompts
from cluster.call import Call, GenerationRequest
from cluster.packed_prompts import CHUNK_BYTES, INLINE_PROMPT_BYTES, pack_prompts
from cluster.submissions import submissions_of
from replicas.protocol import PromptSlice, unpack_tokens

LONG = list(range(INLINE_PROMPT_BYTES))
"""A prompt of four times as many bytes."""


class Store:
    """An object store: what is put there is its own reference."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.objects: list[bytes] = []
        self._is_full = is_full

    def put(self, value: bytes) -> Any:
        if self._is_full:
            raise ray.exceptions.ObjectStoreFullError
        self.objects.append(value)
        return value


def arrived(travelling: bytes | PromptSlice) -> list[int]:
    if isinstance(travelling, PromptSlice):
        stored: Any = travelling.chunk
        return unpack_tokens(stored[travelling.start : travelling.stop])
    return unpack_tokens(travelling)


@pytest.mark.parametrize("is_full", [False, True])
@given(
    prompts=st.lists(st.integers(1, 3 * INLINE_PROMPT_BYTES // 4), min_size=1, max_size=4),
    asked=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12),
)
def test_every_prompt_arrives_with_its_own_output(
    is_full: bool, prompts: list[int], asked: list[tuple[int, int]]
) -> None:
    lists = [[number] * length for number, length in enumerate(prompts)]
    pairs = [(lists[which % len(lists)], [9] * output) for which, output in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_prompts.ray, "put", Store(is_full=is_full).put)
        travelling = pack_prompts(pairs)
    assert [arrived(one) for one in travelling] == [prompt + output for prompt, output in pairs]


def test_the_answers_of_one_request_share_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(packed_prompts.ray, "put", store.put)
    other = list(LONG)
    short = [1, 2, 3]
    travelling = pack_prompts([(LONG, [])] * 1000 + [(other, []), (LONG, [7]), (short, [])])
    assert [len(stored) for stored in store.objects] == [4 * (3 * len(LONG) + 1)]
    assert all(one is travelling[0] for one in travelling[:1000])
    assert [arrived(one) for one in travelling[999:]] == [LONG, other, [*LONG, 7], short]


def test_long_prompts_fill_objects_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(packed_prompts.ray, "put", store.put)
    pack_prompts([(list(LONG), []) for _ in range(300)])
    assert sum(map(len, store.objects)) == 300 * 4 * len(LONG)
    assert max(map(len, store.objects)) <= CHUNK_BYTES + 4 * len(LONG)


def test_a_client_submits_n_answers_with_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(packed_prompts.ray, "put", store.put)
    calls = [Call(GenerationRequest(f"r-{n}", LONG, 10)) for n in range(50)]
    submissions = submissions_of("c", calls)
    assert sum(map(len, store.objects)) == 4 * len(LONG)
    assert {arrived(submission.generation.prompt)[-1] for submission in submissions} == {LONG[-1]}
