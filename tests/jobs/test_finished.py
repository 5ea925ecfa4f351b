from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.writing.finished import FinishedRows
from tests.jobs.factories import any_speed

indices = st.lists(st.integers(0, 50_000), max_size=50)


@any_speed
@given(indices, indices, indices)
def test_behaves_as_a_set(first: list[int], added: list[int], asked: list[int]) -> None:
    rows = FinishedRows(first)
    rows.add_all(np.array(added, np.int64))
    expected = set(first) | set(added)
    assert len(rows) == len(expected)
    assert all(index in rows for index in expected)
    assert [index in rows for index in asked] == [index in expected for index in asked]
    assert [rows.add(index) for index in dict.fromkeys(asked)] == [
        index not in expected for index in dict.fromkeys(asked)
    ]
    assert len(rows) == len(expected | set(asked))


def test_what_is_not_an_index_is_not_in_it() -> None:
    rows = FinishedRows([0])
    assert [value in rows for value in (-1, "0", None, 10**18)] == [False] * 4
    with pytest.raises(ValueError, match="row_index is -1, must be >= 0"):
        rows.add(-1)


def test_ten_million_rows_take_a_bit_each() -> None:
    rows = FinishedRows()
    tracemalloc.start()
    for start in range(0, 10_000_000, 1_000_000):
        rows.add_all(np.arange(start, start + 1_000_000, dtype=np.int64))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 10_000_000
    assert size < 2_600_000
