from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from jobs.reading.duplicates import DuplicateId, PlacedIds, find_duplicate
from tests.jobs.factories import any_speed

ids_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=60)


def placed(ids: list[str]) -> PlacedIds:
    def start() -> Iterator[tuple[str, str]]:
        return ((row_id, str(i)) for i, row_id in enumerate(ids))

    return start


def weak_hash(row_id: str) -> int:
    return len(row_id) - 3


@any_speed
@given(ids_lists)
def test_a_duplicate_is_found_exactly_if_there_is_one(ids: list[str]) -> None:
    found = find_duplicate(placed(ids))
    assert (found is None) == (len(set(ids)) == len(ids))
    if found is not None:
        first, second = int(found.first), int(found.second)
        assert first < second
        assert ids[first] == ids[second] == found.row_id
        assert found.suspects == sum(1 for i in set(ids) if ids.count(i) > 1)


@any_speed
@given(ids_lists)
def test_colliding_hashes_are_never_taken_for_duplicates(ids: list[str]) -> None:
    distinct = list(dict.fromkeys(ids))
    assert find_duplicate(placed(distinct), weak_hash) is None
    if distinct:
        found = find_duplicate(placed([*distinct, distinct[0]]), weak_hash)
        assert isinstance(found, DuplicateId)
        assert (found.row_id, found.first, found.second) == (distinct[0], "0", str(len(distinct)))


def test_a_real_duplicate_behind_many_collisions() -> None:
    ids = [f"{i}" for i in range(5_000)]
    paired = {row_id: int(row_id) // 2 for row_id in ids} | {"dup": 10**6}
    found = find_duplicate(placed([*ids, "dup", "dup"]), paired.__getitem__)
    assert found == DuplicateId("dup", "5000", "5001", 2_501)
