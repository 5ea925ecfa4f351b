"""The energy of the cluster is that of its replicas, those that are gone included."""

from __future__ import annotations

import msgspec

from cluster.control.energy_books import EnergyBooks
from cluster.snapshot import EnergyView
from replicas.protocol import EnergyTotals

A = EnergyTotals("model:x", 100.0, 60.0, 6.0, 30.0, 10.0, power_w=200.0, idle_w=50.0)
B = EnergyTotals("zeus:nvml", 40.0, 20.0, 1.0, 20.0, 0.0, power_w=300.0, idle_w=70.0)


def test_nothing_measured_is_no_energy() -> None:
    books = EnergyBooks()
    books.reported("a", EnergyTotals())
    books.lost("a")
    assert books.view() == EnergyView(EnergyTotals(), [])
    assert books.power_w is books.idle_w is None


def test_the_latest_books_of_each_replica_add_up() -> None:
    books = EnergyBooks()
    books.reported("a", B)
    books.reported("a", A)
    books.reported("b", B)
    view = books.view(power_cap_w=400.0)
    assert view.sources == ["model:x", "zeus:nvml"]
    assert view.totals == EnergyTotals(
        "model:x + zeus:nvml", 140.0, 80.0, 7.0, 50.0, 10.0, power_w=500.0, idle_w=120.0
    )
    assert view.by_source == [A, B]
    assert (view.power_w, view.power_cap_w) == (500.0, 400.0)
    assert (books.power_w, books.idle_w) == (500.0, 120.0)


def test_who_is_gone_keeps_its_joules_and_draws_no_power() -> None:
    books = EnergyBooks()
    books.reported("a", A)
    books.reported("b", B)
    before = books.view().totals
    books.lost("a")
    books.lost("a")
    after = books.view()
    assert after.power_w == after.totals.power_w == 300.0
    assert after.sources == ["model:x", "zeus:nvml"]
    assert after.by_source == [msgspec.structs.replace(A, power_w=0.0, idle_w=0.0), B]
    assert (
        msgspec.structs.replace(after.totals, power_w=before.power_w, idle_w=before.idle_w)
        == before
    )
    totals = after.totals
    booked = totals.request_joules + totals.idle_joules + totals.unattributed_joules
    assert booked == totals.metered_joules


def test_a_silent_meter_s_latest_power_counts_only_beside_one_that_answers() -> None:
    books = EnergyBooks()
    silent = msgspec.structs.replace(A, metered_joules=110.0, power_w=None)
    books.reported("a", A)
    books.reported("a", silent)
    assert books.power_w is books.view().power_w is None
    books.reported("b", B)
    assert books.power_w == books.view().power_w == 500.0
    assert books.view().totals.metered_joules == 150.0
    books.reported("a", msgspec.structs.replace(A, power_w=20.0))
    assert books.power_w == 320.0
    books.reported("a", silent)
    books.lost("b")
    assert books.power_w is None
    books.lost("a")
    books.reported("b", B)
    assert books.power_w == 300.0
