from __future__ import annotations

import pytest

from policies import (
    DEFAULT_POLICY,
    InvalidOptionError,
    UnknownNameError,
    policy,
    policy_names,
)
from policies.admission import AMax, AMin, Greedy, Quantile
from policies.admission import Oracle as OracleAdmission
from policies.eviction import Latest, LongestRemaining, Promotion, ShortestLowerBound
from policies.ordering import Fcfs, KvVolume, LowerBound, Oracle, Sept, Sjf, Tie, UpperBound

PARTS = {
    "fcfs": (Fcfs(), Greedy(), Latest()),
    "sjf": (Sjf(), Greedy(), Latest()),
    "sept": (Sept(), Greedy(), Latest()),
    "tie": (Tie(gamma=0.9, tau_s=30.0), Greedy(), Latest()),
    "a_max": (UpperBound(gamma=1.0), AMax(), Latest()),
    "a_min": (LowerBound(gamma=1.0), AMin(overdue="alive"), ShortestLowerBound("realtime")),
    "tie+a_min": (Tie(), AMin(overdue="alive"), ShortestLowerBound("realtime")),
    "promote_l": (LowerBound(gamma=1.0), AMin(overdue="alive"), Promotion()),
    "mc_sf": (Sjf(gamma=1.0), Quantile(q=0.5), ShortestLowerBound("realtime")),
    "h_sf": (Oracle(gamma=1.0), OracleAdmission(), Latest()),
    "tiebreak": (KvVolume(), Quantile(q=0.2), LongestRemaining()),
}


def test_bundles_are_what_their_papers_say() -> None:
    made = {name: policy(name) for name in policy_names()}
    assert {n: (p.ordering, p.admission, p.eviction) for n, p in made.items()} == PARTS
    assert all(p.name == n and p.backfill == 0 for n, p in made.items())
    assert {p.horizon for p in made.values()} == {"own"}


def test_the_default_is_ours() -> None:
    assert DEFAULT_POLICY == "tiebreak"
    assert policy() == policy("tiebreak")


def test_options_go_over_the_bundles_own() -> None:
    assert policy("tie", ordering_options={"gamma": 0.8}).ordering == Tie(gamma=0.8)
    assert policy("a_min", ordering_options={"tau_s": 9.0}).ordering == LowerBound(1.0, 9.0)
    stored = policy(
        "a_min", eviction_options={"variant": "stored"}, admission_options={"overdue": "double"}
    )
    assert stored.eviction == ShortestLowerBound("stored")
    assert stored.admission == AMin("double")
    assert policy(admission_options={"q": 0.3}, backfill=4, guard_band=0.1) == policy(
        admission="quantile", admission_options={"q": 0.3}, backfill=4, guard_band=0.1
    )


def test_an_exchanged_part_does_not_inherit_options() -> None:
    mixed = policy("a_min", ordering="tie", admission="greedy", eviction="latest")
    assert (mixed.ordering, mixed.admission, mixed.eviction) == (Tie(), Greedy(), Latest())
    assert policy("a_min", ordering="fcfs").ordering == Fcfs()


def test_an_unknown_bundle_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"policy 'a_mim'.*did you mean 'a_min'"):
        policy("a_mim")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backfill": -1}, "backfill is -1"),
        ({"guard_band": 1.0}, "guard_band is 1.0"),
        ({"guard_band": -0.1}, "guard_band is -0.1"),
        ({"horizon": "al"}, "horizon.*'al'.*'all'"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        policy("tie", **options)  # type: ignore[arg-type]
